"""README and the pages under docs: pictures exist, commands do what the pages say, generated pages are current."""

import importlib.util
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import tarfile
from difflib import SequenceMatcher
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import yaml
from matplotlib.axes import Axes
from PIL import Image

from lit_gen.cli import commands, help
from lit_gen.cli.main import _parser
from lit_gen.core.noise import Noise
from lit_gen.data import TwoMoons
from lit_gen.experiment.parser import ExperimentCLI
from lit_gen.experiment.real_data import parse_protocol, parse_real_data
from lit_gen.report import theory
from lit_gen.sweeps import load_sweep
from tests.conftest import ROOT

DOCS = ROOT / "docs"
spec = importlib.util.spec_from_file_location("update_tables", DOCS / "update_tables.py")
assert spec is not None and spec.loader is not None
update_tables = importlib.util.module_from_spec(spec)
spec.loader.exec_module(update_tables)
WRITTEN = [ROOT / "README.md", *sorted(DOCS.glob("*.md")), *sorted((DOCS / "api").glob("*.md"))]
PAGES = [str(path.relative_to(ROOT)) for path in WRITTEN]  # those of docs/reference are generated


def commands_of(page: str) -> list[list[str]]:
    """Return the words of every command in the page's shell blocks; `A && B` is two commands."""
    blocks = re.findall(r"^```sh\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(command) for line in lines for command in line.split(" && ")]


def ours(words: list[str]) -> list[str]:
    """Return the command of lit-gen that torchrun starts; any other command as it is."""
    return ["lit-gen", *words[words.index("lit_gen") + 1 :]] if words[0] == "torchrun" else words


EVERY_COMMAND = [(page, ours(words)) for page in PAGES for words in commands_of(page)]
EVERY_COMMAND += [
    (page, ["lit-gen", *words]) for page in PAGES for words in update_tables.commands_of(ROOT / page)
]  # of the tables
# each once, whichever pages give it; test_extending.py runs those of its page
IN_THE_CHECKOUT = [list(w) for w in dict.fromkeys(tuple(w) for page, w in EVERY_COMMAND if page != "docs/extending.md")]
SWEEPS = [yaml.safe_load(path.read_text())["name"] for path in (ROOT / "sweeps").glob("*.yaml")]
FIGURES = [words[3:] for _, words in EVERY_COMMAND if words[:3] == ["python", "-m", "lit_gen.report.theory"]]


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_lead_somewhere(page: str) -> None:
    text, folder = (ROOT / page).read_text(), (ROOT / page).parent
    targets = [target for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text) if "://" not in target]
    assert targets
    assert [target for target in targets if not (folder / target).is_file()] == []
    for anchored, anchor in re.findall(r"\]\(([^):]+\.md)#([^)]+)\)", text):
        headings = re.findall(r"^#+ (.*)$", (folder / anchored).read_text(), re.MULTILINE)
        names = [re.sub(r"[^\w -]", "", heading.lower()) for heading in headings]
        assert anchor in [re.sub(r"[ -]+", "-", name) for name in names]


@pytest.mark.parametrize("page", PAGES)
def test_every_picture_is_made_by_a_command_of_a_page(page: str) -> None:
    made = {
        words[words.index(option) + 1].removeprefix("../")
        for _, words in EVERY_COMMAND
        for option in ("--out", "--figure", "--samples")
        if option in words
    }
    of_sweep = re.compile(
        rf"images/({'|'.join(SWEEPS)})(_(digits|digits_binary))?\.png"
    )  # the second where it has several data
    shown = re.findall(r"!\[[^\]]*\]\((?:docs/)?(images/[^)]+)\)", (ROOT / page).read_text())
    assert not [image for image in shown if f"docs/{image}" not in made and not of_sweep.fullmatch(image)]


