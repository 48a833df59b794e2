"""Exact answers for Gaussian mixtures, used by the diffusion tests."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lit_gen.core.noise import Noise
from lit_gen.families.diffusion import (
    Denoiser,
    EDMPreconditioning,
    Epsilon,
    GaussianMixtureDenoiser,
    Parameterization,
    Schedule,
    Score,
)
from lit_gen.families.diffusion.denoisers import per_image
from lit_gen.families.diffusion.samplers import (
    DDIM,
    DDPM,
    DEIS,
    IPNDM,
    LMS,
    RK45,
    AnnealedLangevin,
    DiffusionSampler,
    DPMSolver,
    Euler,
    EulerMaruyama,
    Heun,
    PredictorCorrector,
    Restart,
    UniPC,
)

SAMPLERS: list[DiffusionSampler] = [
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
    EulerMaruyama(steps=7),
    EulerMaruyama(steps=7, noise_scale=0.5, coordinates="rectified"),
    EulerMaruyama(steps=7, g="damped", coordinates="schedule"),
    EulerMaruyama(steps=7, noise_scale=0.0),
    PredictorCorrector(steps=7),
    PredictorCorrector(steps=7, predictor="ancestral", corrector_steps=2, norm="level"),
    PredictorCorrector(steps=7, predictor="probability_flow", norm="level"),
    AnnealedLangevin(steps=7),
    DPMSolver(steps=7, order=1),
    DPMSolver(steps=7),
    DPMSolver(steps=7, method="singlestep"),
    DPMSolver(steps=7, eta=1.0),
    DPMSolver(steps=7, order=1, eta=0.4),
    UniPC(steps=7),
    UniPC(steps=7, order=3, variant="bh1"),
    UniPC(steps=7, order=3, corrector=False),
    DPMSolver(steps=7, order=3),
    IPNDM(steps=7),
    LMS(steps=7),
    DEIS(steps=7, order=3),
    DEIS(steps=7, order=2, variable="log"),
    Restart(steps=7, low=0.5, high=3.0, repeats=2),
    RK45(rtol=1e-4, atol=1e-4),
]


def cdf(
    mixture: GaussianMixtureDenoiser, x: Tensor, alpha: Tensor | float = 1.0, sigma: Tensor | float = 0.0
) -> Tensor:
    """Return P(x_t <= x) of a mixture on the line, x (N, 1) -> (N, 1)."""
    std = (alpha**2 * mixture.variances[:, 0] + sigma**2).sqrt()
    return (mixture.weights * torch.special.ndtr((x - alpha * mixture.means[:, 0]) / std)).sum(-1, keepdim=True)


def quantile(mixture: GaussianMixtureDenoiser, p: Tensor) -> Tensor:
    """Return the inverse of `cdf` for the data, by bisection."""
    low, high = torch.full_like(p, -20.0), torch.full_like(p, 20.0)
    for _ in range(100):
        middle = (low + high) / 2
        below = cdf(mixture, middle) < p
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


def exact_network(
    mixture: GaussianMixtureDenoiser, schedule: Schedule, parameterization: Parameterization
) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """Return the network that has learned the mixture perfectly."""

    def network(x: Tensor, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        match parameterization:
            case Epsilon():
                t = (c_noise + 1) / parameterization.num_timesteps
            case EDMPreconditioning():
                t = schedule.time((4 * c_noise).exp())
            case Score(condition="sigma"):
                t = schedule.time(c_noise.exp())
            case _:
                t = c_noise / 999
        alpha, sigma = schedule(t)
        c_in, c_skip, c_out = parameterization.coefficients(alpha, sigma)
        x_t = x / per_image(c_in, x)
        return (mixture.denoise(x_t, alpha, sigma) - per_image(c_skip, x) * x_t) / per_image(c_out, x)

    return network


class Point(Denoiser):
    """Denoiser that always returns x_0 and records its calls, with the noise level of the first image."""

    def __init__(self, x_0: Tensor) -> None:
        self.x_0 = x_0
        self.seen: list[tuple[Tensor, float, float]] = []

    def denoise(self, x: Tensor, alpha: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        self.seen.append((x, float(alpha.flatten()[0]), float(sigma.flatten()[0])))
        return self.x_0.expand_as(x)


class Fixed(Noise):
    """Noise with one value everywhere."""

    def __init__(self, value: float, num: int) -> None:
        super().__init__(0, range(num))
        self.value = value

    def normal(self, shape, dtype=torch.float32):
        self.draws += 1
        return torch.full((len(self), *shape), self.value, dtype=dtype)


class Silent(Noise):
    """Noise that is zero after the initial state."""

    def normal(self, shape, dtype=torch.float32):
        assert self.draws == 0, "noise was drawn after the start"
        return super().normal(shape, dtype)


class Impulses(Noise):
    """Noise whose call k is 1 for sample k and 0 for the others; the last sample gets none."""

    def __init__(self, num_draws: int) -> None:
        super().__init__(0, range(num_draws + 1))

    def normal(self, shape, dtype=torch.float32):
        z = torch.zeros(len(self), *shape, dtype=dtype)
        z[self.draws] = 1
        self.draws += 1
        return z


class LearnedVariance(Denoiser):
    """Denoiser with the learned variance v of `DDPM`, a function of x, alpha and sigma."""

    def __init__(self, denoiser: Denoiser, v: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        self.denoiser = denoiser
        self.v = v

    def denoise(self, x: Tensor, alpha: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        return self.denoiser.denoise(x, alpha, sigma, labels)

    def denoise_with_variance(
        self, x: Tensor, alpha: Tensor, sigma: Tensor, labels: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        return self.denoise(x, alpha, sigma, labels), self.v(x, alpha, sigma)


def moments_for_normal_data(
    sampler: DiffusionSampler,
    schedule: Schedule,
    mean: float,
    std: float,
    v: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
) -> tuple[float, float]:
    """Return the mean and standard deviation of a sampler's output for x_0 ~ N(mean, std^2), without sampling noise.

    Every sampler is a linear function of its random numbers, so its variance is the sum of the squared responses to
    each of them. The same holds with a learned variance v that does not depend on x.
    """
    data: Denoiser = GaussianMixtureDenoiser(torch.tensor([[mean]], dtype=torch.float64), torch.tensor([std]).double())
    data = data if v is None else LearnedVariance(data, v)
    noise = Noise(0, [0])
    sampler.sample(data, schedule, noise, (1,))
    x = sampler.sample(data, schedule, Impulses(noise.draws), (1,))[:, 0]
    return float(x[-1]), float((x[:-1] - x[-1]).norm())


def error(mixture: GaussianMixtureDenoiser, sampler: DiffusionSampler, schedule: Schedule) -> float:
    """Return the mean distance of the images from the end of the exact flow, for 100 starts on the line."""
    x_0 = sampler.sample(mixture, schedule, Noise(0, range(100)), (1,))
    alpha, sigma = schedule(sampler.times(schedule)[0])
    start = sigma * Noise(0, range(100)).normal((1,), torch.float64)
    return float((x_0 - quantile(mixture, cdf(mixture, start, alpha, sigma))).abs().mean())


class Turned(Denoiser):
    """Mixture in the plane, rotated by an angle, so no component is a product over pixels."""

    def __init__(self, mixture: GaussianMixtureDenoiser, angle: float) -> None:
        cos, sin = math.cos(angle), math.sin(angle)
        self.mixture = mixture
        self.turn = torch.tensor([[cos, sin], [-sin, cos]], dtype=torch.float64)  # multiplies row vectors

    def denoise(self, x: Tensor, alpha: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        return self.mixture.denoise(x @ self.turn.T, alpha, sigma) @ self.turn

    def draw(self, noise: Noise) -> Tensor:
        """Sample points (N, 2) from the exact distribution."""
        return self.mixture.draw(noise)[0] @ self.turn

    def moments(self) -> tuple[Tensor, Tensor]:
        """Return the mean (2,) and the covariance (2, 2)."""
        means, weights = self.mixture.means @ self.turn, self.mixture.weights[:, None]
        mean = (weights * means).sum(0)
        within = self.turn.T @ torch.diag((weights * self.mixture.variances).sum(0)) @ self.turn
        return mean, within + (weights * (means - mean)).T @ (means - mean)

    def along(self, direction: Tensor) -> GaussianMixtureDenoiser:
        """Return the distribution of the projections x . direction, on the line."""
        direction = self.turn @ direction
        means, variances = self.mixture.means @ direction, self.mixture.variances @ direction**2
        return GaussianMixtureDenoiser(means[:, None], variances.sqrt(), self.mixture.weights)


def kolmogorov_smirnov(
    mixture: GaussianMixtureDenoiser, x: Tensor, alpha: Tensor | float = 1.0, sigma: Tensor | float = 0.0
) -> float:
    """Return the maximum difference between the distribution function of points x (N, 1) and the exact one of x_t.

    For 2000 exact points, it exceeds 0.036 with probability 1 %.
    """
    exact = cdf(mixture, x.sort(dim=0).values, alpha, sigma)[:, 0]
    steps = torch.arange(len(x) + 1, dtype=exact.dtype) / len(x)
    return float((exact - steps[:-1]).abs().maximum((exact - steps[1:]).abs()).max())


def at_time(mixture: GaussianMixtureDenoiser, schedule: Schedule, t: float, num: int, seed: int = 0) -> Tensor:
    """Sample x_t (N, 1) on the line from its exact distribution."""
    noise = Noise(seed, range(num))
    alpha, sigma = schedule(t)
    x_0 = quantile(mixture, noise.uniform((1,), torch.float64))
    return alpha * x_0 + sigma * noise.normal((1,), torch.float64)


def run(sampler: DiffusionSampler, denoiser: Denoiser, schedule: Schedule, num: int = 8, seed: int = 3) -> Tensor:
    return sampler.sample(denoiser, schedule, Noise(seed, range(num)), (2, 3))
