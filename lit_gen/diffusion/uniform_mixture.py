"""The exact denoiser of data that is uniform on boxes, such as a checkerboard."""

import math

import torch
from torch import Tensor

from lit_gen.diffusion.denoisers import MixtureDenoiser
from lit_gen.noise import Noise

_LOG_SQRT_2PI = math.log(2 * math.pi) / 2
# Narrower boxes, in units of the noise, are expanded: there the closed form is a small difference of large numbers.
_NARROW = 1e-3


class UniformMixtureDenoiser(MixtureDenoiser):
    r"""The exact denoiser of x_0 ~ sum_k w_k U([l_k, h_k]), boxes with sides along the axes.

    Given the box, the dimensions are independent, and in each of them, with z = (alpha b - x) / sigma for the bounds
    b = l and h,

        p(x | k) = (Phi(z_h) - Phi(z_l)) / (alpha (h - l)),
        E[x_0 | x, k] = (x - sigma (phi(z_h) - phi(z_l)) / (Phi(z_h) - Phi(z_l))) / alpha,

    the mean of a normal distribution truncated to [l, h].

    Args:
        low: (K, ...), the lower bounds l_k; the shape of one image after the first axis.
        high: The upper bounds h_k, above the lower ones.
        weights: (K,), positive; normalised here. Default: equal.
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
        # Seen from the side that is nearer, so that both of Phi are small numbers in the tails.
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
        # Without noise z is infinite, or undefined on the border of a box.
        inside = (alpha * low <= x) & (x <= alpha * high)
        uniform = torch.where(inside, -(alpha * (high - low)).log(), -math.inf)
        return torch.where(sigma > 0, log_density, uniform).sum(-1), mean.clamp(low, high)

    def _draw(self, component: Tensor, noise: Noise) -> Tensor:
        low, high = self.low[component.cpu()].to(noise.device), self.high[component.cpu()].to(noise.device)
        return low + (high - low) * noise.uniform(low.shape[1:], torch.float64)