@pytest.mark.parametrize("words", [words for words in IN_THE_CHECKOUT if words[0] == "lit-gen"], ids=" ".join)
@pytest.mark.slow
def test_commands_name_what_there_is(words: list[str]) -> None:
    match words[1]:
        case "run" | "fit":
            ExperimentCLI([word.replace("conf/", f"{ROOT}/conf/") for word in words[2:]])
        case "sweep":
            patterns = [word for word in words[2:] if word.startswith("sweeps/")]
            assert load_sweep([path for pattern in patterns for path in sorted(ROOT.glob(pattern))]).trials
        case "leaderboard" | "report":
            roots = [w[w.index("--run.root") + 1] for w in IN_THE_CHECKOUT if "--run.root" in w]
            assert words[2] in [*(f"runs/sweeps/{sweep}" for sweep in SWEEPS), *roots, "runs"]
        case "sample":
            name = words[2].removesuffix("-*").removeprefix("runs/")
            configs = dict.fromkeys(w[w.index("--config") + 1] for w in IN_THE_CHECKOUT if "--config" in w)
            assert config_of(name, [ROOT / config for config in configs])
        case "ema":
            assert words[3] == "--std" and float(words[4]) > 0
            fits = [w for w in IN_THE_CHECKOUT if w[:2] == ["lit-gen", "fit"] and "--ema.stds" in w]
            names = [default_name(ROOT / w[w.index("--config") + 1]) for w in fits]
            assert Path(words[2]).name.removesuffix("-*") in names
        case "evaluate" if Path(words[2]).parent == Path("runs/board"):  # tests/behaviour/test_one_board.py runs it
            imported = next(w for w in IN_THE_CHECKOUT if w[1:2] == ["import"] and w[-1] == "runs/board")
            assert Path(words[2]).name == f"digits_{imported[2]}-*"
        case "reflow" | "evaluate":
            made = Path(words[2]).name.removesuffix("-*").replace("2-", "")
            config = config_of(made, list((ROOT / "conf/experiment").glob("*.yaml")))
            given = [word for word in words[3:] if word != "--distill"]
            ExperimentCLI([f"--config={config}", *given])
        case "reference":  # tests/cli/test_reference.py runs them
            options, keys = help.reference_parser(words[2]).parse_known_args(words[3:])
            assert not keys or parse_real_data(keys, "reference").feature_net is not None
        case "score":
            parse_protocol(help.score_parser().parse_known_args(words[2:])[1], "score")
        case "import":
            assert help.import_parser().parse_known_args(words[2:])[1][:1] in (
                [],
                ["--data.source"],
                ["--model.schedule"],
            )
        case "export" | "compare" | "reproduce":
            options = _parser()[0].parse_args(words[1:])
            runs = options.runs if words[1] == "compare" else [options.run]
            configs = dict.fromkeys(w[w.index("--config") + 1] for w in IN_THE_CHECKOUT if "--config" in w)
            assert all(config_of(run.name.removesuffix("-*"), [ROOT / config for config in configs]) for run in runs)
        case verb:
            pytest.fail(f"no check of lit-gen {verb}")


@pytest.mark.parametrize("words", [words for words in IN_THE_CHECKOUT if words[0] != "lit-gen"], ids=" ".join)
def test_other_commands_name_what_there_is(words: list[str]) -> None:
    match words:
        case ["pip", "install", "-c", constraints, "-e", target]:
            extras = re.findall(r"\[(\w+)\]", target)
            config = (ROOT / "setup.cfg").read_text()
            assert (ROOT / constraints).is_file() and all(f"\n{extra} =\n" in config for extra in extras)
        case ["pytest"]:
            assert (ROOT / "pyproject.toml").is_file()
        case ["wandb", "sweep", file]:
            assert load_sweep([ROOT / file]).trials
        case ["wandb", "leet", path]:
            assert re.fullmatch(r"runs/\w+-\*/wandb", path)
        case ["pip", "install", tool]:  # of a script of the docs
            assert f"import {tool}" in "".join(script.read_text() for script in DOCS.glob("*.py"))
        case ["python", "-m", "lit_gen.report.theory", figure, *_]:
            assert callable(getattr(theory, figure))
        case ["python", script, *_]:
            ran = runpy.run_path(str(ROOT / script))
            with pytest.raises(SystemExit) as stopped:
                ran["main"](["--help"])
            assert stopped.value.code == 0
        case _:
            pytest.fail(f"no check of {words[0]}")


def test_the_page_of_formats_has_every_field() -> None:
    page, fields = (DOCS / "file_formats.md").read_text(), set()
    with tarfile.open(ROOT / "tests/behaviour/golden/runs.tar.xz") as archive:
        for member in archive:
            if Path(member.name).name in ("run.json", "result.json") and (file := archive.extractfile(member)):
                fields |= json.load(file).keys()
    assert {"identity", "metrics"} <= fields
    assert [field for field in sorted(fields) if f"`{field}`" not in page] == []


@pytest.mark.slow
def test_generated_pages_are_current() -> None:
    """In a process of its own, since the classes of tests would be listed, too."""
    program = [sys.executable, str(DOCS / "generate_reference.py"), "--check"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(program, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_site_shows_every_page() -> None:
    """`mkdocs build --strict` checks links and names; this needs no mkdocs."""
    named = re.findall(r"[\w/]+\.md", (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2])
    assert sorted(named) == sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))


def test_readme_is_a_front_page() -> None:
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 150
    assert len(re.findall(r"^pip install .*$", readme, re.MULTILINE)) == 2
    assert len(re.findall(r"^pip install .*&& pytest$", readme, re.MULTILINE)) == 1


