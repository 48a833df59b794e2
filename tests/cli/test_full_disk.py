"""On a full disk each command ends with one line and leaves nothing half written."""

import os
import sys
from pathlib import Path

import pytest

from lit_gen.cli import commands
from lit_gen.cli.main import main
from lit_gen.runs.directory import Run
from tests.cli.full_disk import files_of_at_most
from tests.conftest import arguments

pytestmark = pytest.mark.slow
"""End-to-end runs; the gate runs them."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with averages of two widths, and an evaluation."""
    words = arguments("VAE", tmp_path_factory.mktemp("runs"), 64 * 2, "--ema.stds=[0.05,0.1]", "--ema.every=64")
    return Run(commands.run(words).parents[2])


def failed(words: list[str], limit: int, capsys: pytest.CaptureFixture[str]) -> str:
    """What a command says that finds each file limited to so many bytes."""
    capsys.readouterr()
    with files_of_at_most(limit):
        assert main(words) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "File too large; raise the limit" in said, said
    return said


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}


COMMANDS = {
    "evaluate": (["evaluate", "RUN", "--evaluation.seed=1"], 1000),
    "reference": (["evaluate", "RUN", "--evaluation.split=test"], 4000),
    "sample": (["sample", "RUN", "-n=64", "--out=OUT/new/x.png"], 1000),
    "archive": (["sample", "RUN", "-n=64", "--out=OUT/new/x.npz"], 1000),
    "folder": (["sample", "RUN", "-n=4", "--out=OUT/new"], 50),
    "ema": (["ema", "RUN", "--std=0.08"], 1000),
    "leaderboard": (["leaderboard", "ROOT", "--where=protocol.split=train", "--figure=OUT/new/x.png"], 1000),
    "report": (["report", "ROOT", "--out=OUT/new/x.html"], 1000),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_says_it_in_a_line(
    command: str, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words, limit = COMMANDS[command]
    places = {"RUN": run.directory, "ROOT": run.directory.parent, "OUT": tmp_path}
    for name, place in places.items():
        words = [word.replace(name, str(place)) for word in words]
    before = files(run.directory.parent)
    failed(words, limit, capsys)
    left = {path for path in files(run.directory.parent).items() - before.items() if "-floor-" not in str(path[0])}
    assert not left and before.items() <= files(run.directory.parent).items() and not list(tmp_path.iterdir())
    assert main(words) == 0


def test_a_training_keeps_its_last_checkpoint_or_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = arguments("VAE", tmp_path / "runs", 64 * 2, "--checkpoint.every=64", "--grid.num_samples=4")
    assert "run.json: cannot be written" in failed(["fit", *words], 600, capsys)
    assert not [path for path in (tmp_path / "runs").iterdir() if path.suffix != ".lock"]
    assert "last.ckpt: cannot be written" in failed(["fit", *words], 20_000, capsys)
    (directory,) = (path for path in (tmp_path / "runs").iterdir() if path.is_dir())
    assert {path.name for path in directory.iterdir()} == {"config.yaml", "run.json"}
    assert main(["fit", *words]) == 0
    assert Run(directory).finished and not list(directory.rglob("*.tmp*"))
    longer = arguments("VAE", tmp_path / "runs", 64 * 3, "--grid.num_samples=4", "--run.name=x", "--grid.every=64")
    assert "000000064.png: cannot be written" in failed(["fit", *longer], 4000, capsys)


def test_output_that_cannot_be_printed(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main([]) == 2
    assert capfd.readouterr().err == (
        "lit-gen: error: output: No space left on device; free some space and run the same command again\n"
    )
