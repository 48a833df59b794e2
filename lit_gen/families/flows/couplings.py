r"""Coupling layers: one part of x stays fixed and parametrises the map of the other part.

With x = (x_a, x_b), y_a = x_a and y_b = T(x_b; theta(x_a)) for a T that is monotone in each value, the Jacobian is
triangular and log |det| = sum log T'(x_b). The inverse does not need that of the network theta, which can be any
network.

Papers: additive, Dinh et al. 2014, https://arxiv.org/abs/1410.8516; affine, Dinh et al. 2016,
https://arxiv.org/abs/1605.08803; rational-quadratic spline, Durkan et al. 2019, https://arxiv.org/abs/1906.04032
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_gen.core.errors import UserError
from lit_gen.families.flows.bijections import Bijection, sum_over_image

NetworkFactory = Callable[[tuple[int, int, int], int], nn.Module]
"""Factory of a coupling network, called with the shape (C, H, W) of its input and the number of output channels."""


class Partition(nn.Module, ABC):
    """Partition of an image into a part that stays fixed and a part that is transformed."""

    @abstractmethod
    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the input of the network, and the part to transform."""

    @abstractmethod
    def merge(self, x: Tensor, moved: Tensor) -> Tensor:
        """Return x with the transformed part in its place."""


class Channels(Partition):
    """Partition into halves of the channels: the first stays fixed, the second is transformed.

    Args:
        swap: Transform the first half in place of the second.
    """

    def __init__(self, swap: bool = False) -> None:
        super().__init__()
        self.swap = swap

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = x.chunk(2, 1)
        return (second, first) if self.swap else (first, second)

    def merge(self, x: Tensor, moved: Tensor) -> Tensor:
        stays, _ = self.split(x)
        return torch.cat([moved, stays] if self.swap else [stays, moved], 1)


class Masked(Partition):
    """Partition by a mask: values stay fixed if it is true; the others are transformed, and are zero for the network.

    Args:
        mask: Boolean mask of the shape of an image.
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x * self.mask, x

    def merge(self, x: Tensor, moved: Tensor) -> Tensor:
        return torch.where(self.mask, x, moved)


def checkerboard(shape: tuple[int, int, int], parity: int) -> Tensor:
    """Return a mask (C, H, W) that is true if row + column + parity is odd."""
    _, height, width = shape
    squares = torch.arange(height)[:, None] + torch.arange(width)
    return ((squares + parity) % 2 == 1).expand(shape).clone()


def alternating(shape: tuple[int, int, int], parity: int) -> Tensor:
    """Return a mask (C, H, W) of every other value of the flattened image, as in NICE."""
    return ((torch.arange(math.prod(shape)) + parity) % 2 == 1).reshape(shape)


class Transform(ABC):
    """A monotone map T of single values with parameters theta, the identity for theta = 0."""

    num_params: int

    @abstractmethod
    def __call__(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return T(x) and log T'(x), of the shape of x (N, C, H, W), for theta (N, num_params, C, H, W)."""

    @abstractmethod
    def inverse(self, y: Tensor, theta: Tensor) -> Tensor:
        """Return the x with T(x) = y."""


