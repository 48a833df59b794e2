"""VQVAE and VQGAN: the adaptive weight, the discriminator's delay, checkpoints, scores."""

import csv
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from lit_gen.cli import commands
from lit_gen.cli.main import main
from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.data import Digits, ImageDataModule
from lit_gen.experiment.loading import load_model
from lit_gen.experiment.parser import ExperimentCLI
from lit_gen.families.vq import VQGAN, VQVAE, ConvAutoencoder
from lit_gen.families.vq.models.vqgan import adaptive_weight
from lit_gen.families.vq.networks.quantisers import FSQ, Quantiser, VectorQuantiser
from lit_gen.metrics import psnr
from lit_gen.runs.directory import Run
from tests.conftest import arguments


@pytest.mark.parametrize("scale", [1e-9, 0.3, 1.0, 40.0])
def test_the_adaptive_weight_of_a_linear_layer_is_the_ratio_of_its_gradients(scale: float) -> None:
    """The gradients of nll = |W h - x|^2 / 2 and g = scale v . W h are (W h - x) h^T and scale v h^T."""
    torch.manual_seed(0)
    w, h = torch.randn(5, 3).double().requires_grad_(), torch.randn(3).double()
    x, v = torch.randn(5).double(), torch.randn(5).double()
    losses = 0.5 * (w @ h - x).square().sum(), scale * (v @ (w @ h))
    by_nll, by_g = (torch.autograd.grad(loss, w)[0] for loss in losses)
    weight = adaptive_weight(by_nll, by_g)
    expected = (w.detach() @ h - x).norm() * h.norm() / (scale * v.norm() * h.norm() + 1e-4)
    torch.testing.assert_close(weight, expected.clamp(max=1e4), rtol=1e-12, atol=0)
    assert (weight == 1e4) == (scale == 1e-9)


def weights_after(num_batches: int, root: Path, *more: str) -> dict[str, torch.Tensor]:
    words = arguments("VQGAN", root, 64 * num_batches, "--grid.num_samples=0", "--trainer.log_every_n_steps=1", *more)
    checkpoint = torch.load(commands.fit(words).checkpoint, weights_only=True)
    weights: dict[str, torch.Tensor] = checkpoint["state_dict"]
    return weights


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> set[str]:
    """Return the names of the networks that differ."""
    return {name.split(".")[0] for name, value in one.items() if not torch.equal(value, other[name])}


@pytest.mark.slow
def test_the_discriminator_starts_after_its_delay_and_is_heeded_after_its_warmup(tmp_path: Path) -> None:
    """Of three batches, it trains on the second and third, and the autoencoder uses it in the third."""
    delayed = [weights_after(n, tmp_path / f"delayed{n}", "--model.discriminator_start=6400") for n in (1, 2, 3)]
    started = [weights_after(n, tmp_path / f"started{n}") for n in (2, 3)]
    assert differing(delayed[0], delayed[2]) == {"autoencoder"}
    assert differing(delayed[1], started[0]) == {"discriminator"}
    assert differing(delayed[2], started[1]) == {"discriminator", "autoencoder"}
    (file,) = (tmp_path / "started3").glob("*/metrics.csv")
    rows = list(csv.DictReader(file.open()))
    judged = [bool(row["train/discriminator_loss"]) for row in rows if row["train/loss"]]
    heeded = [bool(row["train/adaptive_weight"]) for row in rows if row["train/loss"]]
    assert (judged, heeded) == ([False, True, True], [False, False, True])


def test_the_checkpoint_holds_both_optimizers_the_averages_and_no_feature_net(tmp_path: Path) -> None:
    words = arguments("VQGAN", tmp_path, 64 * 3, "--model.quantiser.ema=true", "--grid.num_samples=0")
    checkpoint = torch.load(commands.fit(words).checkpoint, weights_only=True)
    states = [optimizer["state"] for optimizer in checkpoint["optimizer_states"]]
    assert len(states) == 2 and all(states), "the second has stepped as well"
    names = set(checkpoint["state_dict"])
    for name in ("quantiser.codes", "quantiser.total", "quantiser.share", "quantiser.revived", "frequencies"):
        assert f"autoencoder.{name}" in names and name in checkpoint["ema"]["weights"]
    assert {name.split(".")[0] for name in names} == {"autoencoder", "discriminator"}


def test_the_run_says_its_perceptual_loss_and_goes_on_with_no_other(tmp_path: Path) -> None:
    words = arguments("VQGAN", tmp_path, 128, "--checkpoint.every=64", "--grid.num_samples=0")
    run = commands.fit(words)
    assert run.metadata["title"] == "VQGAN, digits features"
    run.update(status="training")
    checkpoint = torch.load(run.checkpoint, weights_only=True)
    torch.save(checkpoint | {"title": "VQGAN, LPIPS"}, run.checkpoint)
    with pytest.raises(UserError, match="model.perceptual: .*trained as VQGAN, LPIPS, .*VQGAN, digits features"):
        commands.fit(words)


