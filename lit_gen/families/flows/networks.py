"""Networks of coupling layers. Each starts with output zero, which makes its coupling the identity."""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from lit_gen.core.errors import UserError
from lit_gen.networks.blocks import check_dropout, check_width, group_norm, zeros


class CouplingBlock(nn.Module):
    """Pre-activation residual block x + conv(drop(act(norm(conv(act(norm(x))))))) of constant width and resolution.

    Args:
        channels: Width of the block.
        dropout: Dropout probability.
    """

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = group_norm(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = group_norm(channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zeros(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        out: Tensor = x + self.conv2(self.dropout(F.silu(self.norm2(h))))
        return out


class ConvCoupling(nn.Module):
    """Residual convolutions at one resolution: (N, C, H, W) -> (N, out_channels, H, W).

    Args:
        shape: (C, H, W) of the input.
        out_channels: Channels of the output.
        channels: Width, a multiple of 8.
        num_blocks: Residual blocks.
        dropout: Dropout probability.

    Raises:
        UserError: If the width is not a multiple of 8, or dropout is not a probability.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        out_channels: int,
        channels: int = 64,
        num_blocks: int = 2,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_width("channels", channels)
        check_dropout(dropout)
        self.stem = nn.Conv2d(shape[0], channels, 3, padding=1)
        self.blocks = nn.Sequential(*(CouplingBlock(channels, dropout) for _ in range(num_blocks)))
        self.norm = group_norm(channels)
        self.out = zeros(nn.Conv2d(channels, out_channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(F.silu(self.norm(self.blocks(self.stem(x)))))
        return out


class MLPCoupling(nn.Module):
    """Multilayer perceptron on all values of an image: (N, C, H, W) -> (N, out_channels, H, W).

    Args:
        shape: (C, H, W) of the input.
        out_channels: Channels of the output.
        width: Width of the hidden layers.
        depth: Number of hidden layers.
        dropout: Dropout probability of the hidden layers.

    Raises:
        UserError: If width or depth is not positive, or dropout is not a probability.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        out_channels: int,
        width: int = 128,
        depth: int = 3,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if width < 1 or depth < 1:
            raise UserError(f"width {width} and depth {depth} must be positive; give at least 1 for each")
        check_dropout(dropout)
        self.out_shape = (out_channels, *shape[1:])
        layers: list[nn.Module] = []
        before = math.prod(shape)
        for _ in range(depth):
            layers += [nn.Linear(before, width), nn.ReLU(), nn.Dropout(dropout)]
            before = width
        self.layers = nn.Sequential(*layers)
        self.out = zeros(nn.Linear(before, math.prod(self.out_shape)))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.layers(x.flatten(1))).unflatten(1, self.out_shape)
        return out
