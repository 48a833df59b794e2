"""Shared conditioning of the diffusion networks: noise level, class, augmentation, gradients, zero initial output."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lit_gen.core.errors import UserError
from lit_gen.families.diffusion import DiT, ResidualMLP, UNet
from lit_gen.networks.embeddings import FourierFeatures, sinusoids
from tests.families.random_networks import batch, randomise

CLASSES = 3
Build = Callable[..., nn.Module]


def unet(num_classes: int = CLASSES, **settings: object) -> UNet:
    small: dict = {"channels": 16, "channel_mult": (1, 2), "num_blocks": 1, "attention_resolutions": (4,)} | settings
    return UNet((2, 8, 8), num_classes, **small)


def ncsnpp(num_classes: int = CLASSES, **settings: object) -> UNet:
    """Return NCSN++ with three levels, so that the image is added to the encoder twice."""
    options: dict = {
        "channel_mult": (1, 2, 2),
        "attention_resolutions": (8,),
        "scale_shift": False,
        "resample_filter": (1, 3, 3, 1),
        "skip_scale": math.sqrt(0.5),
        "progressive_input": True,
        "time_embedding": "fourier",
    }
    small: dict = {"channels": 8, "num_blocks": 1} | options | settings
    return UNet((2, 16, 16), num_classes, **small)


def dit(num_classes: int = CLASSES, **settings: object) -> DiT:
    small: dict = {"patch_size": 2, "width": 24, "depth": 2, "num_heads": 2} | settings
    return DiT((2, 8, 4), num_classes, **small)


def mlp(num_classes: int = CLASSES, **settings: object) -> ResidualMLP:
    small: dict = {"width": 16, "depth": 2} | settings
    return ResidualMLP((2, 1, 1), num_classes, **small)


SHAPES: dict[Build, tuple[int, int, int]] = {unet: (2, 8, 8), ncsnpp: (2, 16, 16), dit: (2, 8, 4), mlp: (2, 1, 1)}
every_network = pytest.mark.parametrize("build", SHAPES, ids=lambda build: build.__name__)
augmentable = pytest.mark.parametrize("build", [unet, ncsnpp, dit], ids=lambda build: build.__name__)


def inputs(build: Build, num: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    x, c_noise, labels = batch(num, SHAPES[build], CLASSES)
    return x, c_noise / 100, labels


def test_sinusoids_are_those_of_the_formula() -> None:
    c = torch.tensor([0.0, -1.55, 999.0], dtype=torch.float64)
    embedded = sinusoids(c, 8)
    for n, value in enumerate(c.tolist()):
        phases = [value * 10000 ** (-k / 3) for k in range(4)]
        expected = [math.cos(p) for p in phases] + [math.sin(p) for p in phases]
        assert embedded[n].tolist() == pytest.approx(expected, abs=1e-12)


def test_sinusoids_tell_apart_neighbours_over_the_whole_range_of_c_noise() -> None:
    steps = sinusoids(torch.arange(1000.0), 32)
    assert steps.dtype == torch.float32
    assert (steps[1:] - steps[:-1]).norm(dim=1).min() > 0.5
    sigma = torch.logspace(math.log10(0.002), math.log10(80), 200, dtype=torch.float64)
    embedded = sinusoids(sigma.log() / 4, 32)
    assert torch.all(embedded[1:, 16] > embedded[:-1, 16])  # the sine of the highest frequency is one-to-one


def test_fourier_features_are_those_of_the_formula() -> None:
    features = FourierFeatures(6).double()
    frequencies = features.frequencies.tolist()
    for c in (0.0, -1.55, 1.1):
        phases = [2 * math.pi * f * c for f in frequencies]
        expected = [math.cos(p) for p in phases] + [math.sin(p) for p in phases]
        assert features(torch.tensor([c], dtype=torch.float64))[0].tolist() == pytest.approx(expected, abs=1e-12)


def test_inner_product_of_fourier_features_is_the_gaussian_kernel() -> None:
    """E cos(2 pi f (c - d)) = exp(-(2 pi scale (c - d))^2 / 2) for f ~ N(0, scale^2)."""
    num = 20000
    features = FourierFeatures(2 * num).double()
    c = torch.tensor([0.3, 0.3 + 1 / (2 * math.pi * 16), 0.3 + 2 / (2 * math.pi * 16)], dtype=torch.float64)
    embedded = features(c)
    kernel = (embedded @ embedded[0] / num).tolist()
    assert kernel == pytest.approx([1, math.exp(-0.5), math.exp(-2)], abs=4 / math.sqrt(2 * num))
    assert kernel[0] == pytest.approx(1, abs=1e-12)


def test_fourier_frequencies_are_fixed_saved_and_not_trained() -> None:
    torch.manual_seed(1)
    first = ncsnpp()
    before = torch.random.get_rng_state()
    again = FourierFeatures(8)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first.state_dict()["fourier.frequencies"], again.frequencies)
    assert not any("frequencies" in name for name, _ in first.named_parameters())
    first.load_state_dict(first.state_dict() | {"fourier.frequencies": torch.arange(4.0)})
    assert first.fourier is not None
    assert torch.equal(first.fourier.frequencies, torch.arange(4.0))


@every_network
def test_zero_at_initialisation(build: Build) -> None:
    x, c_noise, labels = inputs(build)
    output = build(out_channels=4)(x.float(), c_noise.float(), labels)
    assert torch.equal(output, torch.zeros(4, 4, *SHAPES[build][1:]))
    output = build()(x.float(), c_noise.float(), labels)
    assert torch.equal(output, torch.zeros_like(output).reshape(x.shape))


@every_network
def test_images_are_independent_of_their_batch(build: Build) -> None:
    network = randomise(build(out_channels=4)).double()
    x, c_noise, labels = inputs(build)
    labels[1] = -1
    together = network(x, c_noise, labels)
    assert together.shape == (4, 4, *SHAPES[build][1:])
    assert together.is_contiguous()
    assert together.std() > 1e-2
    for i in range(4):
        alone = network(x[i : i + 1], c_noise[i : i + 1], labels[i : i + 1])
        torch.testing.assert_close(alone[0], together[i], rtol=0, atol=1e-10)


@every_network
def test_negative_labels_are_no_labels(build: Build) -> None:
    network = randomise(build()).double()
    x, c_noise, labels = inputs(build)
    without = network(x, c_noise)
    assert torch.equal(network(x, c_noise, torch.full_like(labels, -1)), without)
    assert torch.equal(network(x, c_noise, torch.full_like(labels, -7)), without)
    assert torch.equal(network(x, c_noise, torch.full_like(labels, CLASSES)), without)  # the row after the last class
    some = torch.tensor([0, -1, 2, -1])
    mixed, with_labels = network(x, c_noise, some), network(x, c_noise, some.clamp(min=0))
    torch.testing.assert_close(mixed[[1, 3]], without[[1, 3]], rtol=0, atol=1e-10)
    torch.testing.assert_close(mixed[[0, 2]], with_labels[[0, 2]], rtol=0, atol=1e-10)
    for label in range(CLASSES):
        other = network(x, c_noise, torch.full_like(labels, label))
        assert (other - without).flatten(1).abs().amax(1).min() > 1e-3


@every_network
def test_output_depends_on_the_noise_level(build: Build) -> None:
    network = randomise(build()).double()
    x, c_noise, labels = inputs(build)
    other = network(x, c_noise + 0.1, labels)
    assert (other - network(x, c_noise, labels)).flatten(1).abs().amax(1).min() > 1e-4


@augmentable
def test_augmentation_labels_of_zero_are_none(build: Build) -> None:
    network = randomise(build(augment_dim=5)).double()
    x, c_noise, labels = inputs(build)
    clean = network(x, c_noise, labels)
    assert torch.equal(network(x, c_noise, labels, torch.zeros(4, 5, dtype=torch.float64)), clean)
    told = network(x, c_noise, labels, torch.eye(4, 5))  # any floating-point type
    assert (told - clean).flatten(1).abs().amax(1).min() > 1e-3
    # a clean image uses the same function for any embedding of the augmentation
    network.get_parameter("embed_augment.weight").data.add_(100)
    assert torch.equal(network(x, c_noise, labels, torch.zeros(4, 5, dtype=torch.float64)), clean)
    plain = build().double()
    plain.load_state_dict({k: v for k, v in network.state_dict().items() if k != "embed_augment.weight"})
    assert torch.equal(plain(x, c_noise, labels), clean)


@every_network
def test_gradients_reach_every_parameter(build: Build) -> None:
    augmented = {"augment_dim": 5} if build is not mlp else {}
    network = randomise(build(**augmented)).double()
    x, c_noise, _ = inputs(build)
    conditions = [torch.tensor([0, 1, 2, -1])] + ([torch.randn(4, 5)] if augmented else [])
    network(x, c_noise, *conditions).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        rows = parameter.grad if name == "embed_label.weight" else parameter.grad.flatten()[None]
        assert torch.all(rows.abs().amax(dim=1) > 0), name


@every_network
def test_no_parameter_stays_where_it_began(build: Build) -> None:
    """Zero-initialised outputs block the gradients of earlier layers, but only for a few steps."""
    torch.manual_seed(0)
    network = build().double()
    x, c_noise, _ = inputs(build)
    labels = torch.tensor([0, 1, 2, -1])
    target = torch.randn_like(x)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(4):
        optimizer.zero_grad()
        (network(x, c_noise, labels) - target).square().mean().backward()
        optimizer.step()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


@every_network
def test_bfloat16_autocast_agrees(build: Build) -> None:
    network = randomise(build())
    x, c_noise, labels = inputs(build)
    x, c_noise = x.float(), c_noise.float()
    expected = network(x, c_noise, labels)
    with torch.autocast("cpu", torch.bfloat16):
        output = network(x, c_noise, labels)
    assert output.dtype == torch.bfloat16
    assert (output.float() - expected).norm() < 0.05 * expected.norm()


@every_network
def test_labels_for_an_unconditional_network(build: Build) -> None:
    network = build(0)
    x, c_noise, labels = inputs(build)
    with pytest.raises(UserError, match=f"^labels: this {type(network).__name__} has no classes; set num_classes"):
        network(x.float(), c_noise.float(), labels)


@augmentable
def test_augmentation_labels_for_a_network_without_them(build: Build) -> None:
    x, c_noise, labels = inputs(build)
    with pytest.raises(UserError, match="set augment_dim"):
        build()(x.float(), c_noise.float(), labels, torch.zeros(4, 9))


def test_random_frequencies_are_those_of_every_version() -> None:
    """The frequencies are not parameters, but the weights of a run depend on them."""
    expected = torch.tensor([24.65593719482422, -4.694862365722656, -34.86063003540039])
    torch.testing.assert_close(FourierFeatures(6).frequencies, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(FourierFeatures(6, scale=0.5).frequencies, expected / 32, rtol=1e-6, atol=0)
