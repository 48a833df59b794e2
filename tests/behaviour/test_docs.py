"""The pages under docs: their pictures are there, and their commands do what they are said to do."""

import re
import shlex
from difflib import SequenceMatcher
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import yaml
from matplotlib.axes import Axes
from PIL import Image

from lit_gen.cli import commands
from lit_gen.core.noise import Noise
from lit_gen.experiment.parser import ExperimentCLI
from lit_gen.report import theory
from lit_gen.sweeps import load_sweep
from tests.conftest import ROOT

DOCS = ROOT / "docs"
PAGES = sorted(path.stem for path in DOCS.glob("*.md"))


def commands_of(page: str) -> list[list[str]]:
    """The words of every command line in the page's shell blocks."""
    blocks = re.findall(r"^```sh\n(.*?)^```", (DOCS / f"{page}.md").read_text(), re.MULTILINE | re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.replace("\\\n", " ").splitlines()]


EVERY_COMMAND = [(page, words) for page in PAGES for words in commands_of(page)]
IN_THE_CHECKOUT = [words for page, words in EVERY_COMMAND if page != "extending"]  # test_extending.py runs the others
SWEEPS = [yaml.safe_load(path.read_text())["name"] for path in (ROOT / "sweeps").glob("*.yaml")]
FIGURES = [words[3:] for _, words in EVERY_COMMAND if words[:3] == ["python", "-m", "lit_gen.report.theory"]]


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_lead_somewhere(page: str) -> None:
    text = (DOCS / f"{page}.md").read_text()
    targets = [target for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text) if "://" not in target]
    assert targets
    assert [target for target in targets if not (DOCS / target).is_file()] == []
    for anchored, anchor in re.findall(r"\]\(([^):]+\.md)#([^)]+)\)", text):
        headings = re.findall(r"^#+ (.*)$", (DOCS / anchored).read_text(), re.MULTILINE)
        assert anchor in [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]


@pytest.mark.parametrize("page", PAGES)
def test_every_picture_is_made_by_a_command_of_a_page(page: str) -> None:
    made = {
        words[words.index(option) + 1].removeprefix("../")
        for _, words in EVERY_COMMAND
        for option in ("--out", "--figure")
        if option in words
    }
    of_sweep = re.compile(
        rf"images/({'|'.join(SWEEPS)})(_(digits|digits_binary))?\.png"
    )  # the second where it has several data
    shown = re.findall(r"!\[[^\]]*\]\((images/[^)]+)\)", (DOCS / f"{page}.md").read_text())
    assert [image for image in shown if f"docs/{image}" not in made and not of_sweep.fullmatch(image)] == []


@pytest.mark.parametrize("words", [words for words in IN_THE_CHECKOUT if words[0] == "lit-gen"], ids=" ".join)
@pytest.mark.slow
def test_commands_name_what_there_is(words: list[str]) -> None:
    match words[1]:
        case "run" | "fit":
            ExperimentCLI([word.replace("conf/", f"{ROOT}/conf/") for word in words[2:]])
        case "sweep":
            patterns = [word for word in words[2:] if word.startswith("sweeps/")]
            assert load_sweep([path for pattern in patterns for path in sorted(ROOT.glob(pattern))]).trials
        case "leaderboard":
            roots = [w[w.index("--run.root") + 1] for w in IN_THE_CHECKOUT if "--run.root" in w]
            assert words[2] in [*(f"runs/sweeps/{sweep}" for sweep in SWEEPS), *roots]
        case "sample":
            name = words[2].removesuffix("-*").removeprefix("runs/")
            configs = dict.fromkeys(w[w.index("--config") + 1] for w in IN_THE_CHECKOUT if "--config" in w)
            alike = sorted(configs, key=lambda config: -SequenceMatcher(None, Path(config).stem, name).ratio())
            assert any(default_name(ROOT / config) == name for config in alike)
        case "reflow" | "evaluate":
            made = Path(words[2]).name.removesuffix("-*").replace("2-", "")
            config = next(c for c in (ROOT / "conf/experiment").glob("*.yaml") if default_name(c) == made)
            given = [word for word in words[3:] if word != "--distill"]
            ExperimentCLI([f"--config={config}", *given])
        case verb:
            pytest.fail(f"no check of lit-gen {verb}")


@cache
def default_name(config: Path) -> str:
    """The first part of the name of the run that an experiment makes."""
    objects = ExperimentCLI(["--config", str(config)]).objects()
    flow = "2-" if objects.reflow.teacher is not None else ""
    return re.sub(r"[^\w.=-]+", "_", f"{objects.data.name}_{flow}{objects.model.title.lower()}")


def differing(one: Path, other: Path) -> float:
    """The share of the pixels of two pictures of one size that differ by more than a tenth of the range.

    The same code gives the same picture; another version of matplotlib may draw the edges of letters otherwise.
    """
    pixels = [np.asarray(Image.open(path).convert("RGB")).astype(int) for path in (one, other)]
    assert pixels[0].shape == pixels[1].shape
    return float((np.abs(pixels[0] - pixels[1]).max(-1) > 25).mean())


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(words, marks=pytest.mark.slow if words[0] in ("trajectories", "convergence") else (), id=words[0])
        for words in FIGURES
        if words[0] != "learned"
    ],
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
def test_the_figure_of_what_was_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row for each run, under the name that it has in the tables."""
    titles = []
    monkeypatch.setattr(Axes, "set_title", lambda axes, text, **_: titles.append(text.partition(":")[0]))
    (words,) = [words for words in FIGURES if words[0] == "learned"]
    small = ["--budget.num_images=2048", "--model.warmup=0", "--wandb.mode=disabled", f"--run.root={tmp_path}"]
    source = yaml.safe_load((ROOT / "sweeps/points.yaml").read_text())["parameters"]["data.source"]["value"]
    config = ROOT / "conf/experiment/points_ot_flow_matching.yaml"
    run = commands.fit([f"--config={config}", f"--data.source={source}", *small])
    assert theory.main(["learned", str(run.directory), "--out", str(tmp_path / "figure.png")]) == 0
    assert titles == ["two_moons", "OT-FlowMatching", "density of the model"]
    with Image.open(tmp_path / "figure.png") as drawn, Image.open(ROOT / words[words.index("--out") + 1]) as shown:
        assert drawn.width == shown.width
