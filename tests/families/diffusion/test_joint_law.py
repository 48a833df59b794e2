"""Whole runs of the stochastic samplers in the plane: mean, full covariance and projections of a correlated mixture."""

import math

import pytest
import torch
from torch import Tensor

from lit_gen.core.noise import Noise
from lit_gen.families.diffusion import (
    Denoiser,
    DiscreteVP,
    EDMSchedule,
    GaussianMixtureDenoiser,
    Karras,
    LinearVP,
    Rectified,
    Schedule,
    UniformLogSNR,
)
from lit_gen.families.diffusion.samplers import (
    DDIM,
    DDPM,
    AnnealedLangevin,
    DiffusionSampler,
    DPMSolver,
    EulerMaruyama,
    Heun,
    PredictorCorrector,
)
from tests.families.diffusion.exact_answers import LearnedVariance, Turned, kolmogorov_smirnov

pytestmark = pytest.mark.slow
"""End-to-end runs; the gate runs them."""

NUM = 4000
LEVEL = 0.1  # at which Langevin dynamics is stopped: below, it would take very many steps to come to rest
GRID = Karras(sigma_min=0.01, sigma_max=40)
MIXTURE = GaussianMixtureDenoiser(
    torch.tensor([[-0.9, 0.3], [0.5, -0.6], [0.7, 0.8]]),
    torch.tensor([[0.5, 0.15], [0.2, 0.4], [0.3, 0.3]]),
    torch.tensor([0.5, 0.3, 0.2]),
)
LAW = Turned(MIXTURE, 3 * math.pi / 8)


def variance_of_each_pixel(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The v with which the variance of a short step of `DDPM` is that of x_s given x_t, pixel by pixel.

    v = Var(x_0 | x_t) (alpha^2 + sigma^2) / sigma^2, and Var(x_0 | x_t) = (sigma^2 / alpha) dD/dx; at most that of data
    from N(0, 1), which is the greatest that v can tell.
    """
    directions = torch.eye(2, dtype=x.dtype)
    derivative = [
        torch.func.jvp(lambda x: LAW.denoise(x, alpha, sigma, None), (x,), (e.expand_as(x),))[1] @ e for e in directions
    ]
    return ((alpha**2 + sigma**2) / alpha * torch.stack(derivative, 1)).clamp(0, 1)


CASES: dict[str, tuple[DiffusionSampler, Schedule]] = {
    "ddpm-small": (DDPM(steps=200, variance="small", grid=GRID), EDMSchedule()),
    "ddpm-large": (DDPM(steps=200, variance="large", grid=GRID), DiscreteVP()),
    "ddpm-learned": (DDPM(steps=50, variance="learned", grid=GRID), DiscreteVP("cosine")),
    "ddim-0.5": (DDIM(steps=150, eta=0.5, grid=GRID), Rectified()),
    "ddim-1": (DDIM(steps=200, eta=1.0, grid=GRID), LinearVP()),
    "heun-churn": (Heun(steps=40, S_churn=20, grid=GRID), EDMSchedule()),
    "sde": (EulerMaruyama(steps=200, grid=GRID), LinearVP()),
    "sde-damped": (EulerMaruyama(steps=200, g="damped", coordinates="rectified", grid=GRID), Rectified()),
    "predictor-corrector": (PredictorCorrector(steps=150, snr=0.06, norm="level", grid=GRID), EDMSchedule()),
    "langevin": (
        AnnealedLangevin(
            steps=20, steps_each=25, step_size=0.1, denoise=False, grid=UniformLogSNR(sigma_min=LEVEL, sigma_max=4)
        ),
        EDMSchedule(),
    ),
    "dpm-sde": (DPMSolver(steps=40, eta=1.0, grid=GRID), LinearVP()),
}
cases = pytest.mark.parametrize(("sampler", "schedule"), CASES.values(), ids=CASES)


class Scaled(Noise):
    """The first draw as it is, and all others multiplied by a factor."""

    def __init__(self, factor: float, num: int) -> None:
        super().__init__(0, range(num))
        self.factor = factor

    def normal(self, shape, dtype=torch.float32):
        factor = 1.0 if self.draws == 0 else self.factor
        return factor * super().normal(shape, dtype)


def moments_of(x: Tensor, mean: Tensor) -> Tensor:
    """The terms (N, 5) whose means are those of x, about the given one, and the entries of the covariance."""
    d = x - mean
    return torch.cat([d, d[:, [0, 0, 1]] * d[:, [0, 1, 1]]], dim=1)


def deviations(x: Tensor, sigma: float) -> tuple[Tensor, list[float]]:
    """Those of the moments (5,), in standard errors, and of three projections, after Kolmogorov and Smirnov."""
    mean, covariance = LAW.moments()
    covariance = covariance + sigma**2 * torch.eye(2, dtype=torch.float64)
    expected = torch.tensor([0, 0, covariance[0, 0], covariance[0, 1], covariance[1, 1]], dtype=torch.float64)
    noise = Noise(1, range(20_000))
    exact = LAW.draw(noise) + sigma * noise.normal((2,), torch.float64)
    error = moments_of(exact, mean).std(0) / len(x) ** 0.5
    statistics = []
    for angle in (0.3, 1.2, 2.3):
        direction = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
        projection = (x @ direction)[:, None]
        statistics.append(kolmogorov_smirnov(LAW.along(direction), projection, 1.0, sigma))
    return (moments_of(x, mean).mean(0) - expected) / error, statistics


def denoiser_of(sampler: DiffusionSampler) -> Denoiser:
    learned = isinstance(sampler, DDPM) and sampler.variance == "learned"
    return LearnedVariance(LAW, variance_of_each_pixel) if learned else LAW


def level_of(sampler: DiffusionSampler) -> float:
    return LEVEL if isinstance(sampler, AnnealedLangevin) else 0.0


def test_the_law_is_correlated_and_its_own_exact_draws_keep_to_it():
    _, covariance = LAW.moments()
    assert abs(float(covariance[0, 1] / (covariance[0, 0] * covariance[1, 1]).sqrt())) > 0.3
    noise = Noise(0, range(NUM))
    moments, projections = deviations(LAW.draw(noise), 0.0)
    assert moments.abs().max() < 4.5 and max(projections) < 0.0352


@cases
def test_a_run_gives_the_joint_law(sampler: DiffusionSampler, schedule: Schedule):
    """Of exact points, 1 in 150,000 deviates by 4.5 standard errors and 1 in 10,000 by 0.0352 in a projection."""
    x = sampler.sample(denoiser_of(sampler), schedule, Noise(0, range(NUM)), (2,))
    moments, projections = deviations(x, level_of(sampler))
    assert moments.abs().max() < 4.5
    assert max(projections) < 0.0352


def test_the_small_variance_would_be_seen_where_it_is_learned():
    """In as few steps."""
    _, schedule = CASES["ddpm-learned"]
    x = DDPM(steps=50, variance="small", grid=GRID).sample(LAW, schedule, Noise(0, range(NUM)), (2,))
    moments, projections = deviations(x, 0.0)
    assert moments.abs().max() > 4.5 and max(projections) > 0.0352


@pytest.mark.slow
@cases
@pytest.mark.parametrize("factor", [0.0, 2.0])
def test_noise_forgotten_or_doubled_would_be_seen(sampler: DiffusionSampler, schedule: Schedule, factor: float):
    num = 500
    x = sampler.sample(denoiser_of(sampler), schedule, Scaled(factor, num), (2,))
    moments, projections = deviations(x, level_of(sampler))
    assert moments.abs().max() > 4.5
    assert max(projections) > 0.0352 * (NUM / num) ** 0.5
