"""Shared convolutional blocks: residual blocks, and the trunks image -> vector and vector -> image.

A trunk works at the sizes H, H/2, H/4, ... down to 4x4 (or the first odd size: 28 -> 14 -> 7). Its width doubles at
every halving, up to a limit. Residual sums are divided by sqrt(2), which keeps the variance of the signal at any depth.
"""

import math
from typing import TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

from lit_gen.core.errors import UserError

MIN_SIZE = 4
Module = TypeVar("Module", bound=nn.Module)


def group_norm(channels: int) -> nn.GroupNorm:
    """Return a group normalisation with groups of at least four channels, and at most 32 groups."""
    return nn.GroupNorm(math.gcd(32, channels // 4), channels)


def check_width(name: str, channels: int) -> None:
    """Raise a UserError unless `channels`, the value of the argument `name`, is a positive multiple of 8."""
    if channels < 8 or channels % 8:
        raise UserError(f"{name}: {channels} is not a positive multiple of 8; choose one, such as 64")


def check_positive(name: str, value: int) -> None:
    """Raise a UserError unless `value`, the value of the argument `name`, is at least 1."""
    if value < 1:
        raise UserError(f"{name}: {value} is not positive; give 1 or more")


def check_dropout(dropout: float) -> None:
    """Raise a UserError unless a network's `dropout` is a probability below 1."""
    if not 0 <= dropout < 1:
        raise UserError(f"model.network.dropout: {dropout} is not a probability below 1; give a number in [0, 1)")


def multihead_attention(qkv: Tensor, num_heads: int) -> Tensor:
    """Return softmax(q k^T / sqrt(d)) v of every head, concatenated (N, T, C).

    Args:
        qkv: Concatenated q, k and v of all tokens, (N, T, 3C).
        num_heads: Number of heads, a divisor of C.
    """
    # (N, T, 3C) -> 3 x (N, heads, T, d)
    q, k, v = qkv.unflatten(2, (3, num_heads, -1)).permute(2, 0, 3, 1, 4).unbind()
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def zeros(module: Module) -> Module:
    """Set all parameters of a module to zero and return it."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def halvings(image_shape: tuple[int, int, int]) -> list[tuple[int, int]]:
    """Return the sizes (H, W) from that of the image down, halved while they remain integers of at least 4.

    Raises:
        UserError: If height or width is less than 8 or not a multiple of 4.
    """
    _, height, width = image_shape
    if min(height, width) < 8 or height % 4 or width % 4:
        raise UserError(
            f"images of {height}x{width} do not suit this network, which needs a height and width of at least 8 and "
            "multiples of 4; resize or pad the images"
        )
    sizes = [(height, width)]
    while min(height, width) >= 2 * MIN_SIZE and height % 2 == width % 2 == 0:
        height, width = height // 2, width // 2
        sizes.append((height, width))
    return sizes


class ResBlock(nn.Module):
    """Pre-activation residual block: y = (skip(x) + conv(act(norm(conv(act(norm(x))))))) / sqrt(2).

    Args:
        in_channels: Width of x (N, C_in, H, W).
        out_channels: Width of y (N, C_out, H, W).
        norm: Use group normalisation.
    """

    def __init__(self, in_channels: int, out_channels: int, norm: bool) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels) if norm else nn.Identity()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels) if norm else nn.Identity()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.leaky_relu(self.norm1(x), 0.2))
        h = self.conv2(F.leaky_relu(self.norm2(h), 0.2))
        out: Tensor = (self.skip(x) + h) * math.sqrt(0.5)
        return out


class Contraction(nn.Module):
    """Trunk from image to vector: (N, C, H, W) -> (N, features), with residual blocks and average pooling.

    Args:
        image_shape: (C, H, W) of the images.
        features: Width of the output; 0 returns the last feature maps, flattened.
        channels: Width at full resolution; it doubles at every halving.
        max_channels: Maximum width.
        num_blocks: Number of residual blocks per resolution.
        norm: Use group normalisation.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        features: int,
        *,
        channels: int,
        max_channels: int,
        num_blocks: int,
        norm: bool,
    ) -> None:
        super().__init__()
        check_positive("num_blocks", num_blocks)
        sizes, widths = _levels(image_shape, channels, max_channels)
        layers: list[nn.Module] = [nn.Conv2d(image_shape[0], widths[0], 3, padding=1)]
        for level, width in enumerate(widths):
            if level:
                layers.append(nn.AvgPool2d(2))
            before = widths[max(level - 1, 0)]
            layers += [ResBlock(before if i == 0 else width, width, norm) for i in range(num_blocks)]
        layers += [group_norm(widths[-1]) if norm else nn.Identity(), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers)
        initialise(self.layers)
        self.num_features = features or widths[-1] * math.prod(sizes[-1])
        self.out = nn.Linear(widths[-1] * math.prod(sizes[-1]), features) if features else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.layers(x).flatten(1))
        return out


class Expansion(nn.Module):
    """Trunk from vector to image: (N, features) -> (N, C, H, W), with residual blocks and nearest-neighbour upsampling.

    Args:
        image_shape: (C, H, W) of the images.
        features: Width of the input.
        channels: Width at full resolution; it doubles at every halving.
        max_channels: Maximum width.
        num_blocks: Number of residual blocks per resolution.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], features: int, *, channels: int, max_channels: int, num_blocks: int
    ) -> None:
        super().__init__()
        check_positive("num_blocks", num_blocks)
        sizes, widths = _levels(image_shape, channels, max_channels)
        self.start_shape = (widths[-1], *sizes[-1])
        self.start = nn.Linear(features, math.prod(self.start_shape))
        layers: list[nn.Module] = []
        before = widths[-1]
        for level, width in reversed(list(enumerate(widths))):
            layers += [ResBlock(before if i == 0 else width, width, norm=True) for i in range(num_blocks)]
            before = width
            if level:
                layers.append(nn.Upsample(scale_factor=2))
        layers += [group_norm(before), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers)
        initialise(self.layers)
        self.out = nn.Conv2d(before, image_shape[0], 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        images: Tensor = self.out(self.layers(self.start(z).unflatten(1, self.start_shape)))
        return images


def _levels(
    image_shape: tuple[int, int, int], channels: int, max_channels: int
) -> tuple[list[tuple[int, int]], list[int]]:
    """Return the size and the width of every level, from full resolution down."""
    check_width("channels", channels)
    check_width("max_channels", max_channels)
    sizes = halvings(image_shape)
    return sizes, [min(channels * 2**level, max_channels) for level in range(len(sizes))]


def initialise(layers: nn.Module) -> None:
    """Apply He initialisation to all convolutions, with zero biases."""
    for module in layers.modules():
        if isinstance(module, nn.Conv2d):
            # Slope 1 means no activation: the 1x1 projection of a skip path is not preceded by one.
            nn.init.kaiming_normal_(module.weight, a=1.0 if module.kernel_size == (1, 1) else 0.2)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
