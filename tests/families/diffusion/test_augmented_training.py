"""Diffusion models with an augmentation, for each network: from the command line, resumed, sampled."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_gen.cli import commands
from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.data import Batch
from lit_gen.families.diffusion import EDM, DiT, ImprovedDDPM, ResidualMLP, UNet, diffusion_loss
from lit_gen.families.diffusion.augment import EDMAugmentation, transform
from tests.behaviour.test_resume import assert_equal_bits, contents
from tests.conftest import DIGITS
from tests.families.random_networks import randomise
from tests.interrupt import KILL_AT, CrashError

pytestmark = pytest.mark.slow
"""End-to-end runs; the gate runs them."""

SHAPE = (1, 8, 8)
NCSNPP = [
    "--model.network=UNet",
    "--model.network.channels=8",
    "--model.network.num_blocks=1",
    "--model.network.time_embedding=fourier",
    "--model.network.resample_filter=[1,3,3,1]",
    "--model.network.progressive_input=true",
    "--model.network.skip_scale=0.7",
    "--model.network.channel_mult=[1,1]",
]
DIT = [
    "--model.network=DiT",
    "--model.network.width=16",
    "--model.network.depth=1",
    "--model.network.num_heads=2",
    "--model.network.dropout=0.1",
]


def network(shape: tuple[int, int, int], num_classes: int = 0, **options: Any) -> UNet:
    return randomise(UNet(shape, num_classes, channels=8, channel_mult=(1,), num_blocks=1, **options))


def model_at(step: int, seed: int = 3) -> EDM:
    model = EDM(image_shape=SHAPE, network=network, augment=EDMAugmentation(p=0.5))
    model.clock.seed, model.clock.batches_seen = seed, step
    return model


@pytest.fixture
def batch() -> Batch:
    images = torch.rand(12, *SHAPE, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return Batch(images, None, torch.arange(100, 112))


def test_a_transform_is_a_function_of_seed_step_and_index(batch: Batch) -> None:
    images, labels = model_at(5).augmented(batch)
    torch.manual_seed(7)
    part = Batch(batch.images[3:5], None, batch.index[3:5])
    again, again_labels = model_at(5).augmented(part)
    assert labels is not None and again_labels is not None
    assert torch.equal(again_labels, labels[3:5])
    torch.testing.assert_close(again.images, images.images[3:5], rtol=0, atol=1e-5)
    for other in (model_at(6), model_at(5, seed=4)):
        _, other_labels = other.augmented(batch)
        assert other_labels is not None and not torch.equal(other_labels, labels)


def test_training_step_is_the_loss_of_transformed_images_with_their_labels(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_at(5)
    monkeypatch.setattr(model, "log_training", lambda **values: None)
    torch.manual_seed(0)
    loss = model.training_step(batch, 0)
    transformed, labels = model.augmented(batch)
    assert labels is not None
    torch.testing.assert_close(transformed.images, transform(batch.images, labels), rtol=0, atol=1e-5)
    assert not torch.equal(transformed.images, batch.images)
    torch.manual_seed(0)
    t = model.training_times(12)
    eps = torch.randn_like(transformed.images)
    expected = diffusion_loss(model.denoiser, transformed.images, t, eps, None, labels).mean()
    torch.testing.assert_close(loss, expected, rtol=0, atol=0)
    untold = diffusion_loss(model.denoiser, transformed.images, t, eps).mean()
    assert abs(untold - expected) > 1e-3
    loss.backward()
    told = model.get_parameter("network.embed_augment.weight").grad
    assert told is not None and told.abs().amax(0).min() > 0


def test_pairs_of_noise_and_image_stay_as_they_are(batch: Batch) -> None:
    with pytest.raises(UserError, match="model.augment: these images are paired with their noise"):
        model_at(5).augmented(batch._replace(noise=torch.randn_like(batch.images)))


def test_sampling_is_not_told_of_any_augmentation() -> None:
    model = model_at(0)
    before = model.sample(Noise(0, [0, 1]))
    model.get_parameter("network.embed_augment.weight").data.fill_(1e6)
    assert torch.equal(model.sample(Noise(0, [0, 1])), before)


def test_learned_variance_and_augmentation_together(batch: Batch) -> None:
    model = ImprovedDDPM(image_shape=SHAPE, network=network, augment=EDMAugmentation(p=0.5))
    transformed, labels = model.augmented(batch)
    t, eps = torch.full((12,), 0.5, dtype=torch.float64), torch.randn(12, *SHAPE)
    assert model.network(batch.images, t.float(), None, labels).shape == (12, 2, 8, 8)
    told = model.loss(transformed.images, t, eps, None, labels)
    assert (told - model.loss(transformed.images, t, eps, None)).abs().max() > 1e-3


def test_network_without_augmentation_labels() -> None:
    with pytest.raises(UserError, match="model.augment: this network takes no augmentation labels"):
        EDM(image_shape=SHAPE, network=ResidualMLP, augment=EDMAugmentation())
    assert EDM(image_shape=SHAPE, network=DiT, augment=EDMAugmentation()).network.embed_augment is not None


@pytest.mark.parametrize("options", [NCSNPP, DIT], ids=["NCSN++", "DiT"])
def test_resumed_training_ends_with_the_same_bits(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--model=EDM", *options, "--model.augment=EDMAugmentation", "--model.augment.p=0.4", *DIGITS]
    words += ["--trainer.callbacks=tests.interrupt.Interrupt", "--checkpoint.every=128", "--grid.num_samples=0"]
    words += ["--budget.num_images=512"]
    run = commands.fit([*words, f"--run.root={tmp_path / 'whole'}"])
    monkeypatch.setenv(KILL_AT, "raise:5")
    with pytest.raises(CrashError):
        commands.fit([*words, f"--run.root={tmp_path / 'parts'}"])
    monkeypatch.delenv(KILL_AT)
    commands.fit([*words, f"--run.root={tmp_path / 'parts'}"])
    whole, parts = contents(tmp_path / "whole"), contents(tmp_path / "parts")
    assert run.finished and whole["images_seen"] == 512
    assert_equal_bits(whole, parts)
    told = whole["state_dict.network.embed_augment.weight"]
    assert isinstance(told, Tensor) and told.shape[1] == EDMAugmentation.dim
