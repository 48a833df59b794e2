"""The page in a browser: sorting, filters, links, the keyboard, settings that differ, accessibility, and its size."""

import html
import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from lit_gen.report.page import write_page
from lit_gen.report.results import load_results
from lit_gen.report.run_comparison import compare_runs
from lit_gen.runs.directory import Run
from tests.report.test_leaderboard import DDIM, content, write
from tests.report.test_page import SORTED, sortable

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("chromium") is None, reason="needs the browser chromium"),
]


def axe() -> Path | None:
    """The script axe-core of an installed package."""
    for package in ("axe_core_python", "axe_playwright_python"):
        if (found := importlib.util.find_spec(package)) is not None and found.origin is not None:
            return Path(found.origin).with_name("axe.min.js")
    return None


def in_browser(page: str, folder: Path, script: str, dark: bool = False) -> Any:
    """What a script on the page, the body of an async function, returns; console messages fail."""
    probe = """<script>(async () => { %s })().then(found => {
      document.body.textContent = ""; document.body.append(Object.assign(
        document.createElement("pre"), { textContent: JSON.stringify(found) })); });</script></body>"""
    (folder / "probe.html").write_text(page.replace("</body>", probe.replace("%s", script)))
    words = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    words += ["--enable-logging=stderr", "--virtual-time-budget=60000", "--window-size=1000,800"]
    words += ["--blink-settings=preferredColorScheme=0"] if dark else []
    done = subprocess.run(
        [*words, "--dump-dom", f"file://{folder}/probe.html"], capture_output=True, text=True, timeout=200
    )
    assert not re.findall(".*CONSOLE.*", done.stderr)
    match = re.search("<pre>(.*?)</pre>", done.stdout, re.DOTALL)
    assert match is not None, done.stderr
    return json.loads(html.unescape(match[1]))


