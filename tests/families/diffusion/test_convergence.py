"""Samplers with an exact denoiser compared with the exact answer.

On the line, the probability flow keeps the order of the points, so it maps x_t to F_0^{-1}(F_t(x_t)).
"""

import math
from functools import partial

import pytest
import torch
from scipy import stats

from lit_gen.core.noise import Noise
from lit_gen.families.diffusion import (
    DiscreteVP,
    EDMSchedule,
    GaussianMixtureDenoiser,
    Grid,
    Karras,
    Quadratic,
    Rectified,
    Schedule,
    Uniform,
    UniformLogSNR,
)
from lit_gen.families.diffusion.samplers import DDIM, DDPM, DiffusionSampler, Euler, Heun
from tests.families.diffusion.exact_answers import cdf, error


@pytest.mark.parametrize(
    ("sampler", "schedule", "grid"),
    [
        (DDIM, DiscreteVP(), Karras()),
        (DDIM, EDMSchedule(), UniformLogSNR()),
        (DDIM, Rectified(), Uniform()),
        (Euler, EDMSchedule(), Karras()),
        (Euler, Rectified(), Quadratic()),
        (partial(Euler, coordinates="schedule"), DiscreteVP("cosine"), Karras(sigma_min=0.001)),
        (partial(Euler, coordinates="sigma"), Rectified(), Karras()),
    ],
)
def test_first_order(mixture_1d, sampler, schedule: Schedule, grid: Grid):
    coarse, fine = (error(mixture_1d, sampler(steps=steps, grid=grid), schedule) for steps in (60, 120))
    assert 0.9 < math.log2(coarse / fine) < 1.15
    assert fine < 0.03


@pytest.mark.parametrize(
    ("coordinates", "schedule", "grid"),
    [
        ("sigma", EDMSchedule(), Karras()),
        ("sigma", Rectified(), Karras()),
        ("sigma", EDMSchedule(), UniformLogSNR()),
        ("rectified", Rectified(), Uniform()),
        ("rectified", Rectified(), Quadratic()),
        ("rectified", EDMSchedule(), Karras()),
    ],
)
def test_heun_is_of_second_order(mixture_1d, coordinates, schedule: Schedule, grid: Grid):
    coarse, fine = (
        error(mixture_1d, Heun(steps=steps, grid=grid, coordinates=coordinates), schedule) for steps in (60, 120)
    )
    assert 1.9 < math.log2(coarse / fine) < 2.2
    assert fine < 1e-3


def test_at_equal_evaluations_the_second_order_is_closer(mixture_1d):
    heun, euler = error(mixture_1d, Heun(nfe=79), EDMSchedule()), error(mixture_1d, Euler(nfe=79), EDMSchedule())
    assert heun < euler / 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "schedule"),
    [
        (DDPM(steps=300, grid=Uniform(), variance="small"), Rectified()),
        (DDPM(steps=300, variance="small"), DiscreteVP()),
        (DDPM(steps=300, variance="large"), EDMSchedule()),
        (DDIM(steps=300, eta=1), DiscreteVP()),
        (DDIM(steps=300, eta=0.5), Rectified()),
        (DDIM(steps=300), EDMSchedule()),
        (Heun(steps=100, S_churn=30), EDMSchedule()),
        (Heun(steps=100, S_churn=30), DiscreteVP()),
    ],
)
def test_many_steps_give_the_distribution_of_the_data(mixture_1d, sampler: DiffusionSampler, schedule: Schedule):
    num = 4000
    x = sampler.sample(mixture_1d, schedule, Noise(0, range(num)), (1,))
    weights, means, variances = mixture_1d.weights, mixture_1d.means[:, 0], mixture_1d.variances[:, 0]
    mean = float(weights @ means)
    variance = float(weights @ (variances + means**2)) - mean**2
    assert float(x.mean()) == pytest.approx(mean, abs=4 * math.sqrt(variance / num))
    assert float(x.var()) == pytest.approx(variance, rel=0.06)
    exact = stats.kstest(x[:, 0].numpy(), lambda v: cdf(mixture_1d, torch.as_tensor(v)[:, None])[:, 0].numpy())
    assert exact.statistic < 0.03  # 1 % of exact samples of this number exceed 0.026


def test_few_steps_under_and_over_disperse_by_the_kind_of_variance():
    data = GaussianMixtureDenoiser(torch.zeros(1, 1), torch.tensor([0.5]))

    def variance(kind, steps: int) -> float:
        x = DDPM(steps=steps, variance=kind).sample(data, DiscreteVP(), Noise(0, range(4000)), (1,))
        return float(x.var())

    for steps, small, large in [(10, 0.096, 0.40), (20, 0.149, 0.318), (100, 0.228, 0.267)]:
        assert variance("small", steps) == pytest.approx(small, rel=0.1)
        assert variance("large", steps) == pytest.approx(large, rel=0.1)


@pytest.mark.parametrize("kind", ["small", "large"])
def test_the_dispersion_of_ddpm_for_normal_data_is_its_recursion(kind):
    """For x_0 ~ N(0, d^2) a step is linear in x, so the variance obeys a scalar recursion."""
    d2, steps, vp = 0.25, 15, DiscreteVP()
    times = Karras()(vp, steps)
    bar = [float(vp(t)[0]) ** 2 for t in times]
    variance = 1 - bar[0]
    for bar_t, bar_s in zip(bar[:-1], bar[1:], strict=True):
        beta = 1 - bar_t / bar_s
        of_x = math.sqrt(bar_t) * d2 / (bar_t * d2 + 1 - bar_t)  # D = of_x x
        mean = (beta * math.sqrt(bar_s) * of_x + (1 - bar_s) * math.sqrt(1 - beta)) / (1 - bar_t)
        noise = 0.0 if bar_s == 1 else beta * ((1 - bar_s) / (1 - bar_t) if kind == "small" else 1)
        variance = mean**2 * variance + noise
    data = GaussianMixtureDenoiser(torch.zeros(1, 10), torch.tensor([math.sqrt(d2)], dtype=torch.float64))
    x = DDPM(steps=steps, variance=kind).sample(data, vp, Noise(0, range(4000)), (10,))
    assert float(x.var()) == pytest.approx(variance, rel=0.03)
    assert (variance < 0.15) if kind == "small" else (variance > 0.3)
