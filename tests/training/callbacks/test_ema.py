"""The averages of the weights against their closed forms, and their snapshots across kills."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lit_gen.cli import commands
from lit_gen.core.errors import UserError
from lit_gen.runs.directory import Run
from lit_gen.training.callbacks import EMA, EMASettings
from lit_gen.training.callbacks.ema import load_weights, named_weights
from tests.behaviour.test_resume import assert_equal_bits, contents
from tests.conftest import arguments
from tests.interrupt import KILL_AT, CrashError

BATCHES = [3, 5, 2, 7, 4]
TRAINER: Any = SimpleNamespace(is_global_zero=True)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3).double())
        self.register_buffer("mean", torch.randn(2).double())
        self.register_buffer("count", torch.tensor(0))


def stand_in(network: nn.Module) -> Any:
    """What an EMA needs of a model."""
    return SimpleNamespace(generator=network, images_seen=0, whole_step=True)


class Walk:
    """A random walk of weights under an EMA, in batches of uneven size."""

    def __init__(self, ema: EMA) -> None:
        torch.manual_seed(0)
        self.ema = ema
        self.module = stand_in(Network())
        self.times = [0]
        self.history = [self.weights()]
        ema.on_fit_start(TRAINER, self.module)

    def weights(self) -> dict[str, Tensor]:
        return {name: weight.detach().clone() for name, weight in named_weights(self.module.generator).items()}

    def go(self, steps: int) -> "Walk":
        for _ in range(steps):
            step = len(self.times) - 1
            with torch.no_grad():
                self.module.generator.weight.add_(torch.randn(3).double())
                self.module.generator.mean.add_(torch.randn(2).double())
                self.module.generator.count.fill_(step + 1)
            self.module.images_seen += BATCHES[step % len(BATCHES)]
            self.ema.on_train_batch_end(TRAINER, self.module, None, None, step)
            self.times.append(self.module.images_seen)
            self.history.append(self.weights())
        return self

    def expected(self, decays: list[float]) -> dict[str, Tensor]:
        average = self.history[0]
        for beta, weights in zip(decays, self.history[1:], strict=True):
            average = {name: beta * average[name] + (1 - beta) * weights[name] for name in ("weight", "mean")}
        return average

    def saved(self) -> dict[str, Any]:
        checkpoint: dict[str, Any] = {}
        self.ema.on_save_checkpoint(TRAINER, self.module, checkpoint)
        return checkpoint["ema"]


def assert_is(average: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(average[name], value, rtol=1e-12, atol=1e-12)


def test_average_is_the_closed_form() -> None:
    walk = Walk(EMA(EMASettings(0.7))).go(40)
    expected = walk.expected([min(0.7, (1 + n) / (10 + n)) for n in range(40)])
    with walk.ema.averaged(walk.module.generator):
        assert_is(walk.weights(), expected)
        assert walk.module.generator.count == 40
    assert walk.saved().keys() == {"num_updates", "weights"}


def test_half_life_counts_images_and_ramps_up() -> None:
    walk = Walk(EMA(EMASettings(halflife=30, ramp=0.25))).go(60)
    times = walk.times
    decays = [0.5 ** ((now - then) / min(30, 0.25 * now)) for then, now in zip(times[:-1], times[1:], strict=True)]
    assert 0.25 * times[10] < 30 < 0.25 * times[-1]
    assert_is(walk.saved()["weights"], walk.expected(decays))


def test_power_function_averages_stand_beside_it() -> None:
    walk = Walk(EMA(EMASettings(0.7, stds=(0.05, 0.1)))).go(40)
    saved = walk.saved()
    assert_is(saved["weights"], walk.expected([min(0.7, (1 + n) / (10 + n)) for n in range(40)]))
    for std, gamma in ((0.05, 16.972198602), (0.1, 6.937203938)):
        times = torch.tensor(walk.times).double()
        shares = ((times / times[-1]) ** (gamma + 1)).diff()
        assert shares.sum() == pytest.approx(1)
        for name in ("weight", "mean"):
            weights = torch.stack([weights[name] for weights in walk.history[1:]])
            torch.testing.assert_close(saved["power"][std][name], shares @ weights, rtol=1e-9, atol=1e-9)
        assert saved["power"][std]["count"] == 40


def test_weights_come_back_after_the_block() -> None:
    walk = Walk(EMA(EMASettings(0.9))).go(5)
    with walk.ema.averaged(walk.module.generator):
        assert not torch.equal(walk.module.generator.weight, walk.history[-1]["weight"])
    for name, weight in walk.weights().items():
        assert torch.equal(weight, walk.history[-1][name])


@pytest.mark.parametrize("options", [{"halflife": 30}, {"stds": (0.05, 0.2)}])
def test_it_goes_on_from_a_checkpoint(options: dict[str, Any]) -> None:
    whole, parts = Walk(EMA(EMASettings(**options))).go(30), Walk(EMA(EMASettings(**options))).go(11)
    resumed = EMA(EMASettings(**options))
    resumed.on_load_checkpoint(TRAINER, parts.module, {"ema": parts.saved()})
    resumed.on_fit_start(TRAINER, parts.module)
    parts.ema = resumed
    for step in range(11, 30):
        load_weights(parts.module.generator, whole.history[step + 1])
        parts.module.images_seen = whole.times[step + 1]
        resumed.on_train_batch_end(TRAINER, parts.module, None, None, step)
    for key, value in _flat(whole.saved()).items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(_flat(parts.saved())[key])), key


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {name: leaf for key, part in value.items() for name, leaf in _flat(part, f"{prefix}.{key}").items()}


def test_half_precision_weights_are_averaged_in_single() -> None:
    ema = EMA(EMASettings(0.999, stds=(0.1,)))
    module = stand_in(nn.Linear(4, 4).bfloat16())
    ema.on_fit_start(TRAINER, module)
    module.images_seen = 64
    ema.on_train_batch_end(TRAINER, module, None, None, 0)
    checkpoint: dict[str, Any] = {}
    ema.on_save_checkpoint(TRAINER, module, checkpoint)
    for average in (checkpoint["ema"]["weights"], checkpoint["ema"]["power"][0.1]):
        assert {weight.dtype for weight in average.values()} == {torch.float32}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_snapshots_have_the_type_that_was_asked_for(dtype: Any, tmp_path: Path) -> None:
    walk = Walk(EMA(EMASettings(stds=(0.1,), every=40, snapshot_dtype=dtype), tmp_path))
    walk.go(30)
    found = {path.name: load_file(path) for path in tmp_path.iterdir()}
    after = [now for then, now in zip(walk.times[:-1], walk.times[1:], strict=True) if now // 40 > then // 40]
    assert found.keys() == {f"{images:09d}-0.1.safetensors" for images in after} and len(after) == 3
    walk.ema.on_fit_end(TRAINER, walk.module)
    last = load_file(tmp_path / f"{walk.times[-1]:09d}-0.1.safetensors")
    assert last["weight"].dtype == getattr(torch, dtype) and last["count"] == 30
    torch.testing.assert_close(
        last["weight"], walk.saved()["power"][0.1]["weight"].to(last["weight"]), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize(
    "options",
    [{"decay": 1}, {"halflife": 0}, {"ramp": 0}, {"stds": (0.1, 0.3)}, {"stds": (0.1, 0.1)}, {"every": 0}],
)
def test_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"^ema.{list(options)[0]}: "):
        EMASettings(**options)


@pytest.mark.slow
def test_kills_leave_no_snapshot_out_and_none_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def words(folder: str) -> list[str]:
        return arguments(
            "EDM",
            tmp_path / folder,
            64 * 12,
            "--ema.stds=[0.05,0.1]",
            "--ema.every=150",  # after batches 3, 5, 8, 10 and, the end, 12
            "--checkpoint.every=256",  # after batches 4, 8, 12
            "--grid.num_samples=0",
            "--trainer.callbacks=tests.interrupt.Interrupt",
        )

    whole = commands.fit(words("whole"))
    # after a snapshot that no checkpoint knows of, and after one that a checkpoint was saved with
    for batch in (6, 9):
        monkeypatch.setenv(KILL_AT, f"raise:{batch}")
        with pytest.raises(CrashError):
            commands.fit(words("parts"))
    monkeypatch.delenv(KILL_AT)
    parts = commands.fit(words("parts"))
    assert_equal_bits(contents(tmp_path / "whole"), contents(tmp_path / "parts"))
    assert _snapshots(parts) == _snapshots(whole)
    assert sorted(_snapshots(whole)) == [
        f"{64 * batch:09d}-{std}.safetensors" for batch in (3, 5, 8, 10, 12) for std in (0.05, 0.1)
    ]
    # killed between its last checkpoint and its last snapshot
    (parts.snapshots / f"{64 * 12:09d}-0.05.safetensors").unlink()
    parts.update(status="training")
    commands.fit(words("parts"))
    assert _snapshots(parts) == _snapshots(whole)


def _snapshots(run: Run) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.snapshots.iterdir()}