CONFIGS = [
    {"model": {"class_path": "EDM", "init_args": {"p_mean": -1.2, "widths": [1, 2]}}, "budget": {"num_images": 10}},
    {"model": {"class_path": "EDM", "init_args": {"p_mean": -0.4, "widths": [1, 2]}}, "budget": {"num_images": 10}},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models under two samplers at three budgets, and one without samplers, with intervals, floors and samples."""
    root = tmp_path_factory.mktemp("browser")
    floors = {"train": {"num_images": 2000, "scores": {"fd_digits": 0.5}, "standard_errors": {}}}
    more = {"floors": floors, "standard_errors": {"fd_digits": 0.2}, "flops_per_image": 5_000_000}
    for number, model in enumerate(("EDM", "<DDPM> & co")):
        for place, name in enumerate(("DDIM", "Heun")):
            for nfe in (5.0, 10.0, 20.0):
                sampler = DDIM | {"name": name, "steps": nfe}
                data = content(model, 30 / nfe + number - place / 2, sampler=sampler, nfe=nfe) | more
                data["run"] |= {"name": f"run{number}", "identity": f"run{number}"}
                path = write(root / "runs", data, f"{name}-{nfe:g}")
                np.savez(path.with_name("samples.npz"), images=np.full((3, 1, 8, 8), 100, np.uint8))
        run = path.parents[2]
        (run / "metrics.csv").write_text("images,train/loss\n1,2.5\n100,1.5\n")
        (run / "config.yaml").write_text(yaml.safe_dump(CONFIGS[number]))
        facts = dict.fromkeys(("identity", "recipe", "status", "wandb_id"), "x") | {"seed": 0, "python": "3.11"}
        (run / "run.json").write_text(json.dumps(facts | {"packages": {"torch": f"2.1{number}"}}))
    write(root / "runs", content("VAE", 4.0, sampler=None) | more | {"copies": True})
    return root


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    with pytest.warns(UserWarning, match="the row of real images"):  # these runs cannot be built
        return write_page(load_results(folder / "runs"), folder / "page.html", "title").read_text()


def test_a_click_sorts(tmp_path: Path) -> None:
    """Numbers by value, names as text, what is missing last in both directions."""
    script = """
      const table = document.querySelector("table.board"), found = {};
      for (const head of table.tHead.rows[0].cells) found[head.textContent] = [0, 1].map(() => {
        head.querySelector("button").click();
        return [head.ariaSort, [...table.tBodies[0].rows].map(row => row.cells[head.cellIndex].textContent)];
      });
      return found;"""
    found = in_browser(sortable(tmp_path), tmp_path, script)
    for name, (values, order) in SORTED.items():
        missing = [{"training s": "-", "fd_digits ↓": "nan"}[name]] if len(order) < len(values) else []
        assert found[name] == [["ascending", order + missing], ["descending", order[::-1] + missing]], name


def test_filters_hide_rows_with_their_points_and_samples(page: str, tmp_path: Path) -> None:
    script = """
      const form = document.querySelector("form.filter"), found = [];
      const shown = selector => [...document.querySelectorAll(selector)].filter(item => !item.hasAttribute("hidden"));
      const state = () => {
        const rows = shown(".board tbody tr[id]").map(row => row.id);
        const [points, samples] = ["figure:not([hidden]) a[data-row]", "li[data-row]"].map(
          selector => shown(selector).map(item => item.dataset.row));
        const [a, b, c] = [rows, points, samples].map(each => JSON.stringify([...each].sort()));
        const same = a === b && a === c;
        const data = rows.map(id => document.getElementById(id).dataset);
        const names = data.map(of => [of.model, of.sampler, of.nfe].join("|"));
        return [names, same, form.querySelector(".count").textContent];
      };
      for (const values of [{ model: "<DDPM> & co" }, { sampler: "Heun(eta=0)" }, { budget: "5" },
                            { words: "EDM  heun" }, { model: "EDM", budget: "10", sampler: "DDIM" }, {}]) {
        form.reset();
        for (const [key, value] of Object.entries(values)) form.elements[key].value = value;
        form.dispatchEvent(new Event("input"));
        found.push(state());
      }
      return found;"""
    found = in_browser(page, tmp_path, script)
    edm = {f"EDM|{sampler}|{nfe}" for sampler in ("DDIM", "Heun(eta=0)") for nfe in (5, 10, 20)}
    ddpm = {name.replace("EDM", "<DDPM> & co") for name in edm}
    every = edm | ddpm | {"VAE||1"}
    expected = [
        ddpm,
        {name for name in every if "Heun" in name},
        {name for name in every if name.endswith(("|5", "|1"))},
        {name for name in edm if "Heun" in name},
        {"EDM|DDIM|5", "EDM|DDIM|10"},
        every,
    ]
    for (names, same, count), wanted in zip(found, expected, strict=True):
        assert set(names) == wanted and same
        assert count == f"{len(wanted)} of 13 rows shown"


def test_points_name_their_rows_link_to_them_and_answer_to_the_keyboard(page: str, tmp_path: Path) -> None:
    script = """
      const figures = [...document.querySelectorAll("figure.chart")], named = document.querySelector(".named");
      const [first, second] = figures[0].querySelectorAll("a.mark");
      const shown = [...document.querySelectorAll("figure.chart:not([hidden]) a.mark")];
      const stops = shown.filter(point => point.tabIndex === 0);
      first.focus();
      const before = named.textContent;
      first.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true, cancelable: true }));
      const after = [named.textContent, document.activeElement === second, second.tabIndex, first.tabIndex];
      document.querySelector("form.filter").elements.words.value = "nothing has this";
      document.querySelector("form.filter").dispatchEvent(new Event("input"));
      const row = document.getElementById(second.getAttribute("href").slice(1)), hidden = row.hidden;
      location.hash = second.getAttribute("href");
      await new Promise(done => setTimeout(done, 500));
      const seen = [hidden, row.hidden, row.className, row.cells[1].textContent, row.cells[4].textContent];
      document.querySelector("input[value=flops]").click();
      const charts = figures.map(figure => [figure.dataset.against, figure.hidden]);
      const dead = [...document.querySelectorAll("a[href^='#']")].filter(
        link => !document.getElementById(link.getAttribute("href").slice(1))).length;
      return { stops: stops.length, before, after, label: second.getAttribute("aria-label"), seen, charts, dead };"""
    found = in_browser(page, tmp_path, script)
    assert found["stops"] == 1 and found["dead"] == 0
    assert found["before"] == "VAE, NFE 1 (copies): 4.00 ± 0.39"
    assert found["after"] == [found["label"], True, 0, -1] and ", NFE 5: " in found["label"]
    hidden, still, classes, model, nfe = found["seen"]
    assert hidden and not still and classes == "chosen" and found["label"].startswith(model) and nfe == "5"
    assert found["charts"] == [["nfe", True], ["flops", False], ["seconds", True]]


def test_two_rows_show_the_settings_that_differ(page: str, folder: Path, tmp_path: Path) -> None:
    script = """
      const tool = document.querySelector("form.two"), [one, other] = tool.querySelectorAll("select"), found = {};
      const option = text => [...one.options].find(each => each.text === text).value;
      for (const [a, b] of [["EDM, DDIM, NFE 5", "<DDPM> & co, DDIM, NFE 5"], ["EDM, DDIM, NFE 5", "EDM, DDIM, NFE 20"],
                            ["EDM, DDIM, NFE 5", "EDM, DDIM, NFE 5"]]) {
        [one.value, other.value] = [option(a), option(b)];
        tool.dispatchEvent(new Event("input"));
        found[b] = [...document.querySelectorAll(".differences tbody tr")].map(
          row => [...row.cells].map(cell => cell.textContent));
      }
      return found;"""
    found = in_browser(page, tmp_path, script)
    models = compare_runs(*(Run(folder / "runs" / f"run{number}") for number in range(2)))
    expected = [[key, str(first), str(second)] for key, first, second in [*models.settings, *models.environment]]
    assert expected == [["model.p_mean", "-1.2", "-0.4"], ["packages.torch", "2.10", "2.11"]]
    [*own, first, second] = found["<DDPM> & co, DDIM, NFE 5"]
    assert [first, second] == expected and own == [["model", "EDM", "<DDPM> & co"]]
    assert found["EDM, DDIM, NFE 20"] == [["sampler.steps", "5.0", "20.0"], ["nfe", "5.0", "20.0"]]
    assert found["EDM, DDIM, NFE 5"] == []


@pytest.mark.skipif(axe() is None, reason="needs axe-core: pip install axe-core-python")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_no_violation(page: str, tmp_path: Path, dark: bool) -> None:
    script = axe()
    assert script is not None
    with_axe = page.replace("</head>", f"<script>{script.read_text()}</script></head>")
    probe = """
      document.querySelectorAll("details").forEach(each => { each.open = true; });
      const { violations } = await axe.run(document);
      return violations.map(each => [each.id, each.nodes.map(node => node.html)]);"""
    assert in_browser(with_axe, tmp_path, probe, dark) == []
    if dark:
        return
    broken = with_axe.replace('alt="', 'data-alt="').replace("--soft: #5a5f66", "--soft: #c5c5c5")
    found = {name for name, _ in in_browser(broken, tmp_path, probe)}
    assert {"image-alt", "color-contrast"} <= found


def test_nothing_is_wider_than_a_phone(page: str, tmp_path: Path) -> None:
    frame = f'<html><body><iframe srcdoc="{html.escape(page)}" width="400" height="800"></iframe></body></html>'
    script = """
      await new Promise(done => setTimeout(done, 1000));
      const inner = document.querySelector("iframe").contentWindow, page = inner.document;
      const widest = [...page.querySelectorAll("main > *, main section > :not(.wide)")].map(
        each => each.getBoundingClientRect().right);
      const chart = page.querySelector("figure.chart svg"), tick = chart.querySelector(".tick");
      const size = parseFloat(inner.getComputedStyle(tick).fontSize) * chart.getBoundingClientRect().width / 480;
      return [page.documentElement.scrollWidth, Math.max(...widest), inner.innerWidth, size];"""
    width, widest, available, size = in_browser(frame, tmp_path, script)
    assert max(width, widest) <= available == 400 and size > 8
    wide = frame.replace("overflow-x: auto", "overflow-x: visible")
    assert in_browser(wide, tmp_path, script)[0] > 400
