"""iPNDM, LMS and DEIS: weights against exact integrals, order of convergence, special cases equal to other samplers."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.polynomial import Polynomial
from scipy.integrate import quad

from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.data import TwoMoons
from lit_gen.families.diffusion import (
    DiscreteVP,
    EDMSchedule,
    GaussianMixtureDenoiser,
    Karras,
    LinearVP,
    Rectified,
    Schedule,
    Uniform,
)
from lit_gen.families.diffusion.samplers import DDIM, DEIS, IPNDM, LMS, DPMSolver, GridSampler
from lit_gen.families.diffusion.samplers.adams import AdamsBashforth, vp_time
from tests.families.diffusion.exact_answers import run
from tests.families.diffusion.test_multistep import flow_end

LEVELS = (9.1, 14.7, 40.0, 80.0)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("s", [8.7, 2.0, 0.002])
def test_weights_of_lms_integrate_the_polynomial_through_the_values(order: Literal[1, 2, 3, 4], s: float) -> None:
    levels = LEVELS[:order]
    weights = LMS(order=order, steps=5).weights(s, levels)
    for k, level in enumerate(levels):
        others = [other for other in levels if other != level]
        integral = Polynomial.fromroots(others).integ() if others else Polynomial([0, 1])
        scale = math.prod(level - other for other in others)
        assert weights[k] == pytest.approx((integral(s) - integral(levels[0])) / scale, rel=1e-10)
    assert sum(weights) == pytest.approx(s - levels[0], rel=1e-10)


@pytest.mark.parametrize(("variable", "u"), [("log", math.log), ("time", lambda r: float(vp_time(np.array(r))))])
@pytest.mark.parametrize("s", [8.7, 2.0, 0.05])
def test_weights_of_deis_integrate_the_polynomial_in_its_variable(
    variable: Literal["log", "time"], u: Callable[[float], float], s: float
) -> None:
    weights = DEIS(variable=variable, steps=5).weights(s, LEVELS)
    for k, level in enumerate(LEVELS):

        def lagrange(r: float, level: float = level) -> float:
            return math.prod((u(r) - u(other)) / (u(level) - u(other)) for other in LEVELS if other != level)

        assert weights[k] == pytest.approx(quad(lagrange, LEVELS[0], s, epsabs=1e-12, epsrel=1e-12)[0], rel=1e-7)


def test_the_time_of_deis_is_that_of_the_schedule() -> None:
    times = torch.linspace(0.01, 1, 12, dtype=torch.float64)
    np.testing.assert_allclose(vp_time(LinearVP().ratio(times).numpy()), times.numpy(), rtol=1e-12)


def test_ipndm_is_the_published_loop(mixture) -> None:
    """Zhou et al., with alpha = 1: x + (t_next - t) (55 d - 59 d_1 + 37 d_2 - 9 d_3) / 24, and lower orders before."""
    schedule, grid = EDMSchedule(), Karras()
    levels = schedule.ratio(grid(schedule, 9)).tolist()
    x = levels[0] * Noise(0, range(30)).normal((2, 3), torch.float64)
    slopes: list[torch.Tensor] = []
    for level, following in zip(levels[:-2], levels[1:-1], strict=True):
        one = torch.tensor(1.0, dtype=torch.float64)
        slopes.insert(0, (x - mixture(x, one, level * one)) / level)
        d = [*slopes, 0, 0, 0]
        change = {
            1: lambda d: d[0],
            2: lambda d: (3 * d[0] - d[1]) / 2,
            3: lambda d: (23 * d[0] - 16 * d[1] + 5 * d[2]) / 12,
            4: lambda d: (55 * d[0] - 59 * d[1] + 37 * d[2] - 9 * d[3]) / 24,
        }[min(len(slopes), 4)](d)
        x = x + (following - level) * change
    end = mixture(x, one, levels[-2] * one)
    found = IPNDM(steps=9, grid=grid).sample(mixture, schedule, Noise(0, range(30)), (2, 3))
    torch.testing.assert_close(found, end, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "order", "largest"),
    [
        (partial(IPNDM, order=2), 2, 6e-5),
        (IPNDM, 2, 6e-5),
        (partial(LMS, order=2), 2, 4e-4),
        (partial(LMS, order=3), 3, 5e-5),
        (LMS, 4, 1e-5),
        (partial(DEIS, order=3), 3, 4e-5),
        (DEIS, 4, 1e-5),
        (partial(DEIS, order=3, variable="log"), 3, 7e-6),
        (partial(DPMSolver, order=3), 2, 6e-5),
    ],
)
def test_order_of_convergence(sampler: Callable[..., GridSampler], order: int, largest: float) -> None:
    """Between 160 and 320 steps, in the range where the first steps hardly matter."""
    moons = TwoMoons().exact
    points, shape = GaussianMixtureDenoiser(moons.means, moons.variances.sqrt()), (2, 1, 1)
    schedule, start = EDMSchedule(), 80 * Noise(0, range(40)).normal((2, 1, 1), torch.float64)
    end, errors = flow_end(points, start, 80, 0.002), []
    for steps in (160, 320):
        x = sampler(steps=steps, grid=Karras()).sample(points, schedule, Noise(0, range(40)), shape)
        errors.append(float((x - end).flatten(1).norm(dim=1).median()))
    assert order - 0.3 < math.log2(errors[0] / errors[1]) < order + 0.3
    assert errors[1] < largest


@pytest.mark.parametrize("schedule", [EDMSchedule(), DiscreteVP(), Rectified(), LinearVP()])
@pytest.mark.parametrize("cls", [IPNDM, LMS, DEIS])
def test_order_1_and_a_step_without_a_past_are_ddim(mixture, cls: type[AdamsBashforth], schedule: Schedule) -> None:
    ddim = DDIM(steps=9)
    torch.testing.assert_close(
        run(cls(order=1, steps=9), mixture, schedule), run(ddim, mixture, schedule), rtol=1e-9, atol=1e-9
    )
    x, noise = torch.randn(4, 2, 3, dtype=torch.float64), Noise(0, range(4))
    one = cls(steps=9).step(mixture, schedule, x, 0.6, 0.5, noise)
    torch.testing.assert_close(one, ddim.step(mixture, schedule, x, 0.6, 0.5, noise), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("cls", [IPNDM, LMS, DEIS])
def test_a_schedule_does_not_matter_in_the_noise_level(mixture, cls: type[AdamsBashforth]) -> None:
    """The method works with x / alpha and sigma / alpha, so two schedules with equal levels give equal images."""
    images = [
        cls(steps=8, grid=Karras(sigma_min=0.01, sigma_max=20)).sample(mixture, schedule, Noise(0, range(20)), (2, 3))
        for schedule in (EDMSchedule(sigma_min=0.01, sigma_max=20), EDMSchedule())
    ]
    torch.testing.assert_close(*images, rtol=1e-9, atol=1e-9)


def test_wrong_settings_are_named(mixture) -> None:
    for cls in (IPNDM, LMS, DEIS):
        with pytest.raises(UserError, match=f"sampler.order: 5 is not an order of {cls.__name__}; choose 1, 2, 3 or 4"):
            cls(order=5)  # type: ignore[arg-type]
        with pytest.raises(UserError, match="sampler.grid: Uniform starts at pure noise"):
            run(cls(steps=3, grid=Uniform()), mixture, Rectified())
    with pytest.raises(UserError, match="sampler.variable: 'rho' is not a variable; choose time or log"):
        DEIS(variable="rho")  # type: ignore[arg-type]
    unlike: list[dict[str, Any]] = [{"method": "singlestep"}, {"eta": 0.5}]
    for settings in unlike:
        with pytest.raises(UserError, match="sampler.order: 3 is multistep and has no noise"):
            DPMSolver(order=3, **settings)
