"""Options of a training: precision, clipping, warm-up, compilation, validation."""

import csv
import math
from pathlib import Path

import pytest
import torch

from lit_gen import commands
from lit_gen.errors import UserError
from tests.conftest import arguments


def rows(run: commands.Run) -> list[dict[str, str]]:
    with (run.directory / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_warmup_is_linear_in_images(tmp_path: Path) -> None:
    words = arguments("DDPM", tmp_path, 640, "--model.warmup=320", "--trainer.log_every_n_steps=1")
    rates = [float(row["train/lr"]) for row in rows(commands.fit(words)) if row.get("train/lr")]
    # logged after the step: the rate that the next step will have
    expected = [2e-4 * min(1, (step + 2) / 5) for step in range(len(rates))]
    assert rates == pytest.approx(expected, rel=1e-6)
    assert len(rates) >= 9


def test_clipping_and_the_norm_before_it(tmp_path: Path) -> None:
    """With SGD of rate 1 a step is the clipped gradient itself."""
    words = arguments("EDM", tmp_path, 64, "--model.optimizer=SGD", "--model.optimizer.lr=1.0")
    words += ["--trainer.log_every_n_steps=1", "--ema.decay=0"]
    weights = []
    for clip in ("0.01", "0.02"):
        run = commands.fit([*words, f"--trainer.gradient_clip_val={clip}", f"--run.name=clip{clip}"])
        state = torch.load(run.checkpoint, weights_only=True)["state_dict"]
        weights.append(torch.cat([value.flatten() for value in state.values()]).double())
        norm = [float(row["train/grad_norm"]) for row in rows(run) if row.get("train/grad_norm")]
        assert norm and norm[0] > 0.02, "the norm that is logged is the one before clipping"
    # w2 = w0 - 0.02 g / |g| and w1 = w0 - 0.01 g / |g|
    assert (weights[1] - weights[0]).norm().item() == pytest.approx(0.01, rel=1e-3)


def test_clipping_two_optimizers_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gradient clipping"):
        commands.fit(arguments("WGAN", tmp_path, 64, "--trainer.gradient_clip_val=1"))


@pytest.mark.parametrize("model", ["DDPM", "WGAN", "VAE"])
def test_bf16_trains_and_keeps_float32_weights(model: str, tmp_path: Path) -> None:
    run = commands.run(arguments(model, tmp_path, 640, "--trainer.precision=bf16-mixed"))
    checkpoint = torch.load(run.parents[2] / "checkpoints/last.ckpt", weights_only=True)
    assert {value.dtype for value in checkpoint["state_dict"].values() if value.is_floating_point()} == {torch.float32}
    full = commands.fit(arguments(model, tmp_path, 640))
    other = torch.load(full.checkpoint, weights_only=True)["state_dict"]
    assert any(not torch.equal(other[key], value) for key, value in checkpoint["state_dict"].items())


def test_validation_is_logged_against_images(tmp_path: Path) -> None:
    for model in ("RectifiedFlow", "VAE", "WGAN"):
        run = commands.fit(arguments(model, tmp_path, 64 * 23, "--data.num_val=90"))
        name = {"VAE": "val/bits_per_dim", "WGAN": "val/critic_gap"}.get(model, "val/loss")
        values = [(int(row["images"]), float(row[name])) for row in rows(run) if row.get(name)]
        assert values and values[0][0] == 64 * 21, "after the 21 batches of the epoch"
        assert all(math.isfinite(value) for _, value in values)


@pytest.mark.slow
def test_compiling_leaves_the_keys_of_the_checkpoint_alone(tmp_path: Path) -> None:
    plain = commands.fit(arguments("EDM", tmp_path, 64 * 12))
    compiled = commands.fit(arguments("EDM", tmp_path, 64 * 12, "--model.compile=true"))
    assert plain != compiled
    one, other = (torch.load(run.checkpoint, weights_only=True) for run in (plain, compiled))
    assert one["state_dict"].keys() == other["state_dict"].keys()
    assert one["ema"]["weights"].keys() == other["ema"]["weights"].keys()
    for key, value in one["state_dict"].items():
        torch.testing.assert_close(other["state_dict"][key], value, rtol=1e-2, atol=1e-3)
    moved = [
        key
        for key, value in other["ema"]["weights"].items()
        if not torch.equal(value, other["state_dict"]["network." + key])
    ]
    assert moved, "the average follows the compiled network, and lags behind it"
    result = commands.evaluate([str(compiled.directory), "--sampler=DDIM", "--sampler.steps=2"])
    assert result.is_file()
