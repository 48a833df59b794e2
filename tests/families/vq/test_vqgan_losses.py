"""Losses and logged values of VQVAE, VQGAN and its discriminator in one step, computed by hand."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_gen.data import Batch
from lit_gen.families.vq import VQGAN, VQVAE, ConvAutoencoder
from lit_gen.families.vq.networks.quantisers import VectorQuantiser


class Cubed(nn.Module):
    """A perceptual distance: 3 |x - y|^3, averaged."""

    name = "cubed"

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return 3 * (x - y).abs().pow(3).mean()


class Patches(nn.Module):
    """A discriminator whose logits are linear in each patch, on both sides of the hinge."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(shape[0], 1, 4, stride=2)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = 5 * self.convolution(images).squeeze(1)
        return logits


def small(family: type[VQVAE], **settings: Any) -> Any:
    """Return a model that trains without a Trainer and records its logged values and its steps."""
    torch.manual_seed(0)
    model: Any = family(
        (1, 8, 8),
        latent_dim=4,
        network=lambda shape, dim: ConvAutoencoder(shape, dim, channels=8),
        quantiser=lambda dim: VectorQuantiser(dim, 8, ema=False, revive_below=0.0),
        **settings,
    ).double()
    model._trainer = SimpleNamespace(datamodule=SimpleNamespace(batch_size=6), accumulate_grad_batches=1, world_size=1)
    model.logged, model.descended = {}, []
    model.log_training = lambda **values: model.logged.update(values)
    model.optimizers = lambda: ("of the autoencoder", "of the discriminator")
    model.lr_schedulers = lambda: SimpleNamespace(step=lambda: None)
    model.descend = lambda optimizer, network, gradients: model.descended.append((optimizer, network, gradients))
    return model


IMAGES = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1


def step(model: Any) -> Any:
    return model.training_step(Batch(IMAGES, None, torch.arange(6)), 0)


def test_a_step_of_vqvae() -> None:
    model = small(VQVAE)
    loss = step(model)
    reconstructions, quantised = model.autoencoder(IMAGES)
    error = (reconstructions - IMAGES).square().mean()
    assert quantised.loss > 1e-3 and error > 1e-3
    torch.testing.assert_close(loss, error + quantised.loss, rtol=1e-12, atol=0)
    assert {name: float(model.logged[name]) for name in ("loss", "reconstruction_error", "quantiser_loss", "psnr")} == {
        "loss": pytest.approx(float(loss), rel=1e-12),
        "reconstruction_error": pytest.approx(float(error), rel=1e-12),
        "quantiser_loss": pytest.approx(float(quantised.loss), rel=1e-12),
        "psnr": pytest.approx(float(10 * torch.log10(4 / error)), rel=1e-12),
    }


COMMON = {"loss", "nll", "quantiser_loss", "reconstruction_error"}
OF_GENERATOR = {"generator_loss", "adaptive_weight"}
OF_DISCRIMINATOR = {"discriminator_loss", "logits_real", "logits_fake"}


@pytest.mark.parametrize("images_seen", [0, 64, 128])
@pytest.mark.parametrize("max_weight", [1e4, 1e-3])
@pytest.mark.parametrize("parts", [1, 3])
def test_a_step_of_vqgan_and_its_discriminator(images_seen: int, max_weight: float, parts: int) -> None:
    """Before the discriminator starts, while it trains alone, and when the autoencoder uses it.

    In micro-batches the step is that of the whole batch, lambda included.
    """
    model = small(
        VQGAN,
        perceptual="none",
        perceptual_weight=0.7,
        discriminator=Patches,
        discriminator_weight=0.3,
        max_weight=max_weight,
        discriminator_start=32,
        discriminator_warmup=64,
    )
    model._perceptual = [Cubed()]
    model.clock.images_seen = images_seen
    model.accumulate = parts
    assert step(model) is None
    trains, used = images_seen > 32, images_seen > 96
    values, losses = by_hand(model, max_weight, used)
    expected = [("of the autoencoder", losses[0], model.autoencoder)]
    expected += [("of the discriminator", losses[1], model.discriminator)] if trains else []
    assert len(model.descended) == len(expected)
    for (optimizer, network, gradients), (whose, right, expected_network) in zip(
        model.descended, expected, strict=True
    ):
        assert optimizer == whose and network is expected_network
        wanted = torch.autograd.grad(right, list(network.parameters()), retain_graph=True)
        for own, exact in zip(gradients, wanted, strict=True):
            torch.testing.assert_close(own, exact, rtol=1e-8, atol=1e-12)

    logged = COMMON | (OF_GENERATOR if used else set()) | (OF_DISCRIMINATOR if trains else set())
    assert (OF_GENERATOR | OF_DISCRIMINATOR) & model.logged.keys() == logged - COMMON
    of_a_part = {"nll", "quantiser_loss", "reconstruction_error", "logits_real", "logits_fake"}
    for name in logged - (of_a_part if parts > 1 else set()):
        assert float(model.logged[name]) == pytest.approx(float(values[name]), rel=1e-6), name


def by_hand(model: Any, max_weight: float, used: bool) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor]]:
    """Return all values that a step may log, and the losses of autoencoder and discriminator."""
    reconstructions, quantised = model.autoencoder(IMAGES)
    gap = (reconstructions - IMAGES).abs()
    nll = gap.mean() + 0.7 * 3 * gap.pow(3).mean()
    g = -model.discriminator(reconstructions).mean()
    last = model.autoencoder.network.last_layer.weight
    by_nll, by_g = (torch.autograd.grad(value, last, retain_graph=True)[0].norm() for value in (nll, g))
    weight = min(float(by_nll / (by_g + 1e-4)), max_weight)
    loss = nll + quantised.loss + used * 0.3 * weight * g
    real, fake = model.discriminator(IMAGES), model.discriminator(reconstructions)
    of_discriminator = ((1 - real).clamp(min=0).mean() + (1 + fake).clamp(min=0).mean()) / 2
    assert min(quantised.loss, abs(0.3 * weight * g)) > 1e-6, "each term counts"
    assert (real > 1).any() and (real < 1).any() and (fake > -1).any() and (fake < -1).any()
    values = {"loss": loss, "nll": nll, "quantiser_loss": quantised.loss, "reconstruction_error": gap.square().mean()}
    values |= {"generator_loss": g, "adaptive_weight": torch.tensor(weight)}
    values |= {"discriminator_loss": of_discriminator, "logits_real": real.mean(), "logits_fake": fake.mean()}
    return values, (loss, of_discriminator)


def test_each_network_has_its_own_learning_rate() -> None:
    model = small(
        VQGAN,
        perceptual="none",
        discriminator=Patches,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        discriminator_optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.2),
    )
    optimizers = [configured["optimizer"] for configured in model.configure_optimizers()]
    networks = (model.autoencoder, model.discriminator)
    for optimizer, network, rate in zip(optimizers, networks, (0.1, 0.2), strict=True):
        (group,) = optimizer.param_groups
        assert group["initial_lr" if "initial_lr" in group else "lr"] == rate
        assert {id(p) for p in group["params"]} == {id(p) for p in network.parameters()}
