"""UNet: exact identities of its blocks and filters, conditioning, independence of images, sizes, errors."""

import hashlib
import math

import pytest
import torch
from torch import Tensor, nn

from lit_gen.core.errors import UserError
from lit_gen.families.diffusion import UNet
from lit_gen.families.diffusion.networks.unet import Attention, Resample, UNetBlock
from tests.families.random_networks import batch, randomise


def small_unet(image_shape: tuple[int, int, int] = (2, 8, 8), num_classes: int = 3, **kwargs: object) -> UNet:
    settings: dict = {"channels": 16, "channel_mult": (1, 2), "num_blocks": 1, "attention_resolutions": (4,)} | kwargs
    return randomise(UNet(image_shape, num_classes, **settings)).double()


@pytest.mark.parametrize(
    "name, image_shape, num_classes, settings, layout, weights, outputs",
    [
        (
            "unconditional",
            (1, 8, 8),
            0,
            {"channels": 16, "channel_mult": (1, 3), "num_blocks": 1},
            "1c308bfe8e806aaf",
            7476.994463056541,
            [-0.005469683845236939, 1.0492696256657197, 14.991513683861672],
        ),
        (
            "conditional",
            (3, 16, 16),
            3,
            {"channels": 16, "attention_resolutions": (8,), "head_channels": 16},
            "82cc25ca4df7b3c3",
            13808.561234651199,
            [-0.30643666736640773, -10.228080085593515, 155.20568424207113],
        ),
        (
            "shift only",
            (2, 12, 12),
            3,
            {
                "channels": 8,
                "num_blocks": 1,
                "channel_mult": (1, 2),
                "scale_shift": False,
                "attention_resolutions": (12, 6),
            },
            "14df1269b798142a",
            2343.3585112394094,
            [-0.08811384335109522, -1.7918951539855548, 77.42735806253445],
        ),
    ],
)
def test_network_without_options_is_what_it_was(
    name: str,
    image_shape: tuple[int, int, int],
    num_classes: int,
    settings: dict,
    layout: str,
    weights: float,
    outputs: list[float],
) -> None:
    """Names and shapes of the weights, initial values and outputs are as before the options were added."""
    torch.manual_seed(0)
    network = UNet(image_shape, num_classes, **settings)
    named = " ".join(f"{key}{tuple(value.shape)}" for key, value in network.state_dict().items())
    assert hashlib.sha256(named.encode()).hexdigest()[:16] == layout
    assert sum(p.detach().double().abs().sum().item() for p in network.parameters()) == pytest.approx(weights, rel=1e-9)
    network = randomise(network).double()
    x, c_noise, labels = batch(2, image_shape)
    with torch.no_grad():
        output = network(x, c_noise, labels if num_classes else None)
    projection = torch.arange(output.numel(), dtype=torch.float64).cos().reshape(output.shape)
    found = [output.flatten()[0].item(), (output * projection).sum().item(), output.square().sum().item()]
    assert found == pytest.approx(outputs, rel=1e-9, abs=1e-9)


