"""A training that is killed and started again ends with the same bits as one that never was."""

import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing import ProcessExitedException

from lit_gen.cli import commands
from lit_gen.runs.directory import Run
from tests.conftest import arguments
from tests.interrupt import KILL_AT, CrashError
from tests.processes import in_one_process, lit_gen_in_two_processes

pytestmark = pytest.mark.slow
"""End-to-end runs; the gate runs them."""

NUM_BATCHES = 50  # digits have 22 batches of 64 in an epoch: this is two epochs and a part
EVERY = 7


def training(model: str, root: Path, *more: str) -> list[str]:
    return arguments(
        model,
        root,
        64 * NUM_BATCHES,
        f"--checkpoint.every={64 * EVERY}",
        "--data.flip=true",
        "--model.warmup=640" if model != "WGAN" else "--model.penalty=5",
        "--trainer.callbacks=tests.interrupt.Interrupt",
        "--grid.every=640",
        "--grid.num_samples=4",
        *more,
    )


def contents(root: Path) -> dict[str, object]:
    """Everything in the last checkpoint that decides what comes next, flat."""
    (path,) = root.rglob("checkpoints/last.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    keys = ("state_dict", "ema", "optimizer_states", "lr_schedulers", "images_seen", "batches_seen")
    flat: dict[str, object] = {}

    def walk(prefix: str, value: object) -> None:
        if isinstance(value, dict):
            for key, part in value.items():
                walk(f"{prefix}.{key}", part)
        elif isinstance(value, (list, tuple)):
            for key, part in enumerate(value):
                walk(f"{prefix}.{key}", part)
        else:
            flat[prefix] = value

    for key in keys:
        walk(key, checkpoint[key])
    return flat


def assert_equal_bits(one: dict[str, object], other: dict[str, object]) -> None:
    assert one.keys() == other.keys()
    differing = []
    for key, value in one.items():
        same = torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key]  # type: ignore[arg-type]
        if not same:
            differing.append(key)
    assert not differing