@pytest.mark.slow
def test_lpips_is_needed_to_train_and_not_to_evaluate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Random weights of VGG's shape are used, and removed after training."""
    from torchmetrics.functional.image import lpips
    from torchvision.models import vgg

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(
        lpips, "_get_tv_model_features", lambda net, pretrained: vgg.make_layers(vgg.cfgs["D"], batch_norm=False)
    )
    np.savez(tmp_path / "grey.npz", images=np.random.default_rng(0).integers(0, 256, (8, 32, 32), np.uint8))
    words = [word for word in arguments("VQGAN", tmp_path, 2) if "data." not in word and "feature_net" not in word]
    words += ["--data.source=Npz", f"--data.source.path={tmp_path}/grey.npz", "--data.batch_size=2"]
    words += ["--evaluation.feature_net=FashionFeatures", "--model.perceptual=lpips", "--grid.num_samples=0"]
    for verb in ("fit", "run"):
        assert main([verb, *words]) == 2
        assert "error: model.perceptual: VGG's weights are not at " in capsys.readouterr().err
    assert not [*tmp_path.glob("*/run.json")]
    file = tmp_path / "checkpoints" / "vgg16-397923af.pth"
    file.parent.mkdir()
    file.touch()
    run = commands.fit(words)
    file.unlink()
    result = json.loads(commands.run(words).read_text())
    assert result["model"] == "VQGAN, LPIPS" and result["run"]["name"] == run.directory.name
    assert main(["sample", str(run.directory), "-n", "2", "--out", str(tmp_path / "two.png")]) == 0


def test_codes_start_at_k_means_of_the_data() -> None:
    torch.manual_seed(0)
    model = VQVAE((1, 8, 8), quantiser=lambda dim: VectorQuantiser(dim, 64))
    images = ImageDataModule(Digits()).examples("train", 512).images
    before = model.autoencoder.eval()(images)[1]
    model.initialise(images)
    after = model.autoencoder(images)[1]
    assert after.loss < 0.5 * before.loss and len(after.indices.unique()) > 60 > len(before.indices.unique())
    codes = model.autoencoder.quantiser.codes
    assert isinstance(codes, torch.Tensor)
    again = codes.clone()
    torch.rand(5)
    model.initialise(images)
    assert torch.equal(codes, again), "the same in every process"


def test_k_means_has_vectors_enough_for_many_codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """16 vectors per code: a 4x4 grid needs as many images as codes, limited by the number of images."""
    given: list[int] = []
    monkeypatch.setattr(VQVAE, "initialise", lambda self, images: given.append(len(images)))
    for num_codes in (32, 1000, 2000):
        words = arguments("VQVAE", tmp_path, 64, f"--model.quantiser.num_codes={num_codes}", "--grid.num_samples=0")
        commands.fit(words)
    assert given == [512, 1000, 1442]


@pytest.mark.parametrize("quantiser", [partial(VectorQuantiser, num_codes=64, code_dim=3), FSQ])
def test_codes_are_those_of_float32_under_autocast(quantiser: Callable[[int], Quantiser]) -> None:
    torch.manual_seed(0)
    model = VQVAE((1, 8, 8), network=lambda shape, dim: ConvAutoencoder(shape, dim, channels=8), quantiser=quantiser)
    data = ImageDataModule(Digits(), num_val=100)
    images = data.examples("train", 200).images
    model.initialise(images)
    model.eval()
    with torch.no_grad():
        codes, latents = model.encode(images), model.latents(images)
        restored = model.autoencoder.quantiser.restore(codes)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(model.encode(images), codes) and torch.equal(model.latents(images), latents)
            rounded = model.autoencoder.network.encoder(images)
            assert rounded.dtype == torch.bfloat16, "as in training"
            assert not torch.equal(model.autoencoder.quantiser(rounded).indices, codes), "which is another code of some"
            seen: list[torch.Tensor] = []
            model.autoencoder.network.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
            model.decode(codes)
    assert torch.equal(seen[0], restored)

    def validated(precision: Any) -> dict[str, float]:
        plain: dict[str, Any] = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
        trainer = Trainer(accelerator="cpu", precision=precision, use_distributed_sampler=False, **plain)
        return dict(trainer.validate(model, data, verbose=False)[0])

    whole, mixed = validated("32-true"), validated("bf16-mixed")
    assert whole["val/psnr"] != mixed["val/psnr"], "the decoder is in bfloat16"
    for name in ("val/codebook_usage", "val/codebook_perplexity"):
        assert whole[name] == mixed[name]


def test_codes_in_use_have_a_hundredth_of_equal_use() -> None:
    """Averaged frequencies are never 0, so `usage` would count all codes as used."""
    model = VQVAE(
        (1, 8, 8),
        network=lambda shape, dim: ConvAutoencoder(shape, dim, channels=8),
        quantiser=lambda dim: VectorQuantiser(dim, 4),
    )
    share = torch.tensor([0.9, 0.0951, 0.0026, 0.0023])  # a hundredth of 1/4 is 0.0025
    model.autoencoder.frequencies.copy_(share.expand(4, 4, 4))
    found = model.diagnostics(Noise(0, range(4)))
    assert found.keys() == {"codes_in_use", "codebook_perplexity"} and found["codes_in_use"] == 0.75
    assert found["codebook_perplexity"] == pytest.approx(float(torch.distributions.Categorical(share).entropy().exp()))


