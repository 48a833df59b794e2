"""The page holds what the leaderboard says, the pictures that were drawn, and the settings of every training."""

import base64
import html
import io
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lit_gen.cli import commands
from lit_gen.cli.main import main
from lit_gen.report.leaderboard import rank
from lit_gen.report.page import read_curves, write_page
from lit_gen.report.render import to_cells
from lit_gen.report.results import load_results
from tests.conftest import arguments
from tests.report.test_leaderboard import content, write

pytestmark = pytest.mark.slow
"""End-to-end runs; the gate runs them."""


class Page(HTMLParser):
    """Tables as lists of rows, pictures by their alt text, and which elements were left open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.pictures: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.outside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "img":
            self.pictures.append((given["alt"] or "", given["src"] or ""))
        self.outside += [value for key, value in attrs if key in ("src", "href") and value and "data:" not in value]
        if tag not in ("img", "meta", "br"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("page") / "runs"
    for model in ("VAE", "EDM"):
        sampler = ["--sampler=DDIM", "--sampler.steps=2"] if model == "EDM" else []
        commands.run([*arguments(model, root, 64 * 40, "--data.num_val=64", *sampler), "--evaluation.num_samples=60"])
    return root


def test_the_page_holds_tables_pictures_and_settings(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "report.html"
    assert main(["report", str(runs), "--out", str(out)]) == 0
    text = out.read_text()
    page = Page(text)
    assert not page.open and not page.outside, "well formed, and nothing is fetched from elsewhere"
    headers, rows = to_cells(rank(load_results(runs)))
    texts = [[cell.text for cell in row] for row in rows]
    assert page.rows == [[header.name for header in headers], *texts]
    titles = " ".join(text[1] for text in texts)
    assert len(rows) == 4 and "training images, drawn again" in titles and "held-out images" in titles
    assert rank(load_results(runs)).noise_line in html.unescape(text)
    kinds = [alt for alt, _ in page.pictures]
    assert kinds.count("samples side by side") == 1 and kinds.count("images") == 2
    assert kinds.count("samples beside their nearest training images") == 2
    assert kinds.count("curves against images seen") == 2
    for _, source in page.pictures:
        data = base64.b64decode(source.removeprefix("data:image/png;base64,"), validate=True)
        with Image.open(io.BytesIO(data)) as picture:
            assert np.asarray(picture.convert("L")).std() > 0
    for run in runs.glob("digits_*"):
        assert f'id="{run.name}"' in text
        assert re.sub(r"\s+", " ", (run / "config.yaml").read_text().splitlines()[0]) in text


def test_data_under_two_names_share_a_table(tmp_path: Path) -> None:
    other = {"trained_on": "63bac8b2" * 8, "given": "ab" * 32}
    write(tmp_path, content("VAE", 1.0))
    write(tmp_path, content("EDM", 2.0, protocol__data="copy", other_data=other))
    page = Page(write_page(load_results(tmp_path), tmp_path / "report.html", "runs").read_text())
    assert [row[:2] for row in page.rows] == [["#", "model"], ["1", "VAE"], ["2", "EDM (trained on 63bac8b2)"]]


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    for folder, distance in (("here", 1.0), ("there", 2.0)):
        path = write(tmp_path / folder, content("VAE", distance, run__identity=folder))
        shutil.copy(path, path.parents[2] / "config.yaml")
    write(tmp_path / "here", content("EDM", 3.0))
    text = write_page(load_results(tmp_path), tmp_path / "report.html", "runs").read_text()
    assert re.findall('<section class="run" id="(.*?)"', text) == [
        "digits_EDM-0",
        "here/digits_VAE-0",
        "there/digits_VAE-0",
    ]


def test_conditions_choose(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    assert main(["report", str(runs), "--out", str(out), "--where", "model=VAE"]) == 0
    assert "digits_vae" in out.read_text() and "digits_edm" not in out.read_text()


def test_curves_are_those_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    file.write_text("images,train/loss,val/loss\n100,0.5,\n200,,0.25\n300,0.125,\n")
    assert read_curves(file) == {"train/loss": [(100, 0.5), (300, 0.125)], "val/loss": [(200, 0.25)]}
    assert read_curves(tmp_path / "none.csv") == {}


def test_what_is_wrong_is_one_line(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, named in (
        (["report", str(runs), "--out", str(tmp_path / "report.pdf")], "must end in .html"),
        (["report", str(tmp_path / "nowhere")], "no such folder"),
        (["report", str(runs), "--where", "model=GAN"], "values of model"),
    ):
        assert main(words) == 2
        assert named in capsys.readouterr().err.strip().splitlines()[-1]


def test_samples_that_were_deleted_are_left_out(runs: Path, tmp_path: Path) -> None:
    for file in runs.rglob("samples.npz"):
        file.unlink()
    out = tmp_path / "report.html"
    assert main(["report", str(runs), "--out", str(out)]) == 0
    kinds = [alt for alt, _ in Page(out.read_text()).pictures]
    assert "samples side by side" not in kinds and "distance against network evaluations" in kinds


def test_a_damaged_run_is_left_out_and_said(runs: Path, tmp_path: Path) -> None:
    copy = tmp_path / "runs"
    shutil.copytree(runs, copy)
    (damaged,) = copy.glob("digits_edm-*/run.json")
    damaged.write_text("{")
    with pytest.warns(UserWarning, match=f"{damaged}.*leaves this training out"):
        assert main(["report", str(copy), "--out", str(tmp_path / "page.html")]) == 0
    text = (tmp_path / "page.html").read_text()
    page = Page(text)
    assert {row[1] for row in page.rows if row[0].isdigit()} == {"EDM", "VAE"}, "numbers stand without it"
    assert "lit_gen.families.vae.VAE" in text and "lit_gen.families.diffusion.EDM" not in text, (
        "in the settings of the trainings"
    )


# values of a column in the order of the results, and the cells in ascending order
SORTED: dict[str, tuple[list[Any], list[str]]] = {
    "parameters": ([1_230_000, 15_400, 35_700_000, 999], ["999", "15.4 k", "1.23 M", "35.7 M"]),
    "model": (["2-RectifiedFlow", "10-Flow", "Zeta", "alpha"], ["10-Flow", "2-RectifiedFlow", "alpha", "Zeta"]),
    "training s": ([10_000.0, 9.5, None, 200.0], ["9.50", "200", "10000"]),
    "fd_digits ↓": ([100.5, 99.25, math.nan, 1e-3], ["0.001000", "99.25", "100.5"]),
}


def sortable(folder: Path) -> str:
    """A page of four results."""
    for number in range(4):
        model, distance, parameters, seconds = (
            SORTED[name][0][number] for name in ("model", "fd_digits ↓", "parameters", "training s")
        )
        changes = {"num_parameters": parameters, "training_seconds": seconds, "run__name": f"r{number}"}
        write(folder, content(model, distance, **changes))
    return write_page(load_results(folder), folder / "page.html", "title").read_text()


def test_cells_say_what_they_are_sorted_by(tmp_path: Path) -> None:
    text = sortable(tmp_path)
    header, *rows = re.findall(r"<tr>.*?</tr>", text)
    numeric = ["data-numeric" in cell for cell in re.findall("<th.*?>", header)]
    names = re.findall("<th.*?>(.*?)</th>", header)
    of_text = [name for name, number in zip(names, numeric, strict=True) if not number]
    assert of_text == ["model", "sampler", "grid", "seeds", "run"]
    for name, (values, _) in SORTED.items():
        cells = [re.findall("<td(.*?)>", row)[names.index(name)] for row in rows]
        found = [re.search('data-sort="(.*?)"', cell) for cell in cells]
        kept = [match[1] for match in found if match]
        if name == "model":
            assert sorted(kept) == sorted(values)
        else:
            assert sorted(map(float, kept)) == sorted(value for value in values if value and not math.isnan(value))


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs the browser chromium")
def test_a_click_sorts_in_a_browser(tmp_path: Path) -> None:
    """Numbers by value, names as text, what is missing last in both directions."""
    probe = """<script>
      const table = document.querySelector("table"), found = {};
      for (const head of table.tHead.rows[0].cells) found[head.textContent] = [0, 1].map(() => {
        head.click();
        return [...table.tBodies[0].rows].map(row => row.cells[head.cellIndex].textContent);
      });
      document.body.innerHTML = "<pre>" + JSON.stringify(found) + "</pre>";
    </script></body>"""
    (tmp_path / "probe.html").write_text(sortable(tmp_path).replace("</body>", probe))
    words = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--dump-dom"]
    done = subprocess.run([*words, f"file://{tmp_path}/probe.html"], capture_output=True, text=True, timeout=120)
    match = re.search("<pre>(.*?)</pre>", done.stdout)
    assert match is not None, done.stderr
    found = json.loads(html.unescape(match[1]))
    for name, (values, order) in SORTED.items():
        missing = [{"training s": "-", "fd_digits ↓": "nan"}[name]] if len(order) < len(values) else []
        assert found[name] == [order + missing, order[::-1] + missing], name
