"""The UNet: exact identities of its blocks, conditioning, independence of images, sizes, errors."""

import math

import pytest
import torch
from torch import Tensor, nn

from lit_gen.errors import UserError
from lit_gen.networks.unet import Attention, UNet, UNetBlock, sinusoids


def randomise(network: nn.Module, seed: int = 0) -> nn.Module:
    """All parameters random, so that no zero or one of the initialisation hides an error."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        fan_in = parameter[0].numel() if parameter.dim() > 1 else 4
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / math.sqrt(fan_in)
        parameter.data.copy_(noise)
    return network


def small_unet(image_shape: tuple[int, int, int] = (2, 8, 8), num_classes: int = 3, **kwargs: object) -> UNet:
    settings: dict = {"channels": 16, "channel_mult": (1, 2), "num_blocks": 1, "attention_resolutions": (4,)} | kwargs
    network = randomise(UNet(image_shape, num_classes, **settings)).double()
    assert isinstance(network, UNet)
    return network


def batch(num: int, image_shape: tuple[int, int, int], num_classes: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(num, *image_shape, generator=generator, dtype=torch.float64)
    return x, 999 * torch.rand(num, generator=generator, dtype=torch.float64), torch.arange(num) % num_classes


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
    assert torch.all(embedded[1:, 16] > embedded[:-1, 16])  # the fastest sine is one to one


@pytest.mark.parametrize("scale_shift", [True, False])
def test_block_against_its_equation(scale_shift: bool) -> None:
    block = UNetBlock(8, 16, 6, dropout=0.0, scale_shift=scale_shift, num_heads=0).double()
    randomise(block)
    x, emb = torch.randn(2, 8, 5, 5, dtype=torch.float64), torch.randn(2, 6, dtype=torch.float64)

    def normalise(h: Tensor, norm: nn.GroupNorm) -> Tensor:
        grouped = h.reshape(len(h), norm.num_groups, -1)
        mean, var = grouped.mean(2, keepdim=True), grouped.var(2, correction=0, keepdim=True)
        h = ((grouped - mean) / (var + norm.eps).sqrt()).reshape(h.shape)
        return h * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)

    def silu(h: Tensor) -> Tensor:
        return h / (1 + (-h).exp())

    h = block.conv1(silu(normalise(x, block.norm1)))
    e = block.emb(emb)[..., None, None]
    h = normalise(h, block.norm2) * (1 + e[:, :16]) + e[:, 16:] if scale_shift else normalise(h + e, block.norm2)
    expected = block.skip(x) + block.conv2(silu(h))
    torch.testing.assert_close(block(x, emb), expected, rtol=0, atol=1e-12)


def test_attention_against_explicit_softmax() -> None:
    attention = Attention(8, num_heads=2).double()
    randomise(attention)
    x = torch.randn(2, 8, 3, 4, dtype=torch.float64)
    tokens = attention.norm(x).reshape(2, 8, 12).transpose(1, 2)
    q, k, v = attention.qkv(tokens).chunk(3, dim=2)
    heads = []
    for head in (slice(0, 4), slice(4, 8)):
        weights = (q[..., head] @ k[..., head].transpose(1, 2) / 2).softmax(dim=2)
        heads.append(weights @ v[..., head])
    expected = x + attention.out(torch.cat(heads, dim=2)).transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(attention(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale_shift", [True, False])
def test_gradients_of_a_block_with_attention(scale_shift: bool) -> None:
    block = UNetBlock(8, 8, 3, dropout=0.0, scale_shift=scale_shift, num_heads=2).double()
    randomise(block)
    x = torch.randn(2, 8, 3, 3, dtype=torch.float64, requires_grad=True)
    emb = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(block, (x, emb), fast_mode=True)


def test_gradients_reach_every_parameter() -> None:
    network = small_unet()
    x, c_noise, labels = batch(4, (2, 8, 8))
    network(x, c_noise, labels).square().sum().backward()
    network(x, c_noise).square().sum().backward()  # the row of "no class"
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        rows = parameter.grad if name == "embed_label.weight" else parameter.grad.flatten()[None]
        assert torch.all(rows.abs().amax(dim=1) > 0), name


@pytest.mark.parametrize("attention_resolutions", [(), (4,), (8, 4)])
def test_zero_at_initialisation(attention_resolutions: tuple[int, ...]) -> None:
    network = UNet((1, 8, 8), 10, 16, (1, 2), attention_resolutions=attention_resolutions)
    output = network(torch.randn(3, 1, 8, 8), torch.rand(3), torch.arange(3))
    assert torch.equal(output, torch.zeros(3, 1, 8, 8))


def test_output_depends_on_noise_level_and_label() -> None:
    network = small_unet()
    x, c_noise, labels = batch(1, (2, 8, 8))

    def distance(a: Tensor, b: Tensor) -> float:
        return (a - b).abs().max().item()

    output = network(x, c_noise, labels)
    assert distance(output, network(x, c_noise + 1, labels)) > 1e-3
    assert distance(output, network(x, c_noise, labels + 1)) > 1e-3
    assert distance(output, network(x, c_noise)) > 1e-3
    # no labels is the class after the last
    assert distance(network(x, c_noise), network(x, c_noise, labels + 3)) == 0


def test_every_block_is_conditioned() -> None:
    network = small_unet(num_classes=0)
    x, c_noise, _ = batch(1, (2, 8, 8))
    seen = []
    for module in network.modules():
        if isinstance(module, UNetBlock):
            module.emb.register_forward_hook(lambda *hook: seen.append(hook[2]))
    network(x, c_noise)
    network(x, c_noise + 1)
    blocks = len(seen) // 2
    assert blocks == 2 + 2 + 2 * 2  # encoder, middle, decoder
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(seen[:blocks], seen[blocks:], strict=True))


@pytest.mark.parametrize(
    "image_shape, channel_mult",
    [
        ((1, 8, 8), (1, 2)),
        ((1, 8, 8), (3, 2)),
        ((1, 4, 4), (1,)),
        ((1, 28, 28), (1, 2, 2)),
        ((3, 32, 32), (1, 1, 2, 2)),
        ((4, 8, 16), (1, 2)),
    ],
)
def test_images_are_independent_of_their_batch(
    image_shape: tuple[int, int, int], channel_mult: tuple[int, ...]
) -> None:
    network = small_unet(image_shape, channel_mult=channel_mult, attention_resolutions=()).float()
    x, c_noise, labels = batch(5, image_shape)
    x, c_noise = x.float(), c_noise.float()
    together = network(x, c_noise, labels)
    assert together.shape == x.shape
    assert together.std() > 1e-2
    for i in range(5):
        alone = network(x[i : i + 1], c_noise[i : i + 1], labels[i : i + 1])
        torch.testing.assert_close(alone[0], together[i], rtol=1e-5, atol=1e-5)


def test_memory_format_changes_nothing() -> None:
    network = small_unet((3, 8, 8))
    x, c_noise, labels = batch(2, (3, 8, 8))
    expected = network(x, c_noise, labels)
    assert expected.is_contiguous()
    channels_last = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(network(channels_last, c_noise, labels), expected, rtol=0, atol=1e-12)
    network.to(memory_format=torch.contiguous_format)
    torch.testing.assert_close(network(x, c_noise, labels), expected, rtol=0, atol=1e-12)


def test_bfloat16_autocast_agrees() -> None:
    network = small_unet().float()
    x, c_noise, labels = batch(2, (2, 8, 8))
    x, c_noise = x.float(), c_noise.float()
    expected = network(x, c_noise, labels)
    with torch.autocast("cpu", torch.bfloat16):
        output = network(x, c_noise, labels)
    assert output.dtype == torch.bfloat16
    assert (output.float() - expected).norm() < 0.05 * expected.norm()


def test_dropout_acts_in_training_only() -> None:
    network = small_unet(dropout=0.5)
    x, c_noise, labels = batch(2, (2, 8, 8))
    assert not torch.equal(network(x, c_noise, labels), network(x, c_noise, labels))
    network.eval()
    assert torch.equal(network(x, c_noise, labels), network(x, c_noise, labels))


def test_size_of_the_cifar10_network_of_ddpm() -> None:
    with torch.device("meta"):
        network = UNet((3, 32, 32), 0, 128, (1, 2, 2, 2), 2, (16,), dropout=0.1, scale_shift=False)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(35.7e6, rel=0.03)


@pytest.mark.parametrize(
    "image_shape, settings, message",
    [
        ((1, 8, 8), {}, "images of 8x8 do not suit the 3 levels of channel_mult"),
        ((1, 28, 28), {"channel_mult": (1, 1, 1, 1)}, "multiples of 8 and at least 32"),
        ((1, 32, 36), {"channel_mult": (1, 1, 1, 1)}, "multiples of 8"),
        ((1, 32, 32), {"channels": 20}, "channels must be a positive multiple of 8, got 20"),
        ((1, 32, 32), {"attention_resolutions": (4, 16)}, r"heights \[4\], but the levels have .* \[32, 16, 8\]"),
        ((1, 32, 32), {"channel_mult": ()}, "must be positive"),
        ((1, 32, 32), {"num_blocks": 0}, "must be positive"),
    ],
)
def test_unsuitable_settings(image_shape: tuple[int, int, int], settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        UNet(image_shape, **settings)


def test_labels_for_an_unconditional_network() -> None:
    network = UNet((1, 8, 8), 0, 16, (1, 2))
    with pytest.raises(UserError, match="num_classes"):
        network(torch.zeros(1, 1, 8, 8), torch.zeros(1), torch.zeros(1, dtype=torch.long))
