"""A run that began on two processes continues on one, and again on two, as if it had stayed on two."""

import os
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from lit_gen.cli import commands
from lit_gen.core.trainer_settings import TrainerSettings
from lit_gen.experiment import continuing
from lit_gen.experiment.identity import training_identity
from lit_gen.experiment.parser import ExperimentCLI
from lit_gen.families.clock import Division
from lit_gen.runs.directory import Run, RunSettings
from tests.conftest import arguments
from tests.interrupt import KILL_AT, CrashError
from tests.processes import in_two_processes
from tests.training.test_accumulation import curves

FAMILIES = {"RectifiedFlow": ["--model.stratified=true"], "WGAN": ["--model.critic_steps=2"]}
STEPS = 12
TWO = ["--trainer.devices=2", "--trainer.strategy=ddp"]


def training(model: str, root: Path, *more: str) -> list[str]:
    words = ["--trainer.log_every_n_steps=1", "--grid.num_samples=0", "--data.num_val=34", "--checkpoint.every=256"]
    words += ["--trainer.val_check_interval=4", "--trainer.callbacks=tests.interrupt.Interrupt"]
    return arguments(model, root / model, 64 * STEPS, *words, *FAMILIES[model], *more)


def fit(words: list[str], crash_after: int | None = None) -> Run | None:
    """Train; die in a micro-batch if told so."""
    os.environ[KILL_AT] = f"raise:{crash_after}" if crash_after else ""
    with suppress(CrashError):
        return commands.fit(words)
    return None


def whole_and_begin(rank: int, folder: Path) -> None:
    for model in FAMILIES:
        fit(training(model, folder / "whole", *TWO))
        fit(training(model, folder / "parts", *TWO), crash_after=5)


def end(rank: int, folder: Path) -> None:
    for model in FAMILIES:
        fit(training(model, folder / "parts", *TWO))


@pytest.mark.slow
def test_two_processes_then_one_then_two_have_the_curves_of_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    in_two_processes(whole_and_begin, tmp_path)
    for model in FAMILIES:
        (directory,) = (tmp_path / "parts" / model).glob("*/run.json")
        fit(training(model, tmp_path / "parts"), crash_after=9 if model == "WGAN" else 18)
        said = capsys.readouterr().out
        assert "on 1 process instead of 2, 2 micro-batches each: the same images and noise" in said
        assert "resuming after 256 images" in said
        assert torch.load(directory.parent / "checkpoints" / "last.ckpt", weights_only=True)["images_seen"] == 512
    in_two_processes(end, tmp_path)
    for model in FAMILIES:
        whole, parts = (Run(*(p.parent for p in (tmp_path / n / model).glob("*/run.json"))) for n in ("whole", "parts"))
        assert parts.finished and parts.metadata["images_seen"] == 64 * STEPS
        segments = [(s["images_seen"], s["processes"], s["same_noise"]) for s in parts.metadata["continued"]]
        assert segments == [(256, 1, True), (512, 2, True)]
        first, second = curves(whole), curves(parts)
        assert sum("train/loss" in row for row in first) == STEPS
        for row, same in zip(first, second, strict=True):
            assert row == pytest.approx(same, rel=1e-4, abs=1e-5)
        # the same command on the other number of processes finds the run
        assert fit(training(model, tmp_path / "parts")) == parts


class Manual:
    automatic_optimization = False


class Automatic:
    automatic_optimization = True


def began_on(processes: int, micro_batches: int, folder: Path) -> Run:
    run = Run(folder / f"run-{processes}-{micro_batches}")
    trainer = {"devices": processes, "num_nodes": 1, "accumulate_grad_batches": micro_batches}
    run.directory.mkdir(parents=True, exist_ok=True)
    run.create({}, identity="", recipe="", seed=0, training={"trainer": trainer}, data={"fingerprint": ""})
    return run


@pytest.mark.parametrize(
    ("began", "now", "model", "micro_batches", "kept"),
    [
        ((2, 1), 1, Automatic, 2, (2, 1)),
        ((2, 1), 1, Manual, 2, (2, 1)),
        ((8, 2), 4, Automatic, 4, (8, 2)),
        ((8, 2), 4, Manual, 4, (8, 1)),
        ((1, 2), 2, Automatic, 1, (1, 2)),
        ((1, 2), 2, Manual, 3, None),  # the numbers of its second micro-batch follow those of the first
        ((3, 1), 2, Automatic, 3, None),
        ((2, 3), 2, Automatic, 3, None),  # as it began
    ],
)
def test_shares_are_kept_if_they_divide(
    began: tuple[int, int], now: int, model: Any, micro_batches: int, kept: tuple[int, int] | None, tmp_path: Path
) -> None:
    settings = TrainerSettings(devices=now, accelerator="cpu", accumulate_grad_batches=3)
    found, division = continuing.keep_shares(began_on(*began, tmp_path), settings, model())
    assert (found.accumulate_grad_batches, division) == (micro_batches, kept)


def test_a_run_says_what_stays_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(continuing, "training_identity", lambda config, fingerprint: "id")
    for run, kept, today in (
        (began_on(3, 1, tmp_path), None, Division(2, 1)),
        (began_on(4, 1, tmp_path), Division(4, 1), Division(2, 2)),
    ):
        continuing.record(run, {}, kept, 640, 3, today)
    first, second = capsys.readouterr().out.splitlines()
    assert "on 2 processes instead of 3: the same images in the same order, but other noise" in first
    assert "on 2 processes instead of 3, 2 micro-batches each: the same images and noise" in second
    (segment,) = run.metadata["continued"]
    assert segment == {"identity": "id", "images_seen": 640, "processes": 2, "micro_batches": 2, "same_noise": True}


def test_only_an_unfinished_run_that_nobody_trains_is_continued(tmp_path: Path) -> None:
    one = ExperimentCLI(arguments("VAE", tmp_path, 64)).resolved()

    def on(**keys: int) -> dict[str, Any]:
        return one | {"trainer": one["trainer"] | keys}

    two = on(devices=2)
    find = partial(continuing.find_run, RunSettings(str(tmp_path)), "digits_vae")
    run = find(two, "data")
    facts = {"identity": training_identity(two, "data"), "recipe": "", "seed": 0, "data": {"fingerprint": "data"}}
    run.checkpoint.parent.mkdir(parents=True)
    run.create(two, **facts, training=continuing.training_config(two))
    assert find(one, "data") != run, "no checkpoint"
    run.checkpoint.touch()
    assert find(one, "data") == run
    assert find(one, "other data") != run
    assert find(one | {"seed_everything": 1}, "data") != run
    assert find(on(accumulate_grad_batches=2), "data") == run, "the same shares"
    assert find(on(accumulate_grad_batches=4), "data") != run
    with FileLock(tmp_path / f".{run.directory.name}.lock"):
        assert find(one, "data") != run, "another command trains it"
    run.update(status="finished")
    assert find(one, "data") != run, "a run of one process is another one"
    run.update(continued=[{"identity": training_identity(one, "data")}])
    assert find(one, "data") == run