class Additive(Transform):
    """T(x) = x + t."""

    num_params = 1

    def __call__(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        return x + theta[:, 0], torch.zeros_like(x)

    def inverse(self, y: Tensor, theta: Tensor) -> Tensor:
        return y - theta[:, 0]


class Affine(Transform):
    """T(x) = x exp(s) + t with |s| < bound, so that values stay finite in training and sampling.

    Args:
        bound: Bound of s = bound tanh(h / bound), for the output h of the network.

    Raises:
        UserError: If the bound is not positive.
    """

    num_params = 2

    def __init__(self, bound: float = 2.0) -> None:
        self.bound = _positive("bound", bound, 2)

    def log_scale(self, theta: Tensor) -> Tensor:
        return self.bound * torch.tanh(theta[:, 1] / self.bound)

    def __call__(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        log_scale = self.log_scale(theta)
        return x * log_scale.exp() + theta[:, 0], log_scale

    def inverse(self, y: Tensor, theta: Tensor) -> Tensor:
        return (y - theta[:, 0]) * (-self.log_scale(theta)).exp()


class Spline(Transform):
    r"""A monotone rational-quadratic spline on [-B, B], the identity outside.

    Knots (x_k, y_k) are cumulative sums of softmaxes of theta. The slopes d_k are softpluses of theta, and 1 at both
    ends. In bin k of width w and height h, with s = h / w and xi = (x - x_k) / w,

        T = y_k + h (s xi^2 + d_k xi (1 - xi)) / (s + (d_{k+1} + d_k - 2 s) xi (1 - xi)),

    whose inverse is the root of a quadratic equation.

    Args:
        num_bins: Number of bins K.
        reach: Half-width B of the interval.

    Raises:
        UserError: If the number of bins is out of range, or `reach` is not positive.
    """

    smallest = 1e-3
    """Minimum of widths and heights, relative to 2B, and of slopes."""

    def __init__(self, num_bins: int = 8, reach: float = 4.0) -> None:
        if not 0 < num_bins * self.smallest < 1:
            raise UserError(f"model.coupling.num_bins: {num_bins} is not in 1..{1 / self.smallest - 1:.0f}; use 8")
        self.num_bins = num_bins
        self.reach = _positive("reach", reach, 4)
        self.num_params = 3 * num_bins - 1

    def __call__(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        inside = x.clamp(-self.reach, self.reach)
        x_k, y_k, w, h, d, d_next = self._bins(inside, theta, of="x")
        s, xi = h / w, (inside - x_k) / w
        between = xi * (1 - xi)
        below = s + (d_next + d - 2 * s) * between
        y = y_k + h * (s * xi.square() + d * between) / below
        slope = d_next * xi.square() + 2 * s * between + d * (1 - xi).square()
        log_derivative = 2 * s.log() + slope.log() - 2 * below.log()
        outside = x.abs() >= self.reach
        return torch.where(outside, x, y), log_derivative.masked_fill(outside, 0)

    def inverse(self, y: Tensor, theta: Tensor) -> Tensor:
        inside = y.clamp(-self.reach, self.reach)
        x_k, y_k, w, h, d, d_next = self._bins(inside, theta, of="y")
        s, rise = h / w, inside - y_k
        bend = rise * (d_next + d - 2 * s)
        a, b, c = h * (s - d) + bend, h * d - bend, -s * rise
        # this form of the root subtracts no nearly equal numbers
        xi = 2 * c / (-b - (b.square() - 4 * a * c).clamp(min=0).sqrt())
        return torch.where(y.abs() >= self.reach, y, x_k + xi * w)

    def _bins(self, value: Tensor, theta: Tensor, of: Literal["x", "y"]) -> list[Tensor]:
        """Return x_k, y_k, w, h, d_k and d_{k+1} of the bin of each value, taken as an x or as a y."""
        widths, heights, slopes = theta.movedim(1, -1).split([self.num_bins, self.num_bins, self.num_bins - 1], -1)
        knots_x, knots_y = self._knots(widths), self._knots(heights)
        at_zero = math.log(math.expm1(1 - self.smallest))  # so that theta = 0 gives the slope 1
        slopes = F.pad(self.smallest + F.softplus(slopes + at_zero), (1, 1), value=1.0)
        inner = (knots_x if of == "x" else knots_y)[..., 1:-1]
        k = (value[..., None] >= inner).sum(-1, keepdim=True)

        def at(values: Tensor, index: Tensor) -> Tensor:
            return values.gather(-1, index).squeeze(-1)

        x_k, y_k = at(knots_x, k), at(knots_y, k)
        return [x_k, y_k, at(knots_x, k + 1) - x_k, at(knots_y, k + 1) - y_k, at(slopes, k), at(slopes, k + 1)]

    def _knots(self, logits: Tensor) -> Tensor:
        shares = self.smallest + (1 - self.smallest * self.num_bins) * logits.softmax(-1)
        return F.pad(2 * shares.cumsum(-1) - 1, (1, 0), value=-1.0) * self.reach


def _positive(name: str, value: float, usual: float) -> float:
    if not 0 < value < math.inf:
        raise UserError(f"model.coupling.{name}: {value} is not a positive number; use {usual:g}")
    return value


class Coupling(Bijection):
    """Coupling layer: one part of an image parametrises the map of the other.

    The network may run in bfloat16; its output is converted to the precision of the image.

    Args:
        shape: (C, H, W) of one image.
        partition: Partition into the fixed and the transformed part.
        transform: Map T of the transformed part.
        network: Factory of the network theta of the fixed part and the context.
        context_channels: Channels of the context, 0 for none.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        partition: Partition,
        transform: Transform,
        network: NetworkFactory,
        context_channels: int = 0,
    ) -> None:
        super().__init__()
        self.partition = partition
        self.transform = transform
        stays, moved = (part.shape[1] for part in partition.split(torch.zeros(1, *shape)))
        self.network = network((stays + context_channels, *shape[1:]), transform.num_params * moved)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        stays, moved = self.partition.split(x)
        moved, log_derivative = self.transform(moved, self._theta(stays, context))
        log_det = sum_over_image(self.partition.merge(torch.zeros_like(x), log_derivative))
        return self.partition.merge(x, moved), log_det

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Tensor:
        stays, moved = self.partition.split(y)
        return self.partition.merge(y, self.transform.inverse(moved, self._theta(stays, context)))

    def _theta(self, stays: Tensor, context: Tensor | None) -> Tensor:
        seen = stays if context is None else torch.cat([stays, context], 1)
        theta: Tensor = self.network(seen).to(stays.dtype).unflatten(1, (self.transform.num_params, -1))
        return theta
