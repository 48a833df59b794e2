"""The Python examples of README, API pages and notebook run as they stand, on a tiny run in the place of theirs."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_gen.cli import commands
from tests.conftest import ROOT, arguments

NAMED = "runs/digits_edm-1a2b3c4d5e"
SMALL = {
    "num_samples=1000": "num_samples=80",
    "sample(1000,": "sample(80,",
    "max_steps=20": "max_steps=2",
    "L.Trainer(": "L.Trainer(enable_progress_bar=False, ",
}
"""What makes an example fast: nothing else of it is changed."""


def examples(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of the name that the examples have."""
    folder = tmp_path_factory.mktemp("examples")
    run = commands.fit(arguments("EDM", folder / "runs", 64))
    run.directory.rename(folder / NAMED)
    return folder


def execute(codes: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    for code in codes:
        for long, short in SMALL.items():
            code = code.replace(long, short)
        exec(compile(code, "example", "exec"), names)
    return names


@pytest.mark.slow
def test_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = execute(examples("docs/api/index.md")[:3], folder, monkeypatch)
    assert names["images"].shape == (80, 1, 8, 8) and names["images"].dtype == torch.uint8
    assert (
        names["result"].path.is_relative_to(NAMED) and {"fd_digits", "vendi_digits"} == names["result"].metrics.keys()
    )
    assert len(names["table"]) == 2 and names["best"] == "EDM"
    assert names["theirs"].model == "Theirs (foreign)"
    execute(examples("README.md"), folder, monkeypatch)


def test_mathematics(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = execute([examples("docs/api/index.md")[3]], folder, monkeypatch)["points"]
    assert points.shape == (100, 1) and float(points.mean()) == pytest.approx(0.3, abs=0.2)


@pytest.mark.slow
def test_training(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = execute([examples("docs/api/index.md")[4]], folder, monkeypatch)
    assert names["model"].images_seen == 256 and names["images"].shape == (16, 1, 8, 8)


def test_every_example_is_executed() -> None:
    assert len(examples("docs/api/index.md")) == 5 and len(examples("README.md")) == 1
    others = [page for page in (ROOT / "docs/api").glob("*.md") if page.name != "index.md"]
    assert not [page.name for page in others if examples(str(page.relative_to(ROOT)))]


@pytest.mark.slow
def test_the_notebook(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    notebook = json.loads((ROOT / "docs/notebooks/first_steps.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in cells), "outputs are of one machine; clear them"
    names = execute(["".join(cell["source"]) for cell in cells], folder, monkeypatch)
    assert len(names["table"]) == 2 and names["counted"].evaluations == 35
    assert "mean 0.3" in capsys.readouterr().out
