"""Stochastic samplers on normal data: the orders at which mean and variance converge, with no noise in the answer.

Each starts at x = sigma eps with sigma no greater than the data, where both moments are wrong by as much as can be. The
exact solver forgets this at a known rate, and the sampler has to do so as well: neither moment is right by itself.
"""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from lit_gen.families.diffusion import (
    Cosine,
    DiscreteVP,
    EDMSchedule,
    Grid,
    Karras,
    LinearVP,
    Rectified,
    Schedule,
    SubVP,
    UniformLogSNR,
)
from lit_gen.families.diffusion.samplers import (
    DDIM,
    DDPM,
    DiffusionSampler,
    DPMSolver,
    EulerMaruyama,
    Heun,
    PredictorCorrector,
)
from tests.families.diffusion.exact_answers import moments_for_normal_data

pytestmark = pytest.mark.slow
"""End-to-end runs; the gate runs them."""

MEAN, STD, SIGMA_MAX = 0.3, 0.5, 1.0
KARRAS, LOG_SNR = Karras(sigma_max=SIGMA_MAX), UniformLogSNR(sigma_max=SIGMA_MAX)
EDM, VP, STRAIGHT = EDMSchedule(), LinearVP(), Rectified()

# How much of the distance of x / alpha from the mean an exact solver keeps between the first level and the last.
Factor = Callable[[Tensor], float]


def damping(integral: Callable[[Tensor], Tensor]) -> Factor:
    """exp(-int (1 + eta) sigma / (STD^2 + sigma^2) dsigma), with eta = g^2 in units of that of the forward process."""
    return lambda levels: float((integral(levels[-1]) - integral(levels[0])).exp())


def sde(eta: float) -> Factor:
    return damping(lambda sigma: (1 + eta) / 2 * (STD**2 + sigma**2).log())


def damped(noise_scale: float) -> Factor:
    """eta = noise_scale^2 / (1 + sigma)."""

    def integral(sigma: Tensor) -> Tensor:
        flow = (STD**2 + sigma**2).log() / 2
        return flow + noise_scale**2 / (1 + STD**2) * (flow + STD * (sigma / STD).atan() - sigma.log1p())

    return damping(integral)


def churn(S_churn: float) -> Factor:
    """The exact flow from each raised level to the next: the noise of a step is no error of its own."""

    def factor(levels: Tensor) -> float:
        raised = (1 + S_churn / len(levels)) * levels
        return float(((STD**2 + levels[1:] ** 2) / (STD**2 + raised[:-1] ** 2)).sqrt().prod())

    return factor


def corrected(steps: int, eta: float, **kwargs) -> PredictorCorrector:
    """Corrector steps of a size that, on `LOG_SNR`, makes them the noise of a reverse SDE.

    A step's 2 e = 4 snr^2 sigma^2 is then eta times the forward process's 2 sigma^2 h between two levels.
    """
    h = math.log(SIGMA_MAX / 0.002) / (steps - 1)
    return PredictorCorrector(steps=steps, snr=math.sqrt(eta * h / 2), norm="level", **kwargs)


HEUN = partial(Heun, S_churn=4.0, S_min=0.0021)  # no churn at the last level, from which D is returned


def exact_law(levels: Tensor, factor: float) -> tuple[float, float]:
    """Mean and variance of what an exact solver makes of x_0 ~ N(MEAN, STD^2), started at x = sigma eps.

    That start is wrong by -MEAN in the mean of x / alpha and by -STD^2 in its variance, of which the solver leaves
    -factor MEAN and -factor^2 STD^2 at the last level. There D is returned, which shrinks distances once more.
    """
    variance = STD**2 + float(levels[-1]) ** 2
    of_denoiser = STD**2 / variance
    return MEAN * (1 - of_denoiser * factor), of_denoiser**2 * (variance - (factor * STD) ** 2)


# The v of a learned variance, by the levels sigma / alpha of the grid.
Learned = Callable[[Tensor], Callable[[Tensor, Tensor, Tensor], Tensor]]


