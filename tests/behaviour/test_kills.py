"""A training killed while it writes ends, once it is resumed, with the files and rows of one that never was."""

import csv
import os
import signal
import sys
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from torch.multiprocessing import ProcessExitedException

from lit_gen.cli.main import main
from lit_gen.runs.directory import Run
from tests.conftest import arguments
from tests.interrupt import KILL_AT
from tests.processes import in_one_process, lit_gen_in_two_processes

pytestmark = pytest.mark.slow
"""End-to-end runs; the gate runs them."""

CLOCKS = ("train/images_per_second",)
Moment = tuple[str, int, str]
"""At the n-th file of a name, before or after it gets that name; or, for `row`, with half of a row written."""


def words_of(model: str, root: Path, *more: str) -> list[str]:
    """Six batches: a grid and a checkpoint after every second one, a row after each, validation after every second."""
    return arguments(
        model,
        root,
        64 * 6,
        "--checkpoint.every=128",
        "--grid.every=128",
        "--grid.num_samples=4",
        "--data.num_val=64",
        "--trainer.val_check_interval=2",
        "--trainer.log_every_n_steps=1",
        *more,
    )


def fit(words: list[str], moment: Moment | None = None, number: signal.Signals = signal.SIGKILL) -> None:
    """Trains, and sends itself a signal at a moment."""
    if moment is not None:
        name, count, when = moment
        strike = _striking(count, number)
        if name == "row":
            os.write = _torn(strike, os.write)
        else:
            os.replace = _renaming(name, when, strike, os.replace)
    sys.exit(main(["fit", *words]))


def _striking(count: int, number: signal.Signals) -> Callable[[], None]:
    left = [count]

    def strike() -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), number)

    return strike


def _torn(strike: Callable[[], None], write: Callable[[int, bytes], int]) -> Any:
    def torn(descriptor: int, data: bytes) -> int:
        half = write(descriptor, data[: len(data) // 2])
        strike()
        return half + write(descriptor, data[len(data) // 2 :])

    return torn


def _renaming(name: str, when: str, strike: Callable[[], None], replace: Callable[..., None]) -> Any:
    def renaming(source: Any, target: Any, **more: Any) -> None:
        if when == "after":
            replace(source, target, **more)
        if fnmatch(Path(target).name, name):
            strike()
        if when == "before":
            replace(source, target, **more)

    return renaming


def the_run(root: Path) -> Run:
    (path,) = root.glob("*/run.json")
    return Run(path.parent)


def left_by(run: Run) -> tuple[dict[str, bytes], list[dict[str, str]], list[str]]:
    """Pictures with their content, rows but for clocks, and the names of checkpoints."""
    with (run.directory / "metrics.csv").open(newline="") as file:
        rows = [{key: value for key, value in row.items() if key not in CLOCKS} for row in csv.DictReader(file)]
    pictures = {path.name: path.read_bytes() for path in run.samples.iterdir()}
    return pictures, rows, sorted(path.name for path in run.checkpoint.parent.rglob("*"))


KILLS: dict[str, list[Moment]] = {
    "VAE": [
        ("reconstructions-*.png", 1, "before"),  # the first grid, in the middle of its pictures
        ("last.ckpt", 1, "before"),
        ("images-*.png", 1, "after"),  # before what is logged of it
        ("last.ckpt", 1, "after"),
        ("images-000000256.png", 1, "before"),  # at the step of the next checkpoint
        ("row", 3, ""),
        ("images-000000384.png", 1, "before"),  # the last grid, at the end of the training
        ("last.ckpt", 1, "after"),  # the last checkpoint, before the run is said to be finished
    ],
    "WGAN": [
        ("images-000000128.png", 1, "after"),
        ("row", 4, ""),
        ("images-000000256.png", 1, "after"),
        ("images-000000384.png", 1, "after"),
    ],
    "GAN": [("images-000000256.png", 1, "before"), ("images-000000384.png", 1, "after")],
    "VQGAN": [("images-000000256.png", 1, "after"), ("last.ckpt", 2, "before")],
}


@pytest.mark.parametrize(
    "model", [pytest.param(model, marks=[] if model == "WGAN" else pytest.mark.exhaustive) for model in KILLS]
)
def test_a_kill_while_it_writes_loses_no_picture_and_no_row(model: str, tmp_path: Path) -> None:
    assert in_one_process(fit, words_of(model, tmp_path / "whole")) == 0
    whole = left_by(the_run(tmp_path / "whole"))
    assert {f"images-{images:09d}.png" for images in (128, 256, 384)} <= whole[0].keys()
    validated = [int(row["images"]) for row in whole[1] if any(row[key] for key in row if key.startswith("val/"))]
    assert validated == [128, 256, 384]
    words = words_of(model, tmp_path / "parts")
    for moment in KILLS[model]:
        assert in_one_process(fit, words, moment) == -signal.SIGKILL, moment
    assert in_one_process(fit, words) == 0
    run = the_run(tmp_path / "parts")
    pictures, rows, checkpoints = left_by(run)
    assert rows == whole[1]
    assert pictures == whole[0] and checkpoints == whole[2]
    assert run.finished and not list(run.directory.rglob("*.tmp*"))


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_while_a_grid_is_drawn_saves_its_step(number: signal.Signals, tmp_path: Path) -> None:
    """At a step with neither a checkpoint nor the end of the training: the grid is drawn, and then the step saved."""
    assert in_one_process(fit, words_of("VAE", tmp_path / "whole", "--checkpoint.every=0")) == 0
    words = words_of("VAE", tmp_path / "parts", "--checkpoint.every=0")
    assert in_one_process(fit, words, ("reconstructions-*.png", 1, "before"), number) == 130
    run = the_run(tmp_path / "parts")
    assert left_by(run)[2] == ["last.ckpt"] and [int(row["images"]) for row in left_by(run)[1]][-1] == 128
    assert in_one_process(fit, words, ("images-*.png", 2, "before"), number) == 130  # the last grid
    assert in_one_process(fit, words) == 0
    assert left_by(the_run(tmp_path / "parts")) == left_by(the_run(tmp_path / "whole"))


@pytest.mark.slow
@pytest.mark.parametrize("start", ["alike", "by Lightning"])
def test_one_of_two_processes_killed_ends_the_other_in_a_line(start: str, tmp_path: Path, lit_gen) -> None:
    """As torchrun starts them, and as Lightning starts the second from the first."""
    more = ("--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.callbacks=tests.interrupt.Interrupt")
    words = words_of("VAE", tmp_path / "runs", *more)
    moments = (("second", 0, 3), ("first", 1, 5)) if start == "alike" else (("second", 0, 5),)
    for killed, other, images in moments:
        how = {KILL_AT: f"kill-{killed}:{images}"}
        if start == "alike":
            with pytest.raises(ProcessExitedException):
                lit_gen_in_two_processes(tmp_path, "fit", *words, **how)
            code, said = ((tmp_path / f"process-{other}.{what}").read_text() for what in ("code", "err"))
            assert int(code) == 1, said
        else:
            done = lit_gen("fit", *words, **how)
            code, said = str(done.returncode), done.stderr
            assert int(code) == 1, said
        (line,) = (line for line in said.splitlines() if line != "stopping after this batch; its checkpoint is saved")
        assert line.startswith(f"lit-gen: error: process {1 - other} of 2 has ended")
        assert line.endswith(f"process {other} stops; run the same command to resume from the last checkpoint")
    done = lit_gen_in_two_processes(tmp_path, "fit", *words)
    assert done.returncode == 0 and "resuming after 256 images" in done.stdout, done.stderr
