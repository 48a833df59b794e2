"""Options of a training: precision, clipping, warm-up, compilation, validation."""

import csv
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lit_gen.cli import commands
from lit_gen.cli.main import main
from lit_gen.core.errors import UserError
from lit_gen.experiment.parser import ExperimentCLI
from lit_gen.training.callbacks import EMA, EMASettings
from tests.conftest import ROOT, arguments

pytestmark = pytest.mark.slow
"""End-to-end runs; the gate runs them."""


def others(*models: str) -> list[Any]:
    """Return models for the exhaustive tests alone: they resemble the first of their list."""
    return [pytest.param(model, marks=pytest.mark.exhaustive) for model in models]


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


CLIPPED = (
    "gradient_clip_val=0.5",
    "trainer.gradient_clip_val: 0.5 cannot clip the gradients of two networks; remove the key and set "
    "--model.gradient_clip 0.5",
)
SCALED = "precision=16-mixed", "trainer.precision: 16-mixed cannot scale the losses of two networks; use bf16-mixed"
BY_NUMBER = "precision=16", "trainer.precision: 16 cannot scale the losses of two networks; use bf16-mixed"
BY_PLUGIN = (
    "plugins=MixedPrecision --trainer.plugins.precision=16-mixed --trainer.plugins.device=cpu",
    "trainer.plugins: MixedPrecision cannot scale the losses of two networks; remove the plugin and use "
    "trainer.precision bf16-mixed",
)


@pytest.mark.parametrize(
    ("family", "words", "message"),
    [
        *((family, *case) for case in (CLIPPED, SCALED) for family in ("GAN", "WGAN", "VQGAN")),
        ("WGAN", *BY_NUMBER),
        ("WGAN", *BY_PLUGIN),
    ],
)
def test_what_two_networks_are_not_trained_with_is_refused_in_one_line(
    family: str, words: str, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *arguments(family, tmp_path, 64, *f"--trainer.{words}".split())]) == 2
    assert capfd.readouterr().err == f"lit-gen: error: {message}\n"
    assert not list(tmp_path.iterdir())


def test_two_networks_train_with_clipping_turned_off(tmp_path: Path) -> None:
    words = "--trainer.gradient_clip_val=0", "--trainer.precision=32"
    assert commands.fit(arguments("WGAN", tmp_path, 64, *words)).finished


@pytest.mark.parametrize("model", ["DDPM", "WGAN", *others("VAE", "Glow", "PixelCNN")])
def test_bf16_trains_and_keeps_float32_weights(model: str, tmp_path: Path) -> None:
    run = commands.run(arguments(model, tmp_path, 640, "--trainer.precision=bf16-mixed"))
    checkpoint = torch.load(run.parents[2] / "checkpoints/last.ckpt", weights_only=True)
    assert {value.dtype for value in checkpoint["state_dict"].values() if value.is_floating_point()} == {torch.float32}
    full = commands.fit(arguments(model, tmp_path, 640))
    other = torch.load(full.checkpoint, weights_only=True)["state_dict"]
    assert any(not torch.equal(other[key], value) for key, value in checkpoint["state_dict"].items())


@pytest.mark.parametrize("model", ["RectifiedFlow", "WGAN", *others("EDM", "VAE")])
def test_bf16_true_trains_draws_and_scores(model: str, tmp_path: Path) -> None:
    words = arguments(model, tmp_path, 640, "--trainer.precision=bf16-true", "--data.num_val=90", "--grid.every=320")
    words += ["--sampler=DDIM", "--sampler.steps=3"] if model in ("RectifiedFlow", "EDM") else []
    run = commands.run(words).parents[2]
    checkpoint = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    state, average = checkpoint["state_dict"], checkpoint["ema"]["weights"]
    assert {value.dtype for value in state.values() if value.is_floating_point()} == {torch.bfloat16}
    assert {value.dtype for value in average.values() if value.is_floating_point()} == {torch.float32}
    images = [path.name for path in (run / "samples").iterdir()]
    assert "images-000000640.png" in images and "images-000000320.png" in images


@pytest.mark.parametrize("model", ["Glow", "PixelCNN", "PointFlow", "VQVAE", "VQGAN"])
def test_families_that_need_float32_weights_say_so(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *arguments(model, tmp_path, 128, "--trainer.precision=bf16-true")]) == 2
    assert f"trainer.precision: {model} keeps float32 weights" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_bf16_true_computes_outside_the_network_in_float32(tmp_path: Path) -> None:
    """Its losses are those of float32 but for the rounding within the network, which answers 0 to the first batch."""
    losses = {}
    for precision in ("bf16-true", "64-true", "32-true"):
        words = arguments("RectifiedFlow", tmp_path, 64 * 3, f"--trainer.precision={precision}")
        words.append("--trainer.log_every_n_steps=1")
        logged = [row["train/loss"] for row in rows(commands.fit(words))]
        losses[precision] = [float(loss) for loss in logged if loss]
    assert len(losses["32-true"]) == 3
    assert losses["bf16-true"][0] == losses["32-true"][0]
    assert losses["bf16-true"] == pytest.approx(losses["32-true"], rel=0.01)
    assert losses["bf16-true"][2] != losses["32-true"][2]
    assert losses["64-true"] == pytest.approx(losses["32-true"], rel=1e-4)


