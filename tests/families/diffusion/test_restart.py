"""Restart sampling: marginals, evaluations, the rule against a loop, and the contraction of errors."""

import math

import pytest
import torch

from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.families.diffusion import DiscreteVP, EDMSchedule, Karras, LinearVP, Rectified, Schedule
from lit_gen.families.diffusion.samplers import Heun, Restart
from tests.families.diffusion.exact_answers import kolmogorov_smirnov, run


def test_no_restart_is_heun(mixture, schedule) -> None:
    assert torch.equal(run(Restart(steps=7, repeats=0), mixture, schedule), run(Heun(steps=7), mixture, schedule))


@pytest.mark.parametrize("schedule", [EDMSchedule(), DiscreteVP(), Rectified(), LinearVP()])
def test_marginals_are_kept(mixture_1d, schedule: Schedule) -> None:
    """50,000 points: a difference above 0.0073 has a probability of 1 %."""
    grid = Karras(sigma_min=0.01, sigma_max=60)
    sampler = Restart(steps=24, low=0.3, high=5.0, interval_steps=12, repeats=2, grid=grid)
    states = dict(sampler.trajectory(mixture_1d, schedule, Noise(4, range(50_000)), (1,)))
    place = sampler.place(schedule, sampler.times(schedule))
    assert 0.2 < float(schedule.ratio(place)) < 0.45
    assert kolmogorov_smirnov(mixture_1d, states[place], *schedule(place)) < 0.0073
    assert kolmogorov_smirnov(mixture_1d, states[0.0]) < 0.0085, "with the error of 24 steps"


def test_it_is_the_published_loop(mixture) -> None:
    schedule, grid, noise = EDMSchedule(), Karras(), Noise(1, range(20))
    sampler = Restart(steps=6, low=0.5, high=3.0, interval_steps=3, repeats=2, S_noise=1.1, grid=grid)
    levels = schedule.ratio(grid(schedule, 6)).tolist()
    place = min(range(1, 6), key=lambda index: abs(math.log(levels[index] / 0.5)))
    one = torch.tensor(1.0, dtype=torch.float64)

    def heun(x: torch.Tensor, level: float, following: float) -> torch.Tensor:
        slope = (x - mixture(x, one, level * one)) / level
        end = x + (following - level) * slope
        if following == 0:
            return end
        return x + (following - level) / 2 * (slope + (end - mixture(end, one, following * one)) / following)

    x = levels[0] * noise.normal((2, 3), torch.float64)
    for index in range(6):
        x = heun(x, levels[index], levels[index + 1])
        if index + 1 == place:
            low = levels[place]
            inner = [(3 ** (1 / 7) + k / 3 * (low ** (1 / 7) - 3 ** (1 / 7))) ** 7 for k in range(4)]
            for _ in range(2):
                x = x + 1.1 * math.sqrt(9 - low**2) * noise.normal((2, 3), torch.float64)
                for k in range(3):
                    x = heun(x, inner[k], inner[k + 1])
    found = sampler.sample(mixture, schedule, Noise(1, range(20)), (2, 3))
    torch.testing.assert_close(found, x, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("settings", "steps", "evaluations"),
    [
        ({"nfe": 35, "repeats": 2, "interval_steps": 3}, 12, 35),
        ({"nfe": 36, "repeats": 1, "interval_steps": 2}, 16, 35),
        ({"steps": 5}, 5, 9 + 16),
    ],
)
def test_a_budget_is_filled_and_not_exceeded(mixture, settings: dict, steps: int, evaluations: int) -> None:
    sampler = Restart(low=0.5, high=30.0, **settings)
    run(sampler, mixture, EDMSchedule(), num=2)
    assert (sampler.steps, mixture.evaluations) == (steps, evaluations)


def test_restarts_contract_an_error_made_before(mixture_1d) -> None:
    """Points that start far from their marginal come nearer to it."""
    schedule, grid = EDMSchedule(), Karras(sigma_max=2.0, sigma_min=0.05)
    wrong = EDMSchedule(sigma_max=2.0)

    def far(repeats: int) -> float:
        sampler = Restart(steps=12, low=0.1, high=1.5, interval_steps=10, repeats=repeats, grid=grid, schedule=wrong)
        return kolmogorov_smirnov(mixture_1d, sampler.sample(mixture_1d, schedule, Noise(0, range(20_000)), (1,)))

    without, once, often = (far(repeats) for repeats in (0, 1, 6))
    assert without > 0.03, "the noise of level 2 hides too little of the data"
    assert once < 0.8 * without and often < 0.5 * without


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"low": 0.5, "high": 0.4}, "low"),
        ({"low": 0.0}, "low"),
        ({"interval_steps": 0}, "interval_steps"),
        ({"repeats": -1}, "repeats"),
        ({"nfe": 10}, "nfe"),
        ({"S_noise": 0.0}, "S_noise"),
    ],
)
def test_wrong_settings_are_named(settings: dict, key: str) -> None:
    with pytest.raises(UserError, match=f"sampler.{key}: "):
        Restart(**settings)


def test_an_interval_outside_the_grid_is_named(mixture) -> None:
    for steps, high in ((1, 0.3), (2, 0.15), (3, 0.1)):
        with pytest.raises(UserError, match="sampler.high: no level of the grid near"):
            run(Restart(steps=steps, high=high, grid=Karras(sigma_min=0.2)), mixture, EDMSchedule())
