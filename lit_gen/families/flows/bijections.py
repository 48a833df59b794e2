r"""Invertible maps with tractable Jacobians, the layers of a normalizing flow.

A bijection f maps x to y = f(x), from data towards noise, and returns log |det df/dx| of each image. Densities follow
by the change of variables, log p(x) = log p(f(x)) + log |det df/dx|.

Papers: NICE, Dinh et al. 2014, https://arxiv.org/abs/1410.8516; RealNVP, Dinh et al. 2016,
https://arxiv.org/abs/1605.08803; Glow, Kingma and Dhariwal 2018, https://arxiv.org/abs/1807.03039
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_gen.core.errors import UserError
from lit_gen.core.pixels import BIN_WIDTH

Shape = tuple[int, ...]


class Bijection(nn.Module, ABC):
    """An invertible map y = f(x).

    Images are (N, C, H, W). A conditional map also depends on a context (N, E, H, W).
    """

    def out_shape(self, shape: Shape) -> Shape:
        """Return the shape of y for one image x of the given shape; by default the same."""
        return shape

    @abstractmethod
    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return y and log |det df/dx|, (N,)."""

    @abstractmethod
    def inverse(self, y: Tensor, context: Tensor | None = None) -> Tensor:
        """Return x."""

    def initialise(self, x: Tensor) -> Tensor:
        """Set data-dependent initial values from x, if the map has any, and return y."""
        out: Tensor = self(x)[0]
        return out


class Compose(Bijection):
    """Composition of bijections.

    Args:
        parts: The bijections, the first to apply first.
    """

    def __init__(self, parts: Sequence[Bijection]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def out_shape(self, shape: Shape) -> Shape:
        for part in _of(self.parts):
            shape = part.out_shape(shape)
        return shape

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        log_det = x.new_zeros(len(x))
        for part in _of(self.parts):
            x, term = part(x, context)
            log_det = log_det + term
        return x, log_det

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Tensor:
        for part in reversed(_of(self.parts)):
            y = part.inverse(y, context)
        return y

    def initialise(self, x: Tensor) -> Tensor:
        for part in _of(self.parts):
            x = part.initialise(x)
        return x


class UnitInterval(Bijection):
    """Map of dequantised values x from [-1, 1] to y = (127.5 x + 128) / 256 in [0, 1].

    The bin of an 8-bit value u becomes [u / 256, (u + 1) / 256].
    """

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        log_det = -x[0].numel() * math.log(256 * BIN_WIDTH)
        return (x / BIN_WIDTH + 128) / 256, x.new_full((len(x),), log_det)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Tensor:
        return (256 * y - 128) * BIN_WIDTH


class Logit(Bijection):
    """y = logit(alpha + (1 - 2 alpha) x) for x in [0, 1], which makes the values unbounded.

    Args:
        alpha: Margin in [0, 1/2); if positive, every x in [0, 1] has a finite y.

    Raises:
        UserError: If alpha is out of range.
    """

    def __init__(self, alpha: float = 0.05) -> None:
        super().__init__()
        if not 0 <= alpha < 0.5:
            raise UserError(f"model.alpha: {alpha} is not in [0, 1/2); use 0.05, the value of RealNVP")
        self.alpha = alpha

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        p = self.alpha + (1 - 2 * self.alpha) * x
        y = p.log() - torch.log1p(-p)
        log_derivative = math.log(1 - 2 * self.alpha) - p.log() - torch.log1p(-p)
        return y, sum_over_image(log_derivative)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Tensor:
        return (torch.sigmoid(y) - self.alpha) / (1 - 2 * self.alpha)


class DiagonalScaling(Bijection):
    """y = x exp(log_scale) with a scale per dimension, which gives a volume-preserving flow the spread of the data.

    `initialise` sets the scales from a batch, so that y starts with standard deviation 1.

    Args:
        shape: Shape of one image.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x * self.log_scale.exp(), self.log_scale.sum().expand(len(x))

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Tensor:
        return y * (-self.log_scale).exp()

    @torch.no_grad()
    def initialise(self, x: Tensor) -> Tensor:
        self.log_scale.copy_(-x.std(0, correction=0).clamp(min=1e-6).log())
        out: Tensor = self(x)[0]
        return out


class ActNorm(Bijection):
    """y = (x - mean) / exp(log_std) with a mean and a standard deviation per channel.

    Both are trained parameters. `initialise` sets them from a batch, so that y starts with mean 0 and standard
    deviation 1. Only `initialise` does so: no forward pass counts as the first one, also not after a checkpoint is
    loaded.

    Args:
        num_channels: C.
    """

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(num_channels, 1, 1))
        self.log_std = nn.Parameter(torch.zeros(num_channels, 1, 1))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        log_det = -self.log_std.sum() * x[0, 0].numel()
        return (x - self.mean) * (-self.log_std).exp(), log_det.expand(len(x))

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Tensor:
        return y * self.log_std.exp() + self.mean

    @torch.no_grad()
    def initialise(self, x: Tensor) -> Tensor:
        std, mean = torch.std_mean(x, dim=(0, 2, 3), correction=0)
        self.mean.copy_(mean[:, None, None])
        self.log_std.copy_(std.clamp(min=1e-6).log()[:, None, None])
        out: Tensor = self(x)[0]
        return out


class InvertibleConv(Bijection):
    """y = W x at every pixel, a learned mixing of the channels, with W = P L (U + diag(s)).

    P is a fixed permutation, and the signs of s are fixed. L is lower triangular with ones on its diagonal, and U is
    strictly upper triangular, so log |det| = H W sum(log |s|) costs nothing and W is never singular. W starts as a
    random rotation. Under autocast, it is still computed in the precision of x: bfloat16 would keep only eight bits of
    an image.

    Args:
        num_channels: C.
    """

    permutation: Tensor
    sign: Tensor

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        rotation = torch.linalg.qr(torch.randn(num_channels, num_channels, dtype=torch.float64))[0]
        permutation, lower, upper = torch.linalg.lu(rotation)
        self.register_buffer("permutation", permutation.float())
        self.register_buffer("sign", upper.diagonal().sign().float())
        self.lower = nn.Parameter(lower.float().tril(-1))
        self.upper = nn.Parameter(upper.float().triu(1))
        self.log_s = nn.Parameter(upper.diagonal().abs().log().float())

    def factors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return P, L and U + diag(s), each (C, C)."""
        identity = torch.eye(len(self.sign), dtype=self.lower.dtype, device=self.lower.device)
        upper = self.upper.triu(1) + torch.diag(self.sign * self.log_s.exp())
        return self.permutation, self.lower.tril(-1) + identity, upper

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        with torch.autocast(x.device.type, enabled=False):
            permutation, lower, upper = self.factors()
            y = (permutation @ lower @ upper @ x.flatten(2)).view_as(x)
        return y, (self.log_s.sum() * x[0, 0].numel()).expand(len(x))

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Tensor:
        with torch.autocast(y.device.type, enabled=False):
            permutation, lower, upper = self.factors()
            x = torch.linalg.solve_triangular(lower, permutation.T @ y.flatten(2), upper=False, unitriangular=True)
            out: Tensor = torch.linalg.solve_triangular(upper, x, upper=True).view_as(y)
            return out


class Squeeze(Bijection):
    """Rearrangement of every 2x2 pixels into one with four times the channels: (N, C, 2H, 2W) -> (N, 4C, H, W).

    The channels of a pixel stay together, so each half of the 4C channels holds whole pixels.
    """

    def out_shape(self, shape: Shape) -> Shape:
        channels, height, width = shape
        if height % 2 or width % 2:
            raise UserError(
                f"model: images of {height}x{width} cannot be halved; use fewer levels, or resize or pad the images"
            )
        return 4 * channels, height // 2, width // 2

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).permute(0, 3, 5, 1, 2, 4)
        return y.flatten(1, 3), x.new_zeros(len(x))

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Tensor:
        x = y.unflatten(1, (2, 2, -1)).permute(0, 3, 4, 1, 5, 2)
        out: Tensor = x.flatten(4, 5).flatten(2, 3)
        return out


