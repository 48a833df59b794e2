"""The page holds what the leaderboard says, the pictures that were drawn, and the settings of every training."""

import base64
import html
import io
import json
import math
import re
import shlex
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lit_gen.cli import commands
from lit_gen.cli.main import main
from lit_gen.data import Digits
from lit_gen.report import plots
from lit_gen.report.answers import find_answers
from lit_gen.report.leaderboard import rank
from lit_gen.report.page import write_page
from lit_gen.report.render import to_cells
from lit_gen.report.results import load_results
from lit_gen.report.trainings import read_curves
from tests.conftest import arguments
from tests.report.test_leaderboard import PROTOCOL, content, write

pytestmark = pytest.mark.slow
"""End-to-end runs; the gate runs them."""


class Page(HTMLParser):
    """Rows of the leaderboards as texts, pictures by their alt text, links and anchors, and elements left open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.pictures: dict[str, str] = {}
        self.open: list[str] = []
        self.outside: list[str] = []
        self.links: set[str] = set()
        self.ids: list[str] = []
        self.in_board = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "img":
            self.pictures[given["alt"] or ""] = given["src"] or ""
        for key, value in attrs:
            if key in ("src", "href") and value and value.startswith("#"):
                self.links.add(value[1:])
            elif key in ("src", "href") and value and not value.startswith("data:"):
                self.outside.append(value)
            elif key == "id":
                self.ids.append(value or "")
        if tag == "table":
            self.in_board = given.get("class") == "board"
        if tag not in ("img", "meta", "br", "link", "input"):
            self.open.append(tag)
        if tag == "tr" and self.in_board:
            self.rows.append([])
        if tag in ("td", "th") and self.in_board:
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.in_board and {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("page") / "runs"
    for model in ("VAE", "EDM"):
        sampler = ["--sampler=DDIM", "--sampler.steps=2"] if model == "EDM" else []
        commands.run([*arguments(model, root, 64 * 40, "--data.num_val=64", *sampler), "--evaluation.num_samples=60"])
    return root


def test_the_page_holds_answers_tables_pictures_and_settings(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "report.html"
    assert main(["report", str(runs), "--out", str(out)]) == 0
    text = out.read_text()
    page = Page(text)
    assert not page.open and not page.outside, "well formed, and nothing is fetched from elsewhere"
    assert len(page.ids) == len(set(page.ids)) and page.links <= set(page.ids)
    board = rank(load_results(runs))
    headers, rows = to_cells(board)
    texts = [[cell.text for cell in row] for row in rows]
    assert page.rows == [[header.name for header in headers], *texts]
    titles = " ".join(text[1] for text in texts)
    assert len(rows) == 4 and "training images, drawn again" in titles and "held-out images" in titles
    plain = html.unescape(text)
    assert board.noise_line in plain
    [answer] = find_answers(board)
    assert answer.question in plain and answer.answer in plain
    kinds = " ".join(page.pictures)
    assert kinds.count("beside their nearest training images") == 2 and kinds.count("images of digits_") == 2
    assert text.count("loss against images seen; last: ") == 2
    for source in page.pictures.values():
        with picture_of(source) as picture:
            assert np.asarray(picture.convert("L")).std() > 0
    for run in runs.glob("digits_*"):
        assert f'id="{run.name}"' in text
        assert re.sub(r"\s+", " ", (run / "config.yaml").read_text().splitlines()[0]) in text


def picture_of(source: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(source.removeprefix("data:image/png;base64,"), validate=True)))


def pixels_of(source: str) -> np.ndarray:
    """Images (N, H, W) of a row of grey pixels."""
    with picture_of(source) as picture:
        row = np.asarray(picture)
    height, width = row.shape[:2]
    columns = (width + 1) // (height + 1)
    found = [row[:, place * (height + 1) : place * (height + 1) + height] for place in range(columns)]
    return np.stack([image[..., 0] for image in found if image[..., 1].all()])


def test_samples_stand_below_real_images_and_name_their_command(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    assert main(["report", str(runs), "--out", str(out)]) == 0
    page = Page(out.read_text())
    assert list(page.pictures)[0] == "real images"
    train = Digits().load("train").images[:-64, 0]
    index = np.arange(12) * len(train) // 12
    assert np.array_equal(pixels_of(page.pictures["real images"]), train[index])
    for result in load_results(runs):
        [alt] = (alt for alt in page.pictures if alt.startswith(f"samples of {result.model}, ") and "beside" not in alt)
        with np.load(result.path.with_name("samples.npz")) as kept:
            assert np.array_equal(pixels_of(page.pictures[alt]), kept["images"][:12, 0])
    [command] = re.findall(r"lit-gen evaluate \S*digits_edm.*?</pre>", out.read_text())
    words = shlex.split(html.unescape(command.removesuffix("</pre>")))
    copy = tmp_path / "runs"
    shutil.copytree(runs, copy)
    [run] = copy.glob("digits_edm*")
    [old] = run.glob("evaluations/*/result.json")
    before = json.loads(old.read_text())
    shutil.rmtree(old.parent)
    again = commands.evaluate([str(run), *words[3:], "--wandb.mode=disabled"])
    assert words[:2] == ["lit-gen", "evaluate"] and Path(words[2]).name == run.name and again == old
    assert json.loads(again.read_text())["metrics"] == before["metrics"]


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


def test_several_folders_make_one_page_and_each_evaluation_counts_once(tmp_path: Path) -> None:
    for folder, model in (("one", "A"), ("two", "B")):
        write(tmp_path / folder, content(model))
    out = tmp_path / "report.html"
    folders = [str(tmp_path / name) for name in ("one", "two", "one/../one")]
    assert main(["report", *folders, "--out", str(out)]) == 0
    assert [row[1] for row in Page(out.read_text()).rows[1:]] == ["A", "B"]


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
        (["report", str(runs), "--max-mb", "-1"], "--max-mb: -1 is not a size"),
    ):
        assert main(words) == 2
        assert named in capsys.readouterr().err.strip().splitlines()[-1]


def test_samples_that_were_deleted_are_left_out(runs: Path, tmp_path: Path) -> None:
    copy = tmp_path / "runs"
    shutil.copytree(runs, copy)
    for file in copy.rglob("samples.npz"):
        file.unlink()
    out = tmp_path / "report.html"
    assert main(["report", str(copy), "--out", str(out)]) == 0
    text = out.read_text()
    assert "samples of VAE, NFE 1" not in Page(text).pictures and 'data-against="nfe"' in text


def test_other_images_than_those_of_the_protocol_are_not_shown_as_real(runs: Path, tmp_path: Path) -> None:
    copy = tmp_path / "runs"
    shutil.copytree(runs, copy)
    for config in copy.glob("*/config.yaml"):
        config.write_text(config.read_text().replace("num_val: 64", "num_val: 32"))
    out = tmp_path / "report.html"
    with pytest.warns(UserWarning, match="no longer those of the protocol; .* the row of real images"):
        assert main(["report", str(copy), "--out", str(out)]) == 0
    text = out.read_text()
    assert "real images" not in Page(text).pictures and "Real images are not shown." in text
    with pytest.warns(UserWarning, match="no longer those of the protocol; .* have no row of real images"):
        plots.side_by_side(load_results(copy), tmp_path / "samples.png")


def test_real_images_are_the_first_row_of_samples_side_by_side(runs: Path, tmp_path: Path) -> None:
    picture = np.asarray(Image.open(plots.side_by_side(load_results(runs), tmp_path / "samples.png")).convert("L"))
    windows = np.lib.stride_tricks.sliding_window_view(picture, (48, 48))
    heights = []
    samples = [np.load(result.path.with_name("samples.npz"))["images"][0, 0] for result in load_results(runs)]
    for image in (Digits().load("train").images[0, 0], *samples):
        large = image.repeat(6, 0).repeat(6, 1)
        near = np.argwhere(windows[:, :, 24, :3] == large[24, :3])[:, :2]
        [place] = {(y, x) for y, x in map(tuple, near) if np.array_equal(windows[y, x], large)}
        heights.append(place[0])
    assert heights[0] < min(heights[1:]) and len(set(heights)) == 3


def test_points_of_the_plane_are_one_figure(tmp_path: Path) -> None:
    protocol = PROTOCOL | {"quantisation": "none", "image_shape": [2, 1, 1]}
    for model in ("A", "B"):
        path = write(tmp_path, content(model, protocol=protocol))
        points = np.random.default_rng(0).uniform(-1, 1, (50, 2, 1, 1)).astype(np.float32)
        np.savez(path.with_name("samples.npz"), images=points)
    text = write_page(load_results(tmp_path), tmp_path / "page.html", "title").read_text()
    assert list(Page(text).pictures) == ["points of each evaluation, a panel each"]


def test_samples_of_other_software_and_of_another_seed_say_so(tmp_path: Path) -> None:
    for number, (model, seed) in enumerate((("A", 0), ("B", 0), ("C", 3), ("D", 0))):
        data = content(model, number, seed=seed)
        data["run"] |= {"foreign": True} if model == "D" else {}
        path = write(tmp_path, data)
        np.savez(path.with_name("samples.npz"), images=np.full((2, 3, 4, 4), 9, np.uint8))
    page = write_page(load_results(tmp_path), tmp_path / "page.html", "title").read_text()
    notes = re.findall('<span class="score">(from the noise .*?|made by .*?)</span>', page)
    assert notes == ["from the noise of seed 3", "made by other software, from other noise"]
    assert page.count("lit-gen evaluate") == 3, "the foreign samples have no command"


def test_a_small_page_counts_what_it_leaves_out(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    assert main(["report", str(runs), "--out", str(out)]) == 0
    size = out.stat().st_size
    assert "Left out to keep the page small" not in out.read_text()
    assert main(["report", str(runs), "--out", str(out), "--max-mb", str(size / 1e6 - 0.005)]) == 0
    text = out.read_text()
    assert out.stat().st_size <= size - 5000 and len(Page(text).rows) == 5
    assert re.search(r"Left out to keep the page small: \d (rows|runs|pictures|config)", text)
    with pytest.warns(UserWarning, match="MB without any pictures; choose some of the rows with --where"):
        assert main(["report", str(runs), "--out", str(out), "--max-mb", "0.01"]) == 0
    assert len(Page(out.read_text()).rows) == 5


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
    board = text[text.index('<table class="board">') :]
    header, *rows = re.findall(r"<tr.*?</tr>", board, re.DOTALL)[:5]
    numeric = ["data-numeric" in cell for cell in re.findall("<th.*?>", header)]
    names = re.findall("<button.*?>(.*?)</button>", header)
    of_text = [name for name, number in zip(names, numeric, strict=True) if not number]
    assert of_text == ["model", "sampler", "grid", "seeds", "run"]
    for name, (values, _) in SORTED.items():
        cells = [re.findall("<td(.*?)>", row)[names.index(name)] for row in rows]
        found = [re.search('data-v="(.*?)"', cell) for cell in cells]
        kept = [match[1] for match in found if match]
        if name == "model":
            assert sorted(kept) == sorted(values)
        else:
            assert sorted(map(float, kept)) == sorted(value for value in values if value and not math.isnan(value))