def matrix_of(taps: tuple[float, ...], size: int) -> Tensor:
    """Return the filter that halves a line of `size` values, as a matrix (size / 2, size)."""
    matrix = torch.zeros(size // 2, size, dtype=torch.float64)
    for n in range(size // 2):
        for k, tap in enumerate(taps):
            if 0 <= (m := 2 * n + k - (len(taps) // 2 - 1)) < size:
                matrix[n, m] = tap / sum(taps)
    return matrix


FILTERS = [(1.0, 1.0), (1.0, 3.0, 3.0, 1.0), (-1.0, 0.5, 7.0, 7.0, 0.5, -1.0)]


@pytest.mark.parametrize("taps", FILTERS)
def test_resampling_is_the_matrix_of_its_filter(taps: tuple[float, ...]) -> None:
    x = torch.randn(2, 3, 8, 12, dtype=torch.float64)
    rows, columns = matrix_of(taps, 8), matrix_of(taps, 12)
    down = Resample(taps, up=False).double()(x)
    torch.testing.assert_close(down, rows @ x @ columns.T, rtol=0, atol=1e-7)  # float32 taps
    up = Resample(taps, up=True).double()(down)
    torch.testing.assert_close(up, (2 * rows.T) @ down @ (2 * columns), rtol=0, atol=1e-6)


@pytest.mark.parametrize("taps", FILTERS)
def test_resampling_up_is_four_times_the_adjoint_of_down(taps: tuple[float, ...]) -> None:
    x, y = torch.randn(2, 3, 8, 12, dtype=torch.float64), torch.randn(2, 3, 4, 6, dtype=torch.float64)
    down, up = Resample(taps, up=False).double(), Resample(taps, up=True).double()
    assert (up(y) * x).sum().item() == pytest.approx(4 * (y * down(x)).sum().item(), rel=1e-12)


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1)])
def test_resampling_keeps_a_constant_exactly(taps: tuple[float, ...]) -> None:
    border = len(taps) // 2 - 1
    for up in (False, True):
        found = Resample(taps, up)(torch.full((1, 2, 16, 16), 1.5))
        inside = found[:, :, border : len(found[0, 0]) - border, border : len(found[0, 0]) - border]
        assert torch.equal(inside, torch.full_like(inside, 1.5))


def test_resampling_with_two_taps_averages_and_repeats() -> None:
    x = torch.randn(2, 3, 4, 6)
    torch.testing.assert_close(Resample((1, 1), up=False)(x), nn.functional.avg_pool2d(x, 2))
    assert torch.equal(Resample((1, 1), up=True)(x), x.repeat_interleave(2, 2).repeat_interleave(2, 3))


@pytest.mark.parametrize("scale_shift", [True, False])
@pytest.mark.parametrize("resample", [None, Resample((1, 3, 3, 1), up=False), Resample((1, 1), up=True)])
@pytest.mark.parametrize("skip_scale", [1.0, 0.6])
def test_block_against_its_equation(scale_shift: bool, resample: Resample | None, skip_scale: float) -> None:
    block = UNetBlock(
        8, 16, 6, dropout=0.0, scale_shift=scale_shift, num_heads=0, skip_scale=skip_scale, resample=resample
    ).double()
    randomise(block)
    x, emb = torch.randn(2, 8, 6, 4, dtype=torch.float64), torch.randn(2, 6, dtype=torch.float64)

    def normalise(h: Tensor, norm: nn.GroupNorm) -> Tensor:
        grouped = h.reshape(len(h), norm.num_groups, -1)
        mean, var = grouped.mean(2, keepdim=True), grouped.var(2, correction=0, keepdim=True)
        h = ((grouped - mean) / (var + norm.eps).sqrt()).reshape(h.shape)
        return h * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)

    def silu(h: Tensor) -> Tensor:
        return h / (1 + (-h).exp())

    def resampled(h: Tensor) -> Tensor:
        return h if resample is None else resample(h)

    h = block.conv1(resampled(silu(normalise(x, block.norm1))))
    e = block.emb(emb)[..., None, None]
    h = normalise(h, block.norm2) * (1 + e[:, :16]) + e[:, 16:] if scale_shift else normalise(h + e, block.norm2)
    expected = skip_scale * (block.skip(resampled(x)) + block.conv2(silu(h)))
    torch.testing.assert_close(block(x, emb), expected, rtol=0, atol=1e-12)