def test_what_a_second_stage_uses() -> None:
    torch.manual_seed(0)
    model = VQVAE(
        (1, 8, 8),
        network=lambda shape, dim: ConvAutoencoder(shape, dim, channels=8, channel_mult=(1, 1, 1)),
        quantiser=lambda dim: VectorQuantiser(dim, 20, code_dim=3),
    ).eval()
    images = torch.rand(4, 1, 8, 8) * 2 - 1
    assert model.num_codes == 20 and model.latent_shape == (3, 2, 2)
    indices, latents = model.encode(images), model.latents(images)
    assert indices.shape == (4, 2, 2) and latents.shape == (4, *model.latent_shape)
    assert torch.equal(model.decode(indices), model.decode_latents(latents))
    codes = model.autoencoder.quantiser.lookup(indices).movedim(-1, 1)
    assert torch.equal(model.decode_latents(codes), model.decode(indices)), "a code is its own code"


@pytest.mark.slow
def test_it_is_scored_by_its_reconstructions_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ("--data.num_val=100", "--trainer.val_check_interval=20", "--grid.num_samples=4", "--ema.decay=0.9")
    words = arguments("VQVAE", tmp_path, 64 * 60, *more)
    record = json.loads(commands.run(words).read_text())
    protocol = record["reconstruction"]["protocol"]
    assert (protocol["split"], protocol["num_images"]) == ("test", 355)
    assert "  reconstructions of 355 images of digits/test\n" in capsys.readouterr().out
    result = record["metrics"]
    assert {"fd_digits", "rfd_digits", "psnr", "ssim", "codebook_usage", "codebook_perplexity"} < result.keys()
    assert 0 < result["rfd_digits"] < result["fd_digits"], "reconstructions are nearer than samples of single codes"
    assert result["psnr"] > 10 and 0 < result["ssim"] < 1
    assert 1 / 32 <= result["codebook_usage"] <= 1 and 1 <= result["codebook_perplexity"] <= 32
    (directory,) = (path.parent for path in tmp_path.glob("*/run.json"))
    run = Run(directory)
    columns = next(csv.reader((directory / "metrics.csv").open()))
    expected = ["train/psnr", "train/perplexity", "train/usage", "train/revived", "val/psnr", "val/ssim"]
    expected += ["val/codebook_usage", "val/codebook_perplexity", "samples/codes_in_use"]
    assert not [name for name in expected if name not in columns]
    model = load_model(run, ExperimentCLI(["--config", str(run.config)]).objects().model, "ema")
    assert isinstance(model, VQVAE)
    torch.testing.assert_close(model.autoencoder.frequencies.sum(-1), torch.ones(4, 4))


def test_without_test_images_training_images_are_reconstructed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The scores are those of the images that the picture shows, and the result says so."""
    images = ImageDataModule(Digits()).images("train")[:300]
    np.savez(tmp_path / "few.npz", images=images)
    words = [word for word in arguments("VQVAE", tmp_path, 64 * 4) if "data.source" not in word]
    path = commands.run([*words, "--data.source=Npz", f"--data.source.path={tmp_path / 'few.npz'}"])
    record = json.loads(path.read_text())
    assert "  reconstructions of 300 images of few/train\n" in capsys.readouterr().out
    run = Run(path.parents[2])
    data = ExperimentCLI(["--config", str(run.config)]).objects().data
    assert record["reconstruction"] == {
        "protocol": {"split": "train", "data_fingerprint": data.fingerprint("train"), "num_images": 300}
    }
    model = load_model(run, ExperimentCLI(["--config", str(run.config)]).objects().model, "ema")
    assert isinstance(model, VQVAE)
    with torch.no_grad():
        x = torch.from_numpy(images).float() / 127.5 - 1
        expected = float(psnr(model.decode(model.encode(x)), x).mean())
    assert record["metrics"]["psnr"] == pytest.approx(expected, rel=1e-5)


def test_delays_below_zero_are_named() -> None:
    for key in ("discriminator_start", "discriminator_warmup"):
        with pytest.raises(UserError, match=f"model.{key}: -1 is not a number of images"):
            VQGAN((1, 8, 8), **{key: -1})  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
@pytest.mark.parametrize("key", ["perceptual_weight", "discriminator_weight"])
def test_weights_that_are_none_are_named(key: str, value: float) -> None:
    with pytest.raises(UserError, match=f"^model.{key}: {value} is not a weight; "):
        VQGAN((1, 16, 16), **{key: value})  # type: ignore[arg-type]
    VQGAN((1, 16, 16), **{key: 0.0})  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [-1.0, 0.0, math.nan])
def test_a_limit_that_is_none_is_named(value: float) -> None:
    with pytest.raises(UserError, match=f"^model.max_weight: {value} is not a positive limit; "):
        VQGAN((1, 16, 16), max_weight=value)
    VQGAN((1, 16, 16), max_weight=math.inf)
