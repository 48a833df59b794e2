"""DPM-Solver++ and UniPC: order of convergence, and special cases equal to other samplers."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from lit_gen.core.noise import Noise
from lit_gen.data import TwoMoons
from lit_gen.families.diffusion import (
    Denoiser,
    DiscreteVP,
    EDMSchedule,
    GaussianMixtureDenoiser,
    Grid,
    Karras,
    LinearVP,
    Rectified,
    Schedule,
    Uniform,
    UniformLogSNR,
)
from lit_gen.families.diffusion.samplers import DDIM, DiffusionSampler, DPMSolver, UniPC
from tests.families.diffusion.exact_answers import SAMPLERS, Fixed, Point, Silent, error, kolmogorov_smirnov, run

DEEP = EDMSchedule(sigma_min=1e-6)  # lets a grid end so close to the data that the remaining error is negligible
FINE = UniformLogSNR(sigma_min=1e-5)


@pytest.mark.parametrize(
    ("sampler", "schedule", "grid", "order", "bound"),
    [
        (partial(DPMSolver, order=1), DEEP, FINE, 1, 0.03),
        (DPMSolver, DEEP, FINE, 2, 1e-3),
        (DPMSolver, DiscreteVP(num_timesteps=100_000), UniformLogSNR(sigma_min=1e-4), 2, 1e-3),
        (DPMSolver, Rectified(), Karras(sigma_min=0.001), 2, 1e-3),
        (partial(DPMSolver, method="singlestep"), DEEP, FINE, 2, 1e-3),
        (partial(DPMSolver, method="singlestep"), Rectified(), Karras(sigma_min=0.001), 2, 1e-3),
        (partial(UniPC, order=1, corrector=False), DEEP, FINE, 1, 0.03),
        (partial(UniPC, order=1), DEEP, FINE, 2, 3e-3),
        (partial(UniPC, order=1, variant="bh1"), DEEP, FINE, 2, 3e-3),
        (partial(UniPC, order=2, corrector=False), DEEP, FINE, 2, 1e-3),
        (partial(UniPC, order=2), DEEP, FINE, 3, 1.5e-4),
        (partial(UniPC, order=2, variant="bh1"), DEEP, FINE, 3, 3e-4),
        (partial(UniPC, order=3, corrector=False), DEEP, FINE, 3, 1e-4),
        (partial(UniPC, order=3), DEEP, FINE, 4, 2e-5),
        (partial(UniPC, order=3), LinearVP(min_time=1e-12), FINE, 4, 3e-5),
    ],
)
def test_order_of_convergence(mixture_1d, sampler, schedule: Schedule, grid: Grid, order: int, bound: float):
    coarse, fine = (error(mixture_1d, sampler(steps=steps, grid=grid), schedule) for steps in (60, 120))
    assert order - 0.1 < math.log2(coarse / fine) < order + 0.3
    assert fine < bound


def flow_end(points: GaussianMixtureDenoiser, start: torch.Tensor, sigma_max: float, sigma_min: float) -> torch.Tensor:
    """Return the end (N, 2) of the exact flow from sigma_max to sigma_min, and the denoiser there, to 1e-13."""

    def denoise(x: torch.Tensor, sigma: float) -> torch.Tensor:
        one = torch.tensor(1.0, dtype=torch.float64)
        return points.denoise(x.reshape(start.shape), one, sigma * one, None)

    def slope(log_snr: float, x: np.ndarray) -> np.ndarray:  # dx / dlambda = D - x for alpha = 1
        state = torch.from_numpy(x)
        return (denoise(state, math.exp(-log_snr)).flatten() - state).numpy()

    times = -math.log(sigma_max), -math.log(sigma_min)
    solved = solve_ivp(slope, times, start.flatten().numpy(), method="DOP853", rtol=1e-13, atol=1e-14)
    return denoise(torch.from_numpy(solved.y[:, -1]), sigma_min)


@pytest.mark.parametrize(
    ("sigma_max", "steps", "order", "largest"),
    [
        (80.0, 128, 4, 3e-7),  # the range that docs/diffusion.md plots
        (0.5, 256, 3, 1e-8),  # the first step, of order 2 with its corrector, matters here
        pytest.param(80.0, 2048, 3, 2e-11, marks=[pytest.mark.slow, pytest.mark.exhaustive]),
    ],
)
def test_unipc_of_order_3_is_of_the_fourth_order_before_the_limit_and_of_the_third_in_it(
    sigma_max: float, steps: int, order: int, largest: float
) -> None:
    moons = TwoMoons().exact
    points, shape = GaussianMixtureDenoiser(moons.means, moons.variances.sqrt()), (2, 1, 1)
    start = sigma_max * Noise(0, range(40)).normal(shape, torch.float64)
    schedule, grid = EDMSchedule(sigma_max=sigma_max), Karras(sigma_max=sigma_max)
    end = flow_end(points, start, sigma_max, 0.002)
    errors = []
    for number in (steps, 2 * steps):
        x = UniPC(steps=number, order=3, grid=grid).sample(points, schedule, Noise(0, range(40)), shape)
        errors.append(float((x - end).flatten(1).norm(dim=1).median()))
    assert order - 0.2 < math.log2(errors[0] / errors[1]) < order + 0.3
    assert errors[1] < largest


def test_at_equal_evaluations_the_higher_order_is_closer(mixture_1d):
    order1, order2, order3 = (
        error(mixture_1d, sampler(nfe=40, grid=FINE), DEEP) for sampler in (DDIM, DPMSolver, partial(UniPC, order=2))
    )
    assert order2 < order1 / 3 and order3 < order2 / 1.5


# Equality with other samplers.


def test_order_1_is_ddim(mixture, schedule):
    for sampler in (DPMSolver(steps=9, order=1), UniPC(steps=9, order=1, corrector=False)):
        torch.testing.assert_close(
            run(sampler, mixture, schedule), run(DDIM(steps=9), mixture, schedule), rtol=1e-10, atol=1e-10
        )
    stochastic = run(DPMSolver(steps=9, order=1, eta=1.0), mixture, schedule)
    torch.testing.assert_close(stochastic, run(DDIM(steps=9, eta=1.0), mixture, schedule), rtol=1e-10, atol=1e-10)


def test_a_step_without_a_past_is_of_order_1(mixture, schedule):
    x = torch.randn(4, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    noise = Noise(0, range(4))
    for sampler in (DPMSolver(steps=9), UniPC(steps=9, order=3)):
        torch.testing.assert_close(
            sampler.step(mixture, schedule, x, 0.6, 0.5, noise),
            DDIM(steps=9).step(mixture, schedule, x, 0.6, 0.5, noise),
            rtol=1e-10,
            atol=1e-10,
        )


def test_unip_of_order_2_is_2m(mixture, schedule):
    unip = run(UniPC(steps=9, order=2, corrector=False), mixture, schedule)
    torch.testing.assert_close(unip, run(DPMSolver(steps=9), mixture, schedule), rtol=1e-9, atol=1e-9)


def test_without_noise_the_sde_is_2m():
    """The formula of SDE-DPM-Solver++ with the noise at eta: e^{-2h} -> e^{-(1 + eta) h} at eta = 0."""
    levels = [2.0, 1.1, 0.7]
    for eta in (0.0, 0.3, 1.0):
        guesses = []

        class Line(Denoiser):
            def denoise(self, x, alpha, sigma, labels):
                guesses.append(0.3 * x + 0.1)  # noqa: B023
                return guesses[-1]  # noqa: B023

        t = [level / 80 for level in levels] + [0.0]
        start = torch.full((1, 1), 0.4, dtype=torch.float64)
        states = DPMSolver(steps=3, eta=eta).integrate(Line(), EDMSchedule(), start, t, Fixed(0.5, 1))
        x, past = 0.4, None
        for (level, after), (_, state) in zip(zip(levels[:-1], levels[1:], strict=True), states, strict=False):
            h = math.log(level / after)
            denoised = 0.3 * x + 0.1
            guess = denoised if past is None else denoised + h / (2 * past[0]) * (denoised - past[1])
            past = h, denoised
            spread = after * math.sqrt(1 - math.exp(-2 * eta * h))
            x = after / level * math.exp(-eta * h) * x + (1 - math.exp(-(1 + eta) * h)) * guess + spread * 0.5
            assert float(state) == pytest.approx(x, rel=1e-12)


def test_singlestep_evaluates_the_middle_of_the_step(schedule):
    point = Point(torch.zeros((), dtype=torch.float64))
    levels = torch.tensor([1.7, 0.2], dtype=torch.float64)
    t, s = schedule.time(levels).tolist()
    x = torch.ones(2, 3, dtype=torch.float64)
    DPMSolver(steps=1, method="singlestep").step(point, schedule, x, t, s, Silent(0, range(2)))
    (_, alpha_0, sigma_0), (_, alpha_1, sigma_1) = point.seen
    assert sigma_0 / alpha_0 == pytest.approx(1.7, rel=1e-9)
    assert sigma_1 / alpha_1 == pytest.approx(math.sqrt(1.7 * 0.2), rel=1e-9)


def test_unipc_is_exact_for_a_quadratic_in_log_snr():
    """Order 3 with two earlier values integrates D = a + b lambda + c lambda^2 without error, corrected or not."""

    class Quadratic(Denoiser):
        def denoise(self, x, alpha, sigma, labels):
            log_snr = (alpha / sigma).log()
            return (0.2 - 0.5 * log_snr + 0.3 * log_snr**2).expand_as(x)

    def exact(x: float, level: float, after: float) -> float:
        """Return the solution by the trapezoidal rule, in the variable of the levels."""
        sigmas = torch.linspace(level, after, 200001, dtype=torch.float64)
        denoised = Quadratic().denoise(sigmas, torch.ones_like(sigmas), sigmas, None)
        return float(after / level * x - after * torch.trapezoid(denoised / sigmas**2, sigmas))

    levels = [4.0, 2.5, 1.9, 1.2, 0.8, 0.5, 0.4, 0.3]
    start = torch.full((1, 1), 0.4, dtype=torch.float64)
    times = [level / 80 for level in levels] + [0.0]
    for corrector in (False, True):
        sampler = UniPC(steps=8, order=3, corrector=corrector)
        states = sampler.integrate(Quadratic(), EDMSchedule(), start, times, Silent(0, [0]))
        x = [0.4, *(float(state) for _, state in states)]
        errors = [x[i + 1] - exact(x[i], levels[i], levels[i + 1]) for i in range(6)]
        assert max(abs(error) for error in errors[3:]) < 1e-8
        # Earlier steps have lower order, and after the third step the corrector has changed x.
        assert abs(errors[1]) > 1e-3 and (abs(errors[2]) < 1e-8) is not corrector


# Noise.


@pytest.mark.parametrize(
    "sampler",
    [s for s in SAMPLERS if isinstance(s, UniPC) or (isinstance(s, DPMSolver) and s.eta == 0)],
)
def test_draws_no_noise_when_deterministic(mixture, schedule, sampler: DiffusionSampler):
    first, second = (sampler.sample(mixture, schedule, Silent(3, range(4)), (2, 3)) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize(("eta", "schedule"), [(1.0, EDMSchedule()), (0.5, DiscreteVP()), (3.0, Rectified())])
def test_noise_keeps_the_distribution(mixture_1d, eta: float, schedule: Schedule):
    x = DPMSolver(steps=80, eta=eta).sample(mixture_1d, schedule, Noise(0, range(2000)), (1,))
    assert kolmogorov_smirnov(mixture_1d, x) < 0.036


# Pure noise.


@pytest.mark.parametrize("sampler", [DPMSolver(steps=5), UniPC(steps=5, order=3), UniPC(steps=5, variant="bh1")])
def test_from_pure_noise_the_first_step_returns_the_mean(mixture, sampler: DiffusionSampler):
    """The first step has order 1, without correction or history: the rest equals the sampler started after it."""
    rectified, uniform = Rectified(), Uniform()
    times = uniform(rectified, 5).tolist()
    noise = Noise(3, range(8))
    x = noise.normal((2, 3), torch.float64)
    states = [x, *(state for _, state in sampler.integrate(mixture, rectified, x, times, noise))]
    first = DDIM(steps=1).step(mixture, rectified, x, times[0], times[1], noise)
    torch.testing.assert_close(states[1], first, rtol=1e-12, atol=1e-12)
    rest = list(sampler.integrate(mixture, rectified, first, times[1:], noise))
    torch.testing.assert_close(states[-1], rest[-1][1], rtol=1e-10, atol=1e-10)


def test_one_object_may_draw_twice_at_once(mixture, schedule):
    """A sampler keeps no state: two trajectories can alternate steps."""
    for sampler in (DPMSolver(steps=6), UniPC(steps=6, order=3)):
        turns = [sampler.trajectory(mixture, schedule, Noise(seed, range(3)), (2, 3)) for seed in (0, 1)]
        ends = list(zip(*turns, strict=True))[-1]
        for seed, (_, x) in enumerate(ends):
            alone = sampler.sample(mixture, schedule, Noise(seed, range(3)), (2, 3))
            assert torch.equal(x, alone)