def test_skip_scale_keeps_the_variance() -> None:
    """A block with paths of equal variance keeps it; the second path of a new block is zero."""
    torch.manual_seed(0)
    x, emb = torch.randn(16, 32, 16, 16), torch.zeros(16, 8)
    mean_square_of_silu = 0.3558  # for a standard normal argument
    for skip_scale, num_heads, variance in ((1.0, 0, 2), (math.sqrt(0.5), 0, 1), (math.sqrt(0.5), 2, 0.5)):
        block = UNetBlock(32, 32, 8, dropout=0, scale_shift=True, num_heads=num_heads, skip_scale=skip_scale)
        block.requires_grad_(False)
        begins = block(x, emb)
        torch.testing.assert_close(begins, x * skip_scale ** (2 if num_heads else 1))
        block.emb.bias.zero_()
        block.conv2.weight.normal_(std=1 / math.sqrt(9 * 32 * mean_square_of_silu))
        inside = block(x, emb)[:, :, 1:-1, 1:-1]
        # an attention with zero output halves it once more
        assert inside.var().item() == pytest.approx(variance, rel=0.05)


def test_image_joins_the_encoder_at_every_smaller_size() -> None:
    network = small_unet(
        (2, 16, 16), channel_mult=(1, 2, 2), resample_filter=(1, 1), progressive_input=True, skip_scale=0.6
    )
    assert list(network.pyramid) == ["1", "3"]
    entered, left = {}, {}
    for position, module in enumerate(network.down):

        def record(module: nn.Module, args: tuple[Tensor, ...], output: Tensor, position: int = position) -> None:
            entered[position], left[position] = args[0], output

        module.register_forward_hook(record)
    x, c_noise, labels = batch(2, (2, 16, 16))
    network(x, c_noise, labels)
    image = x
    for joins in (1, 3):
        conv = network.get_submodule(f"pyramid.{joins}.1")
        image = 0.6 * (left[joins] + conv(nn.functional.avg_pool2d(image, 2)))
        torch.testing.assert_close(entered[joins + 1], image, rtol=0, atol=1e-12)


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


@pytest.mark.parametrize("attention_resolutions", [(), (4,), (8, 4)])
def test_zero_at_initialisation(attention_resolutions: tuple[int, ...]) -> None:
    network = UNet((1, 8, 8), 10, channels=16, channel_mult=(1, 2), attention_resolutions=attention_resolutions)
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
    # None is the class after the last
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


def test_dropout_acts_in_training_only() -> None:
    network = small_unet(dropout=0.5)
    x, c_noise, labels = batch(2, (2, 8, 8))
    assert not torch.equal(network(x, c_noise, labels), network(x, c_noise, labels))
    network.eval()
    assert torch.equal(network(x, c_noise, labels), network(x, c_noise, labels))


def test_size_of_the_cifar10_network_of_ddpm() -> None:
    with torch.device("meta"):
        network = UNet(
            (3, 32, 32),
            channels=128,
            channel_mult=(1, 2, 2, 2),
            num_blocks=2,
            attention_resolutions=(16,),
            dropout=0.1,
            scale_shift=False,
        )
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(35.7e6, rel=0.03)


@pytest.mark.parametrize(
    "image_shape, settings, message",
    [
        ((1, 8, 8), {}, "channel_mult: images of 8x8 do not fit 3 levels"),
        ((1, 28, 28), {"channel_mult": (1, 1, 1, 1)}, "multiples of 8 and at least 32"),
        ((1, 32, 36), {"channel_mult": (1, 1, 1, 1)}, "multiples of 8"),
        ((1, 32, 32), {"channels": 20}, "channels: 20 is not a positive multiple of 8"),
        ((1, 32, 32), {"attention_resolutions": (4, 16)}, r"heights \[4\]; choose from \[32, 16, 8\]"),
        ((1, 32, 32), {"channel_mult": ()}, "must be positive"),
        ((1, 32, 32), {"num_blocks": 0}, "must be positive"),
        ((1, 32, 32), {"resample_filter": (1, 2, 1)}, "even number of taps"),
        ((1, 32, 32), {"resample_filter": (1, 2, 2, 3)}, "symmetric"),
        ((1, 32, 32), {"resample_filter": (-1, -1)}, "positive sum"),
        ((1, 32, 32), {"progressive_input": True}, "set resample_filter"),
    ],
)
def test_unsuitable_settings(image_shape: tuple[int, int, int], settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        UNet(image_shape, **settings)
