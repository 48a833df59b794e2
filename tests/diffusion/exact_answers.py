"""Exact answers of Gaussian mixtures, for the tests of diffusion."""

from collections.abc import Callable

import torch
from torch import Tensor

from lit_gen.diffusion import (
    DDIM,
    DDPM,
    Denoiser,
    EDMPreconditioning,
    Epsilon,
    Euler,
    GaussianMixtureDenoiser,
    Heun,
    Parameterization,
    Sampler,
    Schedule,
    Velocity,
)
from lit_gen.diffusion.denoisers import per_image
from lit_gen.noise import Noise

SAMPLERS: list[Sampler] = [
    DDPM(steps=7, variance="small"),
    DDPM(steps=7, variance="large"),
    DDIM(steps=7),
    DDIM(steps=7, eta=0.6),
    Euler(steps=7),
    Euler(steps=7, coordinates="sigma"),
    Euler(steps=7, coordinates="schedule"),
    Heun(steps=7),
    Heun(steps=7, coordinates="rectified"),
    Heun(steps=7, S_churn=3, S_min=0.1, S_max=30, S_noise=1.01),
    Heun(steps=7, S_churn=3, coordinates="rectified"),
]


def cdf(
    mixture: GaussianMixtureDenoiser, x: Tensor, alpha: Tensor | float = 1.0, sigma: Tensor | float = 0.0
) -> Tensor:
    """P(x_t <= x) of a mixture on the line, x (N, 1) -> (N, 1)."""
    std = (alpha**2 * mixture.variances[:, 0] + sigma**2).sqrt()
    return (mixture.weights * torch.special.ndtr((x - alpha * mixture.means[:, 0]) / std)).sum(-1, keepdim=True)


def quantile(mixture: GaussianMixtureDenoiser, p: Tensor) -> Tensor:
    """The inverse of `cdf` for the data, by bisection."""
    low, high = torch.full_like(p, -20.0), torch.full_like(p, 20.0)
    for _ in range(100):
        middle = (low + high) / 2
        below = cdf(mixture, middle) < p
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


def exact_network(
    mixture: GaussianMixtureDenoiser, schedule: Schedule, parameterization: Parameterization
) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """The network that has learned the mixture perfectly."""

    def network(x: Tensor, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        match parameterization:
            case Epsilon():
                t = (c_noise + 1) / parameterization.num_timesteps
            case Velocity():
                t = c_noise / 999
            case EDMPreconditioning():
                t = schedule.time((4 * c_noise).exp())
        alpha, sigma = schedule(t)
        c_in, c_skip, c_out = parameterization.coefficients(alpha, sigma)
        x_t = x / per_image(c_in, x)
        return (mixture.denoise(x_t, alpha, sigma) - per_image(c_skip, x) * x_t) / per_image(c_out, x)

    return network


class Point(Denoiser):
    """Answers x_0 whatever it is asked, and keeps the questions."""

    def __init__(self, x_0: Tensor) -> None:
        self.x_0 = x_0
        self.seen: list[tuple[Tensor, float, float]] = []

    def denoise(self, x: Tensor, alpha: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        self.seen.append((x, float(alpha), float(sigma)))
        return self.x_0.expand_as(x)


class Fixed(Noise):
    """Noise that is one value everywhere."""

    def __init__(self, value: float, num: int) -> None:
        super().__init__(0, range(num))
        self.value = value

    def normal(self, shape, dtype=torch.float32):
        self.draws += 1
        return torch.full((len(self), *shape), self.value, dtype=dtype)


def run(sampler: Sampler, denoiser: Denoiser, schedule: Schedule, num: int = 8, seed: int = 3) -> Tensor:
    return sampler.sample(denoiser, schedule, Noise(seed, range(num)), (2, 3))