@pytest.mark.slow
@pytest.mark.parametrize(
    "model", [*(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("DDPM", "VAE")), "WGAN"]
)
def test_resumed_training_ends_with_the_same_bits(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands.fit(training(model, tmp_path / "whole"))
    # before the first checkpoint, in an epoch, just at and after the end of an epoch (22, 23), in a later epoch
    for batch in (3, 16, 22, 23, 49):
        monkeypatch.setenv(KILL_AT, f"raise:{batch}")
        with pytest.raises(CrashError):
            commands.fit(training(model, tmp_path / "parts"))
    monkeypatch.delenv(KILL_AT)
    commands.fit(training(model, tmp_path / "parts"))
    whole, parts = contents(tmp_path / "whole"), contents(tmp_path / "parts")
    assert whole["images_seen"] == 64 * NUM_BATCHES
    assert_equal_bits(whole, parts)


def fit(words: list[str], how: str) -> None:
    """Trains, and dies as `how` says."""
    os.environ[KILL_AT] = how
    commands.fit(words)


def fit_and_die_before_the_third_renaming(words: list[str]) -> None:
    replace, renamed = os.replace, []

    def replace_or_die(source: Any, target: Any) -> None:
        if str(target).endswith("last.ckpt"):
            renamed.append(target)
            if len(renamed) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    os.replace = replace_or_die  # type: ignore[assignment]
    commands.fit(words)


def test_a_kill_between_writing_a_checkpoint_and_renaming_it_spoils_nothing(tmp_path: Path) -> None:
    commands.fit(training("VAE", tmp_path / "whole"))
    words = training("VAE", tmp_path / "parts")
    assert in_one_process(fit_and_die_before_the_third_renaming, words) == -signal.SIGKILL
    (path,) = (tmp_path / "parts").glob("*/checkpoints/last.ckpt")
    (temporary,) = path.parent.glob(".last.*.tmp.ckpt")
    written = torch.load(temporary, weights_only=True)
    assert written["images_seen"] == 64 * 3 * EVERY, "the kill came after the writing"
    assert contents(tmp_path / "parts")["images_seen"] == 64 * 2 * EVERY
    commands.fit(words)
    assert not temporary.exists()
    assert_equal_bits(contents(tmp_path / "whole"), contents(tmp_path / "parts"))


def test_a_training_goes_on_with_the_threads_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads may sum in another order than one."""
    own = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        commands.fit(training("DDPM", tmp_path / "whole"))
        monkeypatch.setenv(KILL_AT, "raise:16")
        with pytest.raises(CrashError):
            commands.fit(training("DDPM", tmp_path / "parts"))
        torch.set_num_threads(2)
        monkeypatch.setenv(KILL_AT, "raise:30")
        with pytest.raises(CrashError):
            commands.fit(training("DDPM", tmp_path / "parts"))
        assert torch.get_num_threads() == 2, "what follows in this process has its own number again"
        monkeypatch.delenv(KILL_AT)
        run = commands.fit(training("DDPM", tmp_path / "parts"))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(own)
    assert torch.load(run.checkpoint, weights_only=True)["num_threads"] == 1
    assert "1 threads" in run.metadata["device"]
    assert_equal_bits(contents(tmp_path / "whole"), contents(tmp_path / "parts"))


def test_another_seed_gives_other_weights(tmp_path: Path) -> None:
    for seed in (0, 1):
        commands.fit(arguments("VAE", tmp_path / str(seed), 64, f"--seed_everything={seed}"))
    one, other = contents(tmp_path / "0"), contents(tmp_path / "1")
    assert any(
        isinstance(value, torch.Tensor) and not torch.equal(value, other[key])  # type: ignore[arg-type]
        for key, value in one.items()
    )


@pytest.mark.slow
@pytest.mark.exhaustive
def test_sigkill_then_resume_with_workers(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    commands.fit(training("DDPM", tmp_path / "whole"))
    for workers, batch in ((0, 16), (2, 30)):
        words = training("DDPM", tmp_path / "parts", f"--data.num_workers={workers}")
        assert in_one_process(fit, words, f"kill:{batch}") == -signal.SIGKILL
    commands.fit(training("DDPM", tmp_path / "parts", "--data.num_workers=2"))
    assert "resuming after" in capfd.readouterr().out
    assert_equal_bits(contents(tmp_path / "whole"), contents(tmp_path / "parts"))


@pytest.mark.slow
def test_sigkill_of_two_processes_then_resume_with_workers(tmp_path: Path) -> None:
    two = ["--trainer.devices=2", "--trainer.strategy=ddp"]
    done = lit_gen_in_two_processes(tmp_path, "fit", *training("WGAN", tmp_path / "whole", *two))
    assert done.returncode == 0, done.stderr
    for workers, batch in ((0, 16), (2, 30)):
        words = training("WGAN", tmp_path / "parts", *two, f"--data.num_workers={workers}")
        with pytest.raises(ProcessExitedException) as killed:
            lit_gen_in_two_processes(tmp_path, "fit", *words, **{KILL_AT: f"kill:{batch}"})
        assert killed.value.signal_name == "SIGKILL"
    words = training("WGAN", tmp_path / "parts", *two, "--data.num_workers=2")
    done = lit_gen_in_two_processes(tmp_path, "fit", *words)
    assert done.returncode == 0, done.stderr
    assert "resuming after" in done.stdout
    assert_equal_bits(contents(tmp_path / "whole"), contents(tmp_path / "parts"))


@pytest.mark.slow
def test_ctrl_c_in_two_processes_saves_after_one_batch_of_all(tmp_path: Path, lit_gen) -> None:
    """In those that torchrun starts, and in those that Lightning starts from the first."""
    more = ["--trainer.devices=2", "--trainer.strategy=ddp", "--checkpoint.every=0"]
    done = lit_gen_in_two_processes(tmp_path, "fit", *training("DDPM", tmp_path / "whole", *more))
    assert done.returncode == 0, done.stderr
    words = training("DDPM", tmp_path / "parts", *more)
    by_torchrun = partial(lit_gen_in_two_processes, tmp_path)
    signals = [
        (by_torchrun, "interrupt:13", 20),
        (by_torchrun, "terminate:22", 30),
        (lit_gen, "interrupt-second:31", 40),
    ]
    for start, how, stopped in signals:
        done = start("fit", *words, **{KILL_AT: how})
        assert done.returncode == 130, done.stderr
        assert "run the same command to resume" in done.stderr and "Traceback" not in done.stderr
        assert contents(tmp_path / "parts")["images_seen"] == 64 * stopped
    done = lit_gen_in_two_processes(tmp_path, "fit", *words)
    assert done.returncode == 0, done.stderr
    assert_equal_bits(contents(tmp_path / "whole"), contents(tmp_path / "parts"))


def short(root: Path) -> list[str]:
    """Six batches, with a checkpoint after every second."""
    more = ("--checkpoint.every=128", "--grid.num_samples=0", "--trainer.callbacks=tests.interrupt.Interrupt")
    return arguments("VAE", root, 64 * 6, *more)


def test_the_cost_of_a_training_survives_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """run.json is brought up to date with every checkpoint, so a kill forgets no more than the time after the last."""
    noted: list[float] = []
    update = Run.update

    def watched(self: Run, **facts: object) -> None:
        noted.extend([facts["training_seconds"]] if "training_seconds" in facts else [])  # type: ignore[list-item]
        update(self, **facts)

    monkeypatch.setattr(Run, "update", watched)
    monkeypatch.setenv(KILL_AT, "raise:5")
    with pytest.raises(CrashError):
        commands.fit(short(tmp_path))
    assert len(noted) == 3, "two checkpoints, and the end that a kill would not have come to"
    assert 0 < noted[0] < noted[1] < noted[2]
    monkeypatch.delenv(KILL_AT)
    run = commands.fit(short(tmp_path))
    assert noted == sorted(noted) and run.metadata["training_seconds"] == noted[-1]
