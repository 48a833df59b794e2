"""Mixtures with a known density at every noise level, that of x = alpha x_0 + sigma eps with x_0 from the mixture."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from lit_gen.core.noise import Noise

_LOG_SQRT_2PI = math.log(2 * math.pi) / 2
# Boxes narrower than this, in units of the noise, use a series expansion, because the closed form cancels there.
_NARROW = 1e-3


class Mixture(ABC):
    """Mixture x_0 ~ sum_k w_k p_k, with the density of x = alpha x_0 + sigma eps and the posterior mean of x_0.

        E[x_0 | x] = sum_k p(k | x) E[x_0 | x, k],    p(k | x) ~ w_k p(x | k).

    Args:
        weights: Weights w_k (K,), positive; normalised here.
    """

    def __init__(self, weights: Tensor) -> None:
        self.weights = weights.double() / weights.double().sum()

    @abstractmethod
    def _components(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Return log p(x | k) (N, K) and E[x_0 | x, k] (N, K, D) of x (N, 1, D); alpha and sigma have 0 or 3 axes."""

    @abstractmethod
    def _draw(self, component: Tensor, noise: Noise) -> Tensor:
        """Sample x_0 (N, D) from the given components (N,)."""

    def _joint(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        x = x.double().flatten(1)[:, None]
        alpha, sigma = (value.to(x).reshape(-1, 1, 1) for value in (alpha, sigma))
        log_density, means = self._components(x, alpha, sigma)
        return self.weights.to(x.device).log() + log_density, means

    def posterior_mean(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Return E[x_0 | x], in the shape and data type of x.

        Args:
            x: Noisy points (N, ...).
            alpha: Scale of the data, 0-d or (N,).
            sigma: Scale of the noise, 0-d or (N,).
        """
        log_joint, means = self._joint(x, alpha, sigma)
        return (log_joint.softmax(-1)[..., None] * means).sum(1).reshape(x.shape).to(x.dtype)

    def responsibilities(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Return p(k | x), (N, K) float64; arguments as in `posterior_mean`."""
        return self._joint(x, alpha, sigma)[0].softmax(-1)

    def log_density(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Return log p(x_t), (N,) in nats; arguments as in `posterior_mean`."""
        return self._joint(x, alpha, sigma)[0].logsumexp(-1)

    def draw(self, noise: Noise) -> tuple[Tensor, Tensor]:
        """Sample x_0 (N, D), float64, and its component (N,) for each index of the noise."""
        u = noise.uniform((), torch.float64).contiguous()
        component = torch.searchsorted(self.weights.cumsum(0).to(u.device), u).clamp(max=len(self.weights) - 1)
        return self._draw(component, noise), component


class GaussianMixture(Mixture):
    r"""Mixture of Gaussians, x_0 ~ sum_k w_k N(m_k, diag(s_k^2)).

    Given the component, x_t is normal with mean alpha m_k and variance v_k = alpha^2 s_k^2 + sigma^2, so

        E[x_0 | x, k] = m_k + alpha s_k^2 / v_k (x - alpha m_k),    p(x | k) = N(x; alpha m_k, v_k).

    Args:
        means: Means m_k (K, ...), with the shape of one image after the first axis.
        stds: Standard deviations s_k, (K,) for isotropic components, or in the shape of the means.
        weights: Weights w_k (K,), positive; normalised here. Default: equal.
    """

    def __init__(self, means: Tensor, stds: Tensor, weights: Tensor | None = None) -> None:
        self.means = means.double().flatten(1)
        self.variances = stds.double().reshape(len(means), -1).expand_as(self.means) ** 2
        super().__init__(torch.ones(len(means)) if weights is None else weights)

    def _components(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        means, variances = self.means.to(x.device), self.variances.to(x.device)
        variance = alpha**2 * variances + sigma**2
        residual = x - alpha * means
        log_density = -0.5 * (residual**2 / variance + (2 * math.pi * variance).log()).sum(-1)
        return log_density, means + alpha * variances / variance * residual

    def _draw(self, component: Tensor, noise: Noise) -> Tensor:
        means, stds = self.means[component.cpu()], self.variances[component.cpu()].sqrt()
        return means.to(noise.device) + stds.to(noise.device) * noise.normal(means.shape[1:], torch.float64)


class UniformMixture(Mixture):
    r"""Mixture of uniform distributions, x_0 ~ sum_k w_k U([l_k, h_k]), on axis-aligned boxes.

    Given the box, the dimensions are independent. In each dimension, with z = (alpha b - x) / sigma for the bounds
    b = l and h,

        p(x | k) = (Phi(z_h) - Phi(z_l)) / (alpha (h - l)),
        E[x_0 | x, k] = (x - sigma (phi(z_h) - phi(z_l)) / (Phi(z_h) - Phi(z_l))) / alpha,

    the mean of a normal distribution truncated to [l, h].

    Args:
        low: Lower bounds l_k (K, ...), with the shape of one image after the first axis.
        high: Upper bounds h_k, above the lower bounds.
        weights: Weights w_k (K,), positive; normalised here. Default: equal.
    """

    def __init__(self, low: Tensor, high: Tensor, weights: Tensor | None = None) -> None:
        self.low = low.double().flatten(1)
        self.high = high.double().flatten(1)
        super().__init__(torch.ones(len(low)) if weights is None else weights)

    def _components(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        low, high = self.low.to(x.device), self.high.to(x.device)
        z_low, z_high = (alpha * low - x) / sigma, (alpha * high - x) / sigma
        middle, width = (z_low + z_high) / 2, alpha * (high - low) / sigma
        narrow = width < _NARROW
        # Computed from the mirrored interval if it is nearer, so both values of Phi are small numbers in the tails.
        mirrored = middle > 0
        lower, upper = torch.where(mirrored, -z_high, z_low), torch.where(mirrored, -z_low, z_high)
        log_lower, log_upper = torch.special.log_ndtr(lower), torch.special.log_ndtr(upper)
        log_mass = log_upper + torch.log1p(-(log_lower - log_upper).exp())
        log_density = torch.where(
            narrow,
            width**2 * (middle**2 - 1) / 24 - middle**2 / 2 - _LOG_SQRT_2PI - sigma.log(),
            log_mass - (alpha * (high - low)).log(),
        )
        # (phi(upper) - phi(lower)) / mass
        slope = (-(upper**2) / 2 - _LOG_SQRT_2PI - log_mass).exp() - (-(lower**2) / 2 - _LOG_SQRT_2PI - log_mass).exp()
        mean = torch.where(
            narrow,
            (low + high) / 2 - (high - low) * width * middle / 12,
            (x - sigma * torch.where(mirrored, -slope, slope)) / alpha,
        )
        # Without noise, z is infinite, or undefined on the border of a box.
        inside = (alpha * low <= x) & (x <= alpha * high)
        uniform = torch.where(inside, -(alpha * (high - low)).log(), -math.inf)
        return torch.where(sigma > 0, log_density, uniform).sum(-1), mean.clamp(low, high)

    def _draw(self, component: Tensor, noise: Noise) -> Tensor:
        low, high = self.low[component.cpu()].to(noise.device), self.high[component.cpu()].to(noise.device)
        return low + (high - low) * noise.uniform(low.shape[1:], torch.float64)