@cache
def default_name(config: Path) -> str:
    """Return the first part of the name of the run that an experiment makes."""
    objects = ExperimentCLI(["--config", str(config)]).objects()
    flow = "2-" if objects.reflow.teacher is not None else ""
    return re.sub(r"[^\w.=-]+", "_", f"{objects.data.name}_{flow}{objects.model.title.lower()}")


def config_of(name: str, configs: list[Path]) -> Path:
    """Return the experiment that makes runs of a name; those whose files are named alike are read first."""
    alike = sorted(configs, key=lambda config: -SequenceMatcher(None, config.stem, name).ratio())
    return next(config for config in alike if default_name(config) == name)


def differing(one: Path, other: Path) -> float:
    """Return the share of pixels in which two pictures of one size differ by more than a tenth of the range.

    The same code gives the same picture; another version of matplotlib may draw the edges of letters otherwise.
    """
    pixels = [np.asarray(Image.open(path).convert("RGB")).astype(int) for path in (one, other)]
    assert pixels[0].shape == pixels[1].shape
    return float((np.abs(pixels[0] - pixels[1]).max(-1) > 25).mean())


MARKS = {
    "trajectories": [pytest.mark.slow, pytest.mark.exhaustive],
    "convergence": [pytest.mark.slow, pytest.mark.exhaustive],
}


@pytest.mark.parametrize(
    "words",
    [pytest.param(words, marks=MARKS.get(words[0], ()), id=words[0]) for words in FIGURES if words[0] != "learned"],
)
def test_figures_are_those_of_the_page(words: list[str], tmp_path: Path) -> None:
    place = words.index("--out") + 1
    out = tmp_path / "figure.png"
    assert theory.main([*words[:place], str(out), *words[place + 1 :]]) == 0
    assert differing(out, ROOT / words[place]) < 1e-3


def test_a_figure_of_other_points_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(theory, "Noise", lambda seed, indices: Noise(seed + 1, indices))
    out = theory.guidance(tmp_path / "figure.png")
    assert differing(out, DOCS / "images" / "diffusion_guidance.png") > 1e-2


@pytest.mark.slow
@pytest.mark.exhaustive
def test_the_curves_of_convergence_have_their_slopes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With few points: errors of 255 evaluations by the order of each solver, and distances that end at the floor."""
    figure = theory.new_figure(10.0, 4.2, theory.DOTS)
    monkeypatch.setattr(theory, "new_figure", lambda *_: figure)
    theory.convergence(TwoMoons(), tmp_path / "figure.png", num_points=100)
    curves = [{str(line.get_label()): np.array(line.get_ydata()) for line in axes.lines} for axes in figure.axes]
    to_flow, to_data = curves
    slopes = {name: np.log(errors[-1] / errors[-3]) / np.log(255 / 127) for name, errors in to_flow.items()}
    assert slopes["DDIM = Euler"] == pytest.approx(-1, abs=0.3)
    for name in ("Heun", "DPMSolver (2M)"):
        assert slopes[name] == pytest.approx(-2, abs=0.4)
    assert slopes["UniPC (order 3)"] < -2.5
    (floor,) = (distances[0] for name, distances in to_data.items() if name.startswith("two sets of data"))
    assert len(to_data) == 7 and all(distances[-1] < 2 * floor for distances in to_data.values())
    with Image.open(tmp_path / "figure.png") as drawn, Image.open(DOCS / "images/diffusion_convergence.png") as shown:
        assert drawn.size == shown.size


@pytest.mark.slow
def test_the_figure_of_what_was_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row for each run, under the name that it has in the tables."""
    titles = []
    monkeypatch.setattr(Axes, "set_title", lambda axes, text, **_: titles.append(text.partition(":")[0]))
    (words,) = [words for words in FIGURES if words[0] == "learned"]
    small = ["--budget.num_images=2048", "--model.warmup=0", "--wandb.mode=disabled", f"--run.root={tmp_path}"]
    source = yaml.safe_load((ROOT / "sweeps/points.yaml").read_text())["parameters"]["data.source"]["value"]
    config = ROOT / "conf/experiment/points_ot_flow_matching.yaml"
    run = commands.fit([f"--config={config}", f"--data.source={source}", *small])
    monkeypatch.setattr(theory, "learned", partial(theory.learned, num_points=300, resolution=20))
    assert theory.main(["learned", str(run.directory), "--out", str(tmp_path / "figure.png")]) == 0
    assert titles == ["two_moons", "OT-FlowMatching", "density of the model"]
    with Image.open(tmp_path / "figure.png") as drawn, Image.open(ROOT / words[words.index("--out") + 1]) as shown:
        assert drawn.width == shown.width