class MultiScale(Bijection):
    """Levels of a flow; after each but the last, half of the channels join the latent: (N, C, H, W) -> (N, C H W).

    Glow's learned density of the half that leaves, given the half that stays, is a final affine coupling of the level.

    Args:
        shape: (C, H, W) of one image.
        levels: Bijection of every level, with an even number of output channels except for the last level.
    """

    def __init__(self, shape: Shape, levels: Sequence[Bijection]) -> None:
        super().__init__()
        self.levels = nn.ModuleList(levels)
        self.left: list[Shape] = []
        """Shape of the part of the latent that leaves after each level."""
        for level in levels:
            channels, *size = level.out_shape(shape)
            shape = (channels if level is levels[-1] else channels // 2, *size)
            self.left.append(shape)

    def out_shape(self, shape: Shape) -> Shape:
        return (math.prod(shape),)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        latents, log_det = [], x.new_zeros(len(x))
        for level in _of(self.levels):
            x, term = level(x, context)
            log_det = log_det + term
            x, z = (x, x) if level is self.levels[-1] else x.chunk(2, 1)
            latents.append(z.flatten(1))
        return torch.cat(latents, 1), log_det

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Tensor:
        latents = y.split([math.prod(shape) for shape in self.left], 1)
        x = None
        for level, z, shape in reversed(list(zip(_of(self.levels), latents, self.left, strict=True))):
            z = z.unflatten(1, shape)
            x = level.inverse(z if x is None else torch.cat([x, z], 1), context)
        assert x is not None
        out: Tensor = x
        return out

    def initialise(self, x: Tensor) -> Tensor:
        latents = []
        for level in _of(self.levels):
            x = level.initialise(x)
            x, z = (x, x) if level is self.levels[-1] else x.chunk(2, 1)
            latents.append(z.flatten(1))
        return torch.cat(latents, 1)


def _of(modules: nn.ModuleList) -> list[Bijection]:
    return cast(list[Bijection], list(modules))


def sum_over_image(x: Tensor) -> Tensor:
    """Return the sum over all dimensions but the first: (N, ...) -> (N,)."""
    return x.flatten(1).sum(1)


def squash(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return sigmoid(x), and the logarithm of its derivative summed over each image, (N,)."""
    return torch.sigmoid(x), sum_over_image(F.logsigmoid(x) + F.logsigmoid(-x))
