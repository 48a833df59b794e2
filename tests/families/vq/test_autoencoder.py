"""Encoder, decoder and discriminator of two-stage models, and the frequencies of codes."""

import pytest
import torch

from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.families.vq import ConvAutoencoder, PatchDiscriminator
from lit_gen.families.vq.networks.autoencoder import QuantisedAutoencoder
from lit_gen.families.vq.networks.quantisers import FSQ, Quantiser, VectorQuantiser
from tests.families.random_networks import randomise


def autoencoder(quantiser: Quantiser | None = None, **options: object) -> QuantisedAutoencoder:
    network = ConvAutoencoder((1, 8, 8), 6, channels=8, **options)  # type: ignore[arg-type]
    return randomise(QuantisedAutoencoder(network, quantiser or VectorQuantiser(6, 12)).double())


@pytest.mark.parametrize(
    ("shape", "mult", "size"),
    [
        ((1, 8, 8), (1, 2), (4, 4)),
        ((1, 8, 8), (1, 2, 2), (2, 2)),
        ((1, 28, 28), (1, 1, 2), (7, 7)),
        ((3, 32, 24), (1, 2, 2), (8, 6)),
    ],
)
def test_latents_are_smaller_and_images_come_back_in_size(
    shape: tuple[int, int, int], mult: tuple[int, ...], size: tuple[int, int]
) -> None:
    network = ConvAutoencoder(shape, 5, channels=8, channel_mult=mult, num_blocks=2, attention=True)
    z = network.encoder(torch.randn(2, *shape))
    assert network.size == size and z.shape == (2, 5, *size)
    assert network.decoder(z).shape == (2, *shape)


def test_images_are_of_themselves_alone_and_every_parameter_is_in_use() -> None:
    made = autoencoder(VectorQuantiser(6, 12, code_dim=3, ema=False), attention=True)
    images = torch.randn(4, 1, 8, 8).double()
    reconstructions, quantised = made(images)
    gradients = torch.autograd.grad(reconstructions.square().sum() + quantised.loss, list(made.parameters()))
    # a bias before a normalisation of one-channel groups would have none; all others have one
    assert all(gradient.abs().max() > 0 for gradient in gradients)
    made.eval()
    torch.testing.assert_close(made(images[1:2])[0], made(images)[0][1:2])


@pytest.mark.parametrize("quantiser", [VectorQuantiser(6, 12), VectorQuantiser(6, 12, 3, "cosine"), FSQ(6, (4, 3))])
def test_codes_and_latents_give_the_images_that_training_sees(quantiser: Quantiser) -> None:
    made = autoencoder(quantiser).eval()
    images = torch.randn(5, 1, 8, 8).double()
    reconstructions, quantised = made(images)
    indices = made.encode(images)
    assert torch.equal(quantised.indices, indices) and indices.shape == (5, 4, 4)
    torch.testing.assert_close(made.decode(indices), reconstructions)
    latents = made.latents(images)
    assert latents.shape == (5, quantiser.code_dim, 4, 4)
    assert torch.equal(made.decode_latents(latents), made.decode(indices))


def test_frequencies_are_an_average_of_the_shares_at_each_place() -> None:
    made = autoencoder()
    images = torch.randn(7, 1, 8, 8).double()
    _, quantised = made(images)
    expected = torch.nn.functional.one_hot(quantised.indices, 12).double().mean(0)
    torch.testing.assert_close(made.frequencies, 0.99 / 12 + 0.01 * expected)
    torch.testing.assert_close(made.overall().sum(), torch.ones(()).double())
    before = made.frequencies.clone()
    made.eval()(images)
    assert torch.equal(made.frequencies, before)


def test_codes_are_drawn_by_their_frequencies() -> None:
    """Pearson's chi-square test at every position; a code that never occurred there is never drawn."""
    made = autoencoder()
    generator = torch.Generator().manual_seed(0)
    shares = torch.rand(4, 4, 12, generator=generator).double()
    shares[..., 5] = shares[0, 0, 0] = shares[1, 1, 11] = 0
    made.frequencies.copy_(shares / shares.sum(-1, keepdim=True))
    num = 20_000
    indices = made.place(Noise(0, range(num)).uniform((4, 4), torch.float64))
    counts = torch.nn.functional.one_hot(indices, 12).sum(0).double()
    expected = num * made.frequencies
    assert bool((counts[expected == 0] == 0).all())
    statistic = ((counts - expected).square() / expected).nan_to_num(0).sum()
    degrees = int((expected > 0).sum()) - 16
    assert abs(statistic - degrees) < 5 * (2 * degrees) ** 0.5
    assert torch.equal(made.place(Noise(0, [17]).uniform((4, 4), torch.float64)), indices[17:18])


def test_a_verdict_is_of_a_patch_of_one_image() -> None:
    made = randomise(PatchDiscriminator((1, 32, 32), channels=8, num_halvings=2).double())
    images = torch.randn(3, 1, 32, 32).double()
    logits = made(images)
    assert logits.shape == (3, 8, 8)
    torch.testing.assert_close(made(images[:1]), logits[:1])
    assert PatchDiscriminator((3, 8, 8), channels=8, num_halvings=1)(torch.randn(2, 3, 8, 8)).shape == (2, 4, 4)


def test_sizes_that_do_not_suit_are_named() -> None:
    with pytest.raises(UserError, match="model.network.channel_mult: .* 28x28 cannot be halved 3 times"):
        ConvAutoencoder((1, 28, 28), 4, channel_mult=(1, 1, 1, 1))
    with pytest.raises(UserError, match=r"channels: .* is not a positive multiple of 8"):
        ConvAutoencoder((1, 28, 28), 4, channels=12)
    for halvings in (0, 2):
        with pytest.raises(UserError, match=f"model.discriminator.num_halvings: {halvings} is out of range"):
            PatchDiscriminator((1, 8, 8), num_halvings=halvings)