def test_the_average_of_bf16_weights_does_not_stand_still(tmp_path: Path) -> None:
    """w + (1 - d) (v - w) at d = 0.999 is w again in bfloat16; the average is kept in float32."""
    network = torch.nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    network.weight.data.fill_(1.0)
    model: Any = SimpleNamespace(generator=network, images_seen=0, whole_step=True)
    ema = EMA(EMASettings(0.999))
    ema.num_updates = 100_000  # past the warm-up
    trainer: Any = SimpleNamespace(is_global_zero=True)
    ema.on_fit_start(trainer, model)
    network.weight.data.fill_(2.0)
    for update in range(50):
        ema.on_train_batch_end(trainer, model, None, None, update)
    checkpoint: dict[str, Any] = {}
    ema.on_save_checkpoint(trainer, model, checkpoint)
    assert checkpoint["ema"]["weights"]["weight"].item() == pytest.approx(2 - 0.999**50, rel=1e-6)


@pytest.mark.parametrize("name", ["cifar10_edm", "cifar10_edm_ncsnpp"])
@pytest.mark.parametrize(("images", "halflife"), [(1_024_000, 51_200), (200_000_000, 500_000)])
def test_edm_is_averaged_over_half_a_million_images_after_a_ramp(name: str, images: int, halflife: int) -> None:
    settings = ExperimentCLI([f"--config={ROOT}/conf/experiment/{name}.yaml"]).config.ema
    network = torch.nn.Linear(1, 1, bias=False)
    network.weight.data.fill_(1.0)
    model: Any = SimpleNamespace(generator=network, images_seen=images - 512, whole_step=True)
    trainer: Any = SimpleNamespace(is_global_zero=True)
    ema = EMA(EMASettings(**settings.as_dict()))
    ema.num_updates = model.images_seen // 512
    ema.on_fit_start(trainer, model)
    network.weight.data.fill_(1001.0)
    model.images_seen = images
    ema.on_train_batch_end(trainer, model, None, None, 0)
    checkpoint: dict[str, Any] = {}
    ema.on_save_checkpoint(trainer, model, checkpoint)
    moved = checkpoint["ema"]["weights"]["weight"].item() - 1
    assert moved == pytest.approx(1000 * (1 - 0.5 ** (512 / halflife)), rel=1e-4)


@pytest.mark.parametrize("key", ["max_epochs", "max_steps", "limit_train_batches"])
def test_a_training_of_nothing_is_refused(key: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"trainer.{key}: 0 trains on nothing.*budget.num_images"):
        commands.fit(arguments("VAE", tmp_path, 64, f"--trainer.{key}=0"))
    assert not list(tmp_path.glob("*/run.json"))


def test_steps_of_two_optimizers_are_no_length(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"trainer.max_steps: 30 would count .* WGAN; .* --budget.num_images"):
        commands.fit(arguments("WGAN", tmp_path, 64, "--trainer.max_steps=30"))
    assert not list(tmp_path.glob("*/run.json"))


def test_validation_is_logged_against_images(tmp_path: Path) -> None:
    for model in ("RectifiedFlow", "VAE", "WGAN"):
        run = commands.fit(arguments(model, tmp_path, 64 * 23, "--data.num_val=90"))
        name = {"VAE": "val/bits_per_dim", "WGAN": "val/critic_gap"}.get(model, "val/loss")
        values = [(int(row["images"]), float(row[name])) for row in rows(run) if row.get(name)]
        assert values and values[0][0] == 64 * 21, "after the 21 batches of the epoch"
        assert all(math.isfinite(value) for _, value in values)


@pytest.mark.slow
def test_compiling_leaves_the_keys_of_the_checkpoint_alone(tmp_path: Path) -> None:
    """With a small network for points, whose kernels are compiled in seconds."""
    small = ["--model.network.width=16", "--model.network.depth=1", "--data.batch_size=64", "--budget.num_images=768"]
    words = [
        f"--config={ROOT}/conf/experiment/points_edm.yaml",
        *small,
        "--grid.num_samples=0",
        "--wandb.mode=disabled",
    ]
    words += [f"--run.root={tmp_path}", "--trainer.accelerator=cpu"]
    plain = commands.fit(words)
    compiled = commands.fit([*words, "--model.compile=true"])
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
    result = commands.evaluate(
        [str(compiled.directory), "--sampler=DDIM", "--sampler.steps=2", "--evaluation.num_samples=10"]
    )
    assert result.is_file()
