"""Searched grids against the exact errors of Gaussian data, all paths by brute force, and other grids."""

import math
from itertools import combinations

import pytest
import torch

from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.families.diffusion import (
    EDMSchedule,
    GaussianMixtureDenoiser,
    Karras,
    LinearVP,
    Searched,
)
from lit_gen.families.diffusion.samplers import DiffusionSampler, DPMSolver, Euler, UniPC
from lit_gen.families.diffusion.searched import Leaps

STD = 0.7


def gaussian(std: float = STD) -> GaussianMixtureDenoiser:
    return GaussianMixtureDenoiser(torch.zeros(1, 2), torch.full((1,), std))


def mixture() -> GaussianMixtureDenoiser:
    means = torch.tensor([[1.5, 0.0], [-0.4, 1.1], [-1.0, -1.2]], dtype=torch.float64)
    return GaussianMixtureDenoiser(means, torch.full((3,), 0.25), torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64))


def searched(denoiser: GaussianMixtureDenoiser, fine: int = 61) -> Searched:
    grid = Searched(fine=fine, num_images=64)
    grid.search(denoiser, EDMSchedule(), (2,))
    return grid


@pytest.mark.parametrize("vp", [False, True])
def test_errors_of_leaps_are_those_of_gaussian_data(vp: bool) -> None:
    """y(r) = y_0 sqrt(s^2 + r^2) / sqrt(s^2 + r_0^2), with slope y r / (s^2 + r^2)."""
    schedule = LinearVP() if vp else EDMSchedule()
    grid = Searched(fine=120, num_images=50)
    grid.search(gaussian(), schedule, (2,))
    leaps = grid.leaps
    assert leaps is not None and leaps.evaluations == 120 * 50
    assert leaps.times.tolist() == grid.base(schedule, 120).tolist()
    r = schedule.ratio(leaps.times)
    alpha, sigma = schedule(leaps.times[0])
    start = float(sigma / alpha) * Noise(0, range(50)).normal((2,))
    scale = ((STD**2 + r**2) / (STD**2 + r[0] ** 2)).sqrt()
    size = float(start.double().square().mean(1).sqrt().mean())
    for i, j in ((0, 1), (0, 40), (30, 90), (80, 120), (0, 120), (119, 120)):
        leap = scale[i] * (1 + (r[j] - r[i]) * r[i] / (STD**2 + r[i] ** 2))
        assert float(leaps.costs[i, j]) == pytest.approx(size * abs(float(leap - scale[j])), rel=0.02, abs=2e-4)
    assert torch.isinf(leaps.costs.tril()[torch.ones_like(leaps.costs).tril().bool()]).all()


@pytest.mark.parametrize("coefficient", [0.5, 1.0, 1.15])
def test_the_path_is_the_best_of_all(coefficient: float) -> None:
    costs = torch.rand(9, 9, dtype=torch.float64)
    costs[torch.ones(9, 9).tril().bool()] = math.inf
    leaps = Leaps(torch.linspace(1, 0, 9), costs, 0)
    for steps in range(1, 9):
        paths = [[0, *between, 8] for between in combinations(range(1, 8), steps - 1)]
        best = min(paths, key=lambda path: leaps.cost(path, coefficient))
        assert leaps.path(steps, coefficient) == best
        first = sum(float(costs[i, j]) * coefficient**k for k, (i, j) in enumerate(zip(best, best[1:], strict=False)))
        assert leaps.cost(best, coefficient) == pytest.approx(first, rel=1e-12)


@pytest.mark.parametrize("steps", [3, 4, 5, 6, 7, 11, 21])
def test_it_is_never_worse_in_its_cost_than_karras(steps: int) -> None:
    """With 61 fine steps it could have chosen the times of Karras."""
    grid = searched(mixture())
    assert grid.leaps is not None
    times, own = grid.leaps.times, Karras()(EDMSchedule(), steps)
    path = [int((times - time).abs().argmin()) for time in own]
    torch.testing.assert_close(times[path], own, rtol=1e-9, atol=0)
    found = grid.leaps.path(steps, grid.coefficient)
    assert len(found) == steps + 1
    torch.testing.assert_close(grid(EDMSchedule(), steps), times[found], rtol=0, atol=0)
    assert grid.leaps.cost(found, grid.coefficient) < 0.98 * grid.leaps.cost(path, grid.coefficient)


@pytest.mark.parametrize(("rule", "nfe"), [(Euler, 5), (Euler, 8), (Euler, 12), (DPMSolver, 8), (UniPC, 8)])
def test_samples_end_nearer_to_the_exact_end(rule: type[DiffusionSampler], nfe: int) -> None:
    """The errors of the search are those of Euler; whether another rule gains depends on its number of steps."""
    denoiser, noise = mixture(), range(1000, 1200)

    def ends(sampler: DiffusionSampler) -> torch.Tensor:
        return sampler.sample(denoiser, EDMSchedule(), Noise(7, noise), (2,))

    exact = ends(DPMSolver(order=3, steps=400))
    errors = [
        float((ends(rule(nfe=nfe, grid=grid)) - exact).square().sum(1).mean().sqrt())  # type: ignore[call-arg]
        for grid in (searched(denoiser), Karras())
    ]
    assert errors[0] < 0.8 * errors[1]


def test_what_cannot_be_searched_is_said() -> None:
    with pytest.raises(UserError, match="sampler.grid: Searched has no times before its search"):
        Euler(steps=3, grid=Searched()).sample(gaussian(), EDMSchedule(), Noise(0, range(2)), (2,))
    with pytest.raises(UserError, match="sampler.steps: 12 are more than the 11 of the fine grid"):
        searched(gaussian(), fine=11)(EDMSchedule(), 12)
    for settings in ({"fine": 0}, {"num_images": 0}, {"coefficient": 0.0}, {"coefficient": math.nan}):
        with pytest.raises(UserError, match=f"sampler.grid.{next(iter(settings))}"):
            Searched(**settings)  # type: ignore[arg-type]
