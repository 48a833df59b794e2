r"""Planar and radial flows: x is pushed along one direction, or from one centre.

Rezende and Mohamed 2015, https://arxiv.org/abs/1505.05770, with the constraints of their appendix that make each map
invertible. There the map carries noise to samples; here it carries data to noise, so that a density is one pass, and
samples come from the inverse. For points (N, D, 1, 1) or images: all values of an image are one vector.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_gen.flows.bijections import Bijection


class Planar(Bijection):
    r"""y = x + u tanh(w^T x + b), log |det| = log(1 + (1 - tanh^2) w^T u).

    It is invertible where w^T u > -1, so u is v + (softplus(w^T v) - 1 - w^T v) w / |w|^2 of a free v. Along w alone it
    is a monotone equation in one number, a + w^T u tanh(a + b) = w^T y for a = w^T x.

    Args:
        dim: D.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(dim))
        # v = log(e - 1) w / |w|^2 gives u = 0: the identity
        self.v = nn.Parameter(math.log(math.e - 1) * self.w.detach() / self.w.detach().square().sum())
        self.b = nn.Parameter(torch.randn(()))

    @property
    def u(self) -> Tensor:
        along = self.w @ self.v
        return self.v + (F.softplus(along) - 1 - along) * self.w / self.w.square().sum()

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        flat, u = x.flatten(1), self.u
        push = torch.tanh(flat @ self.w + self.b)
        log_det = torch.log1p((1 - push.square()) * (self.w @ u))
        return (flat + push[:, None] * u).view_as(x), log_det

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Tensor:
        flat = y.flatten(1).double()
        w, u, b = self.w.double(), self.u.double(), self.b.double()
        along = flat @ w
        a = _solve(along, float(w @ u), b)
        return (flat - torch.tanh(a + b)[:, None] * u).view_as(y).to(y.dtype)


def _solve(target: Tensor, slope: float, shift: Tensor) -> Tensor:
    """a (N,) with a + slope tanh(a + shift) = target, for slope > -1: Newton's steps, halving where they leave the
    bracket. In float64, to its precision."""
    low, high = target - abs(slope), target + abs(slope)
    a = target
    for _ in range(80):
        push = torch.tanh(a + shift)
        excess = a + slope * push - target
        low, high = torch.where(excess < 0, a, low), torch.where(excess < 0, high, a)
        step = a - excess / (1 + slope * (1 - push.square()))
        a_next = torch.where((step >= low) & (step <= high), step, (low + high) / 2)
        if bool((a_next == a).all()):
            break
        a = a_next
    return a


class Radial(Bijection):
    r"""y = x + beta (x - x_0) / (alpha + r), r = |x - x_0|: points are drawn to a centre, or pushed from it.

    It is invertible where beta > -alpha, so beta = softplus(.) - alpha. Points stay on their ray from x_0, where
    R = |y - x_0| = r (1 + beta / (alpha + r)) is monotone, and a quadratic equation in r.

    log |det| = (D - 1) log(1 + beta h) + log(1 + beta h - beta h^2 r) with h = 1 / (alpha + r).

    Args:
        dim: D.
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
        # r^2 + b r - alpha R = 0, the positive root in the form that has no difference of near numbers
        b = alpha + beta - R
        root = (b.square() + 4 * alpha * R).sqrt()
        r = torch.where(b > 0, 2 * alpha * R / (b + root), (root - b) / 2)
        return (self.centre + ray / (1 + beta / (alpha + r))).view_as(y).to(y.dtype)
