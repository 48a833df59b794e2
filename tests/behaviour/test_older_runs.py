"""Runs that an older version made, one of each family, are evaluated, sampled, resumed and reported as they were.

`golden/runs.tar.xz` holds, by family, a run that was stopped after six of its ten steps, with its result, four samples
of seed 3, and `golden.json`: the metrics after six steps and after ten, and the curves of the ten steps.
"""

import csv
import io
import json
import shutil
import tarfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_gen.cli import commands
from lit_gen.cli.main import main
from lit_gen.runs.directory import Run
from tests.conftest import TINY

ARCHIVE = Path(__file__).parent / "golden" / "runs.tar.xz"
BY_DEFAULT = ("VAE",)
RESUMED = ("VAE", "EDM", "Glow", "TokenPrior", "WGAN")
"""The gate resumes these; the exhaustive tests resume all."""
RTOL = 1e-3
"""Another processor rounds otherwise, and ten steps of training carry it on."""


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("older")
    with tarfile.open(ARCHIVE) as file:
        file.extractall(folder, filter="data")
    return folder


NEWER = {"KLAutoencoder", "MeanFlow", "Shortcut", "ConsistencyTraining"}
"""Families that the older version did not have."""
NAMES = sorted({*TINY, "Reflow"} - NEWER)


def marks(name: str, in_gate: Collection[str]) -> list[pytest.MarkDecorator]:
    """Return the marks of a family's test: neither by default, slow in the gate, else exhaustive as well."""
    further = [] if name in in_gate else [pytest.mark.exhaustive]
    return [] if name in BY_DEFAULT else [pytest.mark.slow, *further]


@pytest.fixture
def older(request: pytest.FixtureRequest, archive: Path, tmp_path: Path) -> tuple[Run, dict[str, Any]]:
    """A copy of the run of a family, and its golden numbers."""
    shutil.copytree(archive / request.param, tmp_path, dirs_exist_ok=True)
    (path,) = tmp_path.glob("*/run.json")
    return Run(path.parent), json.loads((tmp_path / "golden.json").read_text())


def metrics(path: Path, known: dict[str, float]) -> Any:
    """Return the scores that the older version knew."""
    scores = json.loads(path.read_text())["metrics"]
    return pytest.approx({name: scores[name] for name in known}, rel=RTOL, abs=1e-6)


def curves(text: str) -> dict[tuple[str, str], float]:
    """Return the numbers in a metrics.csv by images and column, but for the speed."""
    rows = csv.DictReader(io.StringIO(text))
    numbers = (((row["images"], name), value) for row in rows for name, value in row.items())
    return {key: float(value) for key, value in numbers if value and "per_second" not in key[1]}


@pytest.mark.parametrize("older", [pytest.param(name, marks=marks(name, NAMES)) for name in NAMES], indirect=True)
def test_its_result_is_found_and_its_samples_are_the_same(older: tuple[Run, dict[str, Any]], tmp_path: Path) -> None:
    run, golden = older
    (old,) = run.evaluations.glob("*/result.json")
    found = commands.evaluate([str(run.directory)])
    assert golden["before"] == metrics(found, golden["before"])
    assert (found == old) == (run.metadata["training"]["model"]["init_args"].get("class_conditional") is not True), (
        "of unequal classes others are drawn now, and the protocol says so"
    )
    commands.sample([str(run.directory), "-n", "4", "--seed", "3", "--out", str(tmp_path / "four.npz")])
    with np.load(run.directory / "four.npz") as old_samples, np.load(tmp_path / "four.npz") as samples:
        difference = np.abs(old_samples["images"].astype(float) - samples["images"])
    assert np.mean(difference > 1) < 0.02, "but for pixels that round to the next value"


@pytest.mark.parametrize(
    "older",
    [pytest.param(name, marks=marks(name, RESUMED)) for name in NAMES if name != "Reflow"],
    indirect=True,
)
def test_it_is_resumed_to_the_same_end(older: tuple[Run, dict[str, Any]]) -> None:
    run, golden = older
    words = [f"--config={run.config}", f"--run.root={run.directory.parent}"]
    assert commands.fit(words).directory == run.directory
    new, old = curves((run.directory / "metrics.csv").read_text()), curves(golden["losses"])
    assert new.keys() == old.keys()
    for key, value in old.items():
        assert new[key] == pytest.approx(value, rel=RTOL, abs=1e-5), key
    assert golden["after"] == metrics(commands.evaluate([str(run.directory)]), golden["after"])


@pytest.mark.slow
def test_all_stand_on_a_leaderboard_and_in_a_report(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same = ["--where", "protocol.data=digits", "--where", "protocol.drawn_classes=reference"]
    families = ("EDM", "Glow", "PixelCNN", "VQVAE + TokenPrior", "2-RectifiedFlow", "WGAN")
    assert main(["leaderboard", str(archive), *same]) == 0
    board = capsys.readouterr().out
    for family in families:
        assert family in board, board
    for folder in ("EDM", "Glow", "TokenPrior", "Reflow", "WGAN"):  # a page takes a second for the curves of each run
        shutil.copytree(archive / folder, tmp_path / "some" / folder)
    assert main(["report", str(tmp_path / "some"), *same, "--out", str(tmp_path / "report.html")]) == 0
    assert "2-RectifiedFlow" in (tmp_path / "report.html").read_text()
