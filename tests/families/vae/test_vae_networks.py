"""Encoder and decoder: gradients, independence of images, errors."""

import pytest
import torch
from torch import nn

from lit_gen.core.errors import UserError
from lit_gen.families.vae import ConvDecoder, ConvEncoder
from tests.families.random_networks import check_independence

SHAPES = [(1, 8, 8), (3, 32, 32), (1, 28, 28), (2, 12, 16)]
LATENT = 6


@pytest.mark.parametrize("image_shape", SHAPES)
def test_images_are_independent_and_gradients_reach_every_parameter(image_shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    encoder = ConvEncoder(image_shape, LATENT, channels=8)
    check_independence(encoder, lambda x: torch.cat(encoder(x), dim=1), torch.randn(3, *image_shape))
    decoder = ConvDecoder(image_shape, LATENT, channels=8)
    latents = torch.randn(3, LATENT)
    assert decoder(latents).shape == (3, *image_shape)
    check_independence(decoder, decoder, latents)


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


def test_the_decoder_is_not_bounded() -> None:
    decoder = ConvDecoder((1, 8, 8), LATENT, channels=8)
    decoder.load_state_dict({"trunk.out.bias": torch.tensor([5.0])}, strict=False)
    assert decoder(torch.randn(50, LATENT)).max() > 1


@pytest.mark.parametrize("build", [ConvEncoder, ConvDecoder])
@pytest.mark.parametrize("size", [(4, 4), (30, 32), (32, 9)])
def test_unsuitable_sizes(build: type[nn.Module], size: tuple[int, int]) -> None:
    with pytest.raises(UserError, match=f"images of {size[0]}x{size[1]} do not suit"):
        build((1, *size), LATENT)
