"""Encoder, decoder, generator and critic: gradients, independence of images, scale at initialisation, errors."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lit_gen.core.errors import UserError
from lit_gen.families.gan import Critic, Generator
from lit_gen.families.vae import ConvDecoder, ConvEncoder

SHAPES = [(1, 8, 8), (3, 32, 32), (1, 28, 28), (2, 12, 16)]
LATENT = 6


def concatenated(encoder: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.cat(encoder(x), dim=1)


def cases(image_shape: tuple[int, int, int]) -> dict[str, tuple[nn.Module, Callable[[Tensor], Tensor], Tensor]]:
    """Return each network by name, as a function of one tensor, with an input for it."""
    torch.manual_seed(0)
    images, latents = torch.randn(3, *image_shape), torch.randn(3, LATENT)
    encoder = ConvEncoder(image_shape, LATENT, channels=8)
    decoder = ConvDecoder(image_shape, LATENT, channels=8)
    generator = Generator(image_shape, LATENT, channels=8)
    critic = Critic(image_shape, channels=8)
    return {
        "encoder": (encoder, concatenated(encoder), images),
        "decoder": (decoder, decoder, latents),
        "generator": (generator, generator, latents),
        "critic": (critic, critic, images),
    }


@pytest.mark.parametrize("image_shape", SHAPES)
@pytest.mark.parametrize("name", ["encoder", "decoder", "generator", "critic"])
def test_images_are_independent_and_gradients_reach_every_parameter(
    name: str, image_shape: tuple[int, int, int]
) -> None:
    network, function, inputs = cases(image_shape)[name]
    together = function(inputs)
    width = {"encoder": (2 * LATENT,), "critic": ()}.get(name, image_shape)
    assert together.shape == (3, *width)
    for i in range(3):
        torch.testing.assert_close(function(inputs[i : i + 1])[0], together[i], rtol=1e-4, atol=1e-5)
    (together - torch.randn_like(together)).square().sum().backward()
    for parameter_name, parameter in network.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().max() > 0, parameter_name


def test_encoder_splits_mean_from_log_variance() -> None:
    encoder = ConvEncoder((1, 8, 8), LATENT, channels=8)
    bias = torch.arange(2.0 * LATENT)
    encoder.load_state_dict(
        {"trunk.out.weight": torch.zeros_like(encoder.state_dict()["trunk.out.weight"]), "trunk.out.bias": bias},
        strict=False,
    )
    mean, log_var = encoder(torch.randn(2, 1, 8, 8))
    assert torch.equal(mean, bias[:LATENT].expand(2, -1))
    assert torch.equal(log_var, bias[LATENT:].expand(2, -1))


def test_generator_is_bounded_and_decoder_is_not() -> None:
    generator, decoder = Generator((1, 8, 8), LATENT, channels=8), ConvDecoder((1, 8, 8), LATENT, channels=8)
    decoder.load_state_dict(generator.state_dict())
    z = torch.randn(50, LATENT)
    torch.testing.assert_close(generator(z), decoder(z).tanh(), rtol=0, atol=0)
    decoder.load_state_dict({"trunk.out.bias": torch.tensor([5.0])}, strict=False)
    assert decoder(z).max() > 1
    generator.load_state_dict(decoder.state_dict())
    assert generator(z).abs().max() <= 1


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


@pytest.mark.parametrize(
    "build",
    [
        lambda shape: ConvEncoder(shape, LATENT),
        lambda shape: ConvDecoder(shape, LATENT),
        lambda shape: Generator(shape, LATENT),
        Critic,
    ],
)
@pytest.mark.parametrize("size", [(4, 4), (30, 32), (32, 9)])
def test_unsuitable_sizes(build: Callable[[tuple[int, int, int]], nn.Module], size: tuple[int, int]) -> None:
    with pytest.raises(UserError, match=f"images of {size[0]}x{size[1]} do not suit"):
        build((1, *size))


@pytest.mark.parametrize("settings", [{"channels": 12}, {"max_channels": 0}])
def test_unsuitable_widths(settings: dict[str, int]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(settings))}: .* is not a positive multiple of 8"):
        Critic((1, 8, 8), **settings)
