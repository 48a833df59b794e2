"""Convolutional generator and critic: gradients, independence of images, scale at initialisation, errors."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lit_gen.core.errors import UserError
from lit_gen.families.gan import Critic, Generator
from tests.families.random_networks import check_independence

SHAPES = [(1, 8, 8), (3, 32, 32), (1, 28, 28), (2, 12, 16)]
LATENT = 6


@pytest.mark.parametrize("image_shape", SHAPES)
def test_images_are_independent_and_gradients_reach_every_parameter(image_shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    generator, critic = Generator(image_shape, LATENT, channels=8), Critic(image_shape, channels=8)
    latents, images = torch.randn(3, LATENT), torch.randn(3, *image_shape)
    assert generator(latents).shape == images.shape and critic(images).shape == (3,)
    check_independence(generator, generator, latents)
    check_independence(critic, critic, images)


def test_the_generator_is_bounded() -> None:
    generator, z = Generator((1, 8, 8), LATENT, channels=8), torch.randn(50, LATENT)
    torch.testing.assert_close(generator(z), generator.trunk(z).tanh(), rtol=0, atol=0)
    generator.load_state_dict({"trunk.out.bias": torch.tensor([5.0])}, strict=False)
    assert 0.9 < generator(z).abs().max() <= 1


@pytest.mark.parametrize("image_shape", [(1, 8, 8), (3, 32, 32)])
def test_critic_starts_with_scores_and_slopes_of_order_one(image_shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    critic = Critic(image_shape)
    x = torch.randn(32, *image_shape, requires_grad=True)
    scores = critic(x)
    (gradient,) = torch.autograd.grad(scores.sum(), x)
    assert 0.01 < scores.std() < 5
    assert 0.01 < gradient.flatten(1).norm(dim=1).mean() < 5


def test_gradient_penalty_reaches_the_critic() -> None:
    """Second derivatives agree with finite differences of the penalty along one direction."""
    torch.manual_seed(0)
    critic = Critic((1, 8, 8), channels=8).double()
    x = torch.randn(3, 1, 8, 8, dtype=torch.float64, requires_grad=True)

    def penalty() -> Tensor:
        (gradient,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
        return (gradient.flatten(1).norm(dim=1) - 1).square().mean()

    weights = [p for p in critic.parameters() if p.dim() > 1]
    directions = [torch.randn_like(p) / p.numel() ** 0.5 for p in weights]
    gradients = torch.autograd.grad(penalty(), weights)
    slope = sum(float((g * d).sum()) for g, d in zip(gradients, directions, strict=True))

    def shifted(step: float) -> float:
        for p, d in zip(weights, directions, strict=True):
            p.data.add_(d, alpha=step)
        value = float(penalty().detach())
        for p, d in zip(weights, directions, strict=True):
            p.data.sub_(d, alpha=step)
        return value

    step = 1e-6
    assert slope == pytest.approx((shifted(step) - shifted(-step)) / (2 * step), rel=1e-4)
    assert abs(slope) > 1e-4


@pytest.mark.parametrize("build", [lambda shape: Generator(shape, LATENT), Critic], ids=["generator", "critic"])
@pytest.mark.parametrize("size", [(4, 4), (30, 32), (32, 9)])
def test_unsuitable_sizes(build: Callable[[tuple[int, int, int]], nn.Module], size: tuple[int, int]) -> None:
    with pytest.raises(UserError, match=f"images of {size[0]}x{size[1]} do not suit"):
        build((1, *size))


@pytest.mark.parametrize("settings", [{"channels": 12}, {"max_channels": 0}])
def test_unsuitable_widths(settings: dict[str, int]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(settings))}: .* is not a positive multiple of 8"):
        Critic((1, 8, 8), **settings)