def constant(levels: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Anywhere between small and large."""
    return lambda x, alpha, sigma: torch.full_like(x, 0.3)


def in_the_limit(levels: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """That of many steps, with which the variance of a step is exact but for the square of its length.

    With r = sigma / alpha, small, large and the variance of x_s given x_t are in proportion to r^2, 1 + r^2 and
    STD^2 + r^2 at s over the same at t; v is that for which their logarithms have derivatives in that proportion.
    """

    def v(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        square = (sigma / alpha) ** 2
        return torch.ones_like(x) * STD**2 * (1 + square) / (STD**2 + square)

    return v


def of_each_step(levels: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """That with which the variance of every step is exact: what a network learns for the steps of its own chain."""
    small, exact, large = ((c + levels[1:] ** 2).log() - (c + levels[:-1] ** 2).log() for c in (0, STD**2, 1))
    each = torch.cat([(exact - small) / (large - small), torch.zeros(1)])  # none at the last level

    def v(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return torch.ones_like(x) * each[(levels.log() - (sigma / alpha).log()).abs().argmin()]

    return v


EXACT = math.inf

# The orders are those of the mean and of the variance. Under the reverse SDE of eta = 1 the expectation of D stays what
# it is, so that samplers that are exact but for D err in the variance alone.
CASES: dict[str, tuple[Callable[..., DiffusionSampler], Schedule, Grid, Factor, float, int]] = {
    "ddpm-small": (partial(DDPM, variance="small"), EDM, LOG_SNR, sde(1), EXACT, 1),
    "ddpm-small-discrete": (partial(DDPM, variance="small"), DiscreteVP(), KARRAS, sde(1), EXACT, 1),
    "ddpm-large": (partial(DDPM, variance="large"), EDM, LOG_SNR, sde(1), EXACT, 1),
    "ddpm-large-vp": (partial(DDPM, variance="large"), VP, KARRAS, sde(1), EXACT, 1),
    "ddim-0.5": (partial(DDIM, eta=0.5), EDM, LOG_SNR, sde(0.25), 1, 1),
    "ddim-0.5-straight": (partial(DDIM, eta=0.5), STRAIGHT, KARRAS, sde(0.25), 1, 1),
    "ddim-1": (partial(DDIM, eta=1.0), VP, LOG_SNR, sde(1), EXACT, 1),
    "heun": (HEUN, EDM, KARRAS, churn(4.0), 2, 2),
    "heun-log-snr": (HEUN, VP, LOG_SNR, churn(4.0), 2, 2),
    "heun-rectified": (partial(HEUN, coordinates="rectified"), STRAIGHT, KARRAS, churn(4.0), 2, 2),
    "sde": (EulerMaruyama, EDM, LOG_SNR, sde(1), 1, 1),
    "sde-0.3": (partial(EulerMaruyama, noise_scale=0.3), VP, LOG_SNR, sde(0.09), 1, 1),
    "sde-2": (partial(EulerMaruyama, noise_scale=2.0), VP, LOG_SNR, sde(4), 1, 1),
    "sde-rectified": (partial(EulerMaruyama, coordinates="rectified"), VP, KARRAS, sde(1), 1, 1),
    "sde-damped": (partial(EulerMaruyama, coordinates="rectified", g="damped"), STRAIGHT, KARRAS, damped(1), 1, 1),
    "sde-vp": (partial(EulerMaruyama, coordinates="schedule"), VP, KARRAS, sde(1), 1, 1),
    "sde-subvp": (partial(EulerMaruyama, coordinates="schedule"), SubVP(), KARRAS, sde(1), 1, 1),
    "sde-cosine-damped": (
        partial(EulerMaruyama, coordinates="schedule", g="damped", noise_scale=0.8),
        *(Cosine(), KARRAS, damped(0.8), 1, 1),
    ),
    "dpm-1": (partial(DPMSolver, order=1, eta=1.0), EDM, KARRAS, sde(1), EXACT, 1),
    "dpm-1-0.5": (partial(DPMSolver, order=1, eta=0.5), EDM, KARRAS, sde(0.5), 1, 1),
    "dpm-2": (partial(DPMSolver, eta=1.0), EDM, KARRAS, sde(1), EXACT, 2),
    "dpm-2-straight": (partial(DPMSolver, eta=1.0), STRAIGHT, KARRAS, sde(1), EXACT, 2),
    "dpm-2-0.5": (partial(DPMSolver, eta=0.5), VP, LOG_SNR, sde(0.5), 2, 2),
    "dpm-2-3": (partial(DPMSolver, eta=3.0), VP, LOG_SNR, sde(3), 2, 2),
    "corrected-flow": (partial(corrected, eta=2, predictor="probability_flow"), VP, LOG_SNR, sde(2), 1, 1),
    "corrected-ancestral": (partial(corrected, eta=1, predictor="ancestral"), VP, LOG_SNR, sde(2), 1, 1),
    "corrected-twice": (partial(corrected, eta=0.5, corrector_steps=2), EDM, LOG_SNR, sde(2), 1, 1),
}


@pytest.mark.parametrize(
    ("sampler", "schedule", "grid", "factor", "mean_order", "variance_order"), CASES.values(), ids=CASES
)
def test_weak_order_of_mean_and_variance(
    sampler, schedule: Schedule, grid: Grid, factor: Factor, mean_order, variance_order
):
    check_orders(sampler, schedule, grid, factor, mean_order, variance_order)


@pytest.mark.parametrize(("schedule", "grid"), [(EDM, LOG_SNR), (VP, KARRAS), (DiscreteVP("cosine"), KARRAS)])
@pytest.mark.parametrize(("learned", "variance_order"), [(constant, 1), (in_the_limit, 2), (of_each_step, EXACT)])
def test_weak_order_with_a_learned_variance(schedule: Schedule, grid: Grid, learned: Learned, variance_order):
    """Any v gives the right law in the limit; the right one with order 2, not 1, and that of each step at once."""
    check_orders(partial(DDPM, variance="learned"), schedule, grid, sde(1), EXACT, variance_order, learned)


def check_orders(
    sampler, schedule: Schedule, grid: Grid, factor: Factor, mean_order, variance_order, learned: Learned | None = None
):
    errors = []
    for steps in (60, 120):
        levels = schedule.ratio(grid(schedule, steps))[:-1]
        exact_mean, exact_variance = exact_law(levels, factor(levels))
        v = None if learned is None else learned(levels)
        mean, std = moments_for_normal_data(sampler(steps=steps, grid=grid), schedule, MEAN, STD, v)
        errors.append((mean - exact_mean, std**2 - exact_variance))
    for (coarse, fine), order in zip(zip(*errors, strict=True), (mean_order, variance_order), strict=True):
        if order == EXACT:
            assert abs(coarse) < 1e-12 and abs(fine) < 1e-12
        else:
            assert order - 0.15 < math.log2(coarse / fine) < order + 0.25
            assert abs(fine) < (0.02 if order == 1 else 1e-3)
