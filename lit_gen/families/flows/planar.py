r"""Planar and radial flows, which move x along one direction, or towards and away from one centre.

Rezende and Mohamed 2015, https://arxiv.org/abs/1505.05770, with the constraints of their appendix that make each map
invertible. Their map takes noise to samples. Here it takes data to noise, so that a density needs one pass, and samples
come from the inverse. The values of an image, or of a point (N, D, 1, 1), form one vector.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_gen.families.flows.bijections import Bijection


class Planar(Bijection):
    r"""y = x + u tanh(w^T x + b), log |det| = log(1 + (1 - tanh^2) w^T u).

    The map is invertible if w^T u > -1, so u = v + (softplus(w^T v) - 1 - w^T v) w / |w|^2 for a free parameter v. The
    inverse solves a monotone equation in one number, a + w^T u tanh(a + b) = w^T y for a = w^T x.

    Args:
        dim: Dimension D.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(dim))
        # v = log(e - 1) w / |w|^2 gives u = 0: the identity
        self.v = nn.Parameter(math.log(math.e - 1) * self.w.detach() / self.w.detach().square().sum())
        self.b = nn.Parameter(torch.randn(()))

    def push(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Return w, u and w^T u; the last is computed from v, since the rounded product could fall below -1."""
        w, v = self.w.to(dtype), self.v.to(dtype)
        along = w @ v
        slope = F.softplus(along) - 1
        return w, v + (slope - along) * w / w.square().sum(), slope

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        flat, (w, u, slope) = x.flatten(1), self.push(x.dtype)
        tanh = torch.tanh(flat @ w + self.b)
        log_det = torch.log1p((1 - tanh.square()) * slope)
        return (flat + tanh[:, None] * u).view_as(x), log_det

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Tensor:
        flat = y.flatten(1).double()
        (w, u, slope), b = self.push(torch.float64), self.b.double()
        a = _solve(flat @ w, slope, b)
        return (flat - torch.tanh(a + b)[:, None] * u).view_as(y).to(y.dtype)


def _solve(target: Tensor, slope: Tensor, shift: Tensor) -> Tensor:
    """Return the a (N,) with a + slope tanh(a + shift) = target, for slope > -1, to the precision of float64.

    The left side increases in a and lies between a - |slope| and a + |slope|, so bisection finds a, and two Newton
    steps refine it.
    """
    low, high = target - slope.abs(), target + slope.abs()
    for _ in range(60):
        a = (low + high) / 2
        above = a + slope * torch.tanh(a + shift) > target
        low, high = torch.where(above, low, a), torch.where(above, a, high)
    a = (low + high) / 2
    for _ in range(2):
        tanh = torch.tanh(a + shift)
        step = (a + slope * tanh - target) / (1 + slope * (1 - tanh.square()))
        a = torch.where(step.abs() < 1e-6, a - step, a)  # at an inflection the derivative may vanish
    return a


class Radial(Bijection):
    r"""y = x + beta (x - x_0) / (alpha + r), r = |x - x_0|, which moves points towards a centre or away from it.

    The map is invertible if beta > -alpha, so beta = softplus(c) - alpha for a free parameter c. Points stay on their
    ray from x_0, on which R = |y - x_0| = r (1 + beta / (alpha + r)) is monotone in r. The inverse solves a quadratic
    equation in r.

    log |det| = (D - 1) log(1 + beta h) + log(1 + beta h - beta h^2 r) with h = 1 / (alpha + r).

    Args:
        dim: Dimension D.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.centre = nn.Parameter(torch.randn(dim))
        self.log_alpha = nn.Parameter(torch.zeros(()))
        self.free = nn.Parameter(torch.tensor(math.log(math.e - 1)))  # beta = 0: the identity

    @property
    def alpha_beta(self) -> tuple[Tensor, Tensor]:
        alpha = self.log_alpha.exp()
        return alpha, F.softplus(self.free) - alpha

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        alpha, beta = self.alpha_beta
        ray = x.flatten(1) - self.centre
        r = ray.norm(dim=1, keepdim=True)
        h = 1 / (alpha + r)
        log_det = (ray.shape[1] - 1) * torch.log1p(beta * h) + torch.log1p(beta * h * (1 - h * r))
        return (x.flatten(1) + beta * h * ray).view_as(x), log_det.squeeze(1)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Tensor:
        alpha, beta = (value.double() for value in self.alpha_beta)
        ray = y.flatten(1).double() - self.centre
        R = ray.norm(dim=1, keepdim=True)
        # the positive root of r^2 + b r - alpha R = 0, in a form that subtracts no nearly equal numbers
        b = alpha + beta - R
        root = (b.square() + 4 * alpha * R).sqrt()
        r = torch.where(b > 0, 2 * alpha * R / (b + root), (root - b) / 2)
        return (self.centre + ray / (1 + beta / (alpha + r))).view_as(y).to(y.dtype)
