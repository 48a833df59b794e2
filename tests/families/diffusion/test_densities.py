import math
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy import stats

from lit_gen.core.errors import UserError
from lit_gen.families.diffusion import (
    VE,
    Cosine,
    DiscreteVP,
    EDMSchedule,
    FixedTime,
    ImportanceSampling,
    LinearVP,
    LogitNormal,
    LognormalSigma,
    Rectified,
    Schedule,
    SubVP,
    TimeDensity,
    UniformLogSigma,
    UniformSteps,
    UniformTime,
)
from lit_gen.families.diffusion.densities import independent, lattice

PAIRS: list[tuple[TimeDensity, Schedule]] = [
    *((UniformTime(), schedule) for schedule in (Rectified(), EDMSchedule(), LinearVP(min_time=0.1), VE(), Cosine())),
    *((LognormalSigma(-0.4, 0.8), schedule) for schedule in (Rectified(), EDMSchedule(), LinearVP(), SubVP())),
    *((UniformLogSigma(), schedule) for schedule in (VE(), EDMSchedule(), SubVP(), LinearVP())),
    *((LogitNormal(0.3, 0.7), schedule) for schedule in (Rectified(), Cosine())),
]
pairs = pytest.mark.parametrize(
    ("density", "schedule"), PAIRS, ids=[f"{type(a).__name__}-{type(b).__name__}" for a, b in PAIRS]
)


@pairs
def test_the_pdf_is_the_slope_of_the_distribution(density, schedule):
    u = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    step = 1e-6
    slope = (density.quantile(schedule, u + step) - density.quantile(schedule, u - step)) / (2 * step)
    torch.testing.assert_close(
        density.pdf(schedule, density.quantile(schedule, u)) * slope, torch.ones_like(u), rtol=1e-6, atol=0
    )


@pairs
def test_times_increase_within_those_of_the_schedule(density, schedule):
    u = torch.linspace(0, 1, 1001, dtype=torch.float64).clamp(2**-54, 1 - 2**-53)
    t = density.quantile(schedule, u)
    assert t.dtype == torch.float64 and (t.diff() >= 0).all()
    assert t.min() >= 0 and t.isfinite().all()
    if not isinstance(density, LognormalSigma):
        assert t.max() <= 1 + 1e-12


@pairs
def test_independent_draws_have_the_distribution(density, schedule):
    torch.manual_seed(0)
    t = density(schedule, 20000)
    laws: dict[type, Callable[[], tuple[torch.Tensor, Any]]] = {
        UniformTime: lambda: (t, stats.uniform(low := float(schedule.time(schedule.min_ratio)), 1 - low)),
        LognormalSigma: lambda: (schedule.ratio(t).log(), stats.norm(-0.4, 0.8)),
        UniformLogSigma: lambda: (
            schedule.ratio(t).log(),
            stats.uniform(math.log(schedule.min_ratio), math.log(schedule.max_ratio / schedule.min_ratio)),
        ),
        LogitNormal: lambda: (t.logit(), stats.norm(0.3, 0.7)),
    }
    values, law = laws[type(density)]()
    assert stats.kstest(values.numpy(), law.cdf).pvalue > 1e-3


def test_uniform_steps_are_equally_long_intervals_of_u():
    schedule = DiscreteVP(num_timesteps=20)
    u = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    t = UniformSteps().quantile(schedule, u)
    steps = (t * 20).round()
    torch.testing.assert_close(steps / 20, t, rtol=0, atol=0)
    assert torch.bincount(steps.long()).tolist() == [0] + [100] * 20
    assert UniformSteps().pdf(schedule, t).tolist() == [1.0] * 2000


def test_uniform_rectified_time_is_a_logistic_log_sigma():
    u = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    t = UniformTime().quantile(Rectified(), u)
    torch.testing.assert_close(Rectified().ratio(t).log(), u.logit())


@pytest.mark.parametrize(
    ("density", "schedule", "remedy"),
    [
        (UniformSteps(), Rectified(), "UniformTime"),
        (UniformLogSigma(), Rectified(), "UniformTime"),
    ],
)
def test_a_schedule_that_does_not_suit_is_refused(density, schedule, remedy):
    with pytest.raises(UserError, match=remedy):
        density(schedule, 3)


@pytest.mark.parametrize("density", [LognormalSigma, LogitNormal])
def test_a_width_must_be_positive(density):
    with pytest.raises(UserError, match="std"):
        density(std=0)


def test_fixed_time():
    assert FixedTime(0.25)(Rectified(), 3).tolist() == [0.25] * 3
    assert FixedTime()(Rectified(), 1).item() == 1
    with pytest.raises(UserError, match="ELBO"):
        FixedTime().pdf(Rectified(), torch.ones(1))
    with pytest.raises(UserError, match=r"^t: 0 is outside"):
        FixedTime(0)


def test_independent_numbers_follow_the_global_seed():
    torch.manual_seed(5)
    first = independent(8)
    torch.manual_seed(5)
    assert torch.equal(first, independent(8))
    assert not torch.equal(first, independent(8))
    assert first.dtype == torch.float64


@pytest.mark.parametrize("offset", [0.0, 0.123456, 0.5, 1 - 2**-53])
def test_the_lattice_of_the_parts_is_that_of_the_whole(offset):
    whole = lattice(offset, 0, 12, 12)
    assert torch.equal(torch.cat([lattice(offset, first, 4, 12) for first in (0, 4, 8)]), whole)
    assert whole.min() > 0 and whole.max() < 1
    distance = (whole - torch.arange(12).double() / 12 - offset) % 1  # around the circle
    torch.testing.assert_close(torch.minimum(distance, 1 - distance), torch.zeros_like(whole), rtol=0, atol=1e-9)


def test_each_number_of_the_lattice_is_uniform():
    offsets = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    third = torch.stack([lattice(float(offset), 2, 1, 7) for offset in offsets])
    torch.testing.assert_close(third.flatten().sort().values, offsets, rtol=0, atol=1e-3)


def test_the_lattice_lowers_the_variance_of_a_mean():
    torch.manual_seed(0)

    def mean(u: torch.Tensor) -> float:
        return float(u.exp().mean())

    stratified = torch.tensor([mean(lattice(float(torch.rand(())), 0, 64, 64)) for _ in range(200)])
    scattered = torch.tensor([mean(independent(64)) for _ in range(200)])
    assert abs(float(stratified.mean()) - (math.e - 1)) < 1e-3
    assert stratified.std() < scattered.std() / 8


class Histories:
    """The losses of each step one by one, the published way."""

    def __init__(self, num_timesteps: int) -> None:
        self.losses = [deque[float](maxlen=10) for _ in range(num_timesteps)]

    def update(self, t: torch.Tensor, loss: torch.Tensor) -> None:
        for step, value in zip((t * len(self.losses)).round().long().tolist(), loss.tolist(), strict=True):
            self.losses[step - 1].append(value)

    def probabilities(self) -> torch.Tensor:
        num = len(self.losses)
        if any(len(losses) < 10 for losses in self.losses):
            return torch.full((num,), 1 / num, dtype=torch.float64)
        roots = [math.sqrt(sum(loss**2 for loss in losses) / 10) for losses in self.losses]
        return torch.tensor([0.999 * root / sum(roots) + 0.001 / num for root in roots], dtype=torch.float64)


def test_importance_sampling_follows_the_histories():
    generator = torch.Generator().manual_seed(0)
    density, histories = ImportanceSampling(5), Histories(5)
    warm = False
    for batch in range(40):
        size = 37 if batch % 3 == 0 else 4  # one step may come more than ten times in a batch
        t = torch.randint(1, 6, (size,), generator=generator).double() / 5
        if batch == 6:
            t[:25] = 3 / 5
        loss = (10 * t) ** 2 * torch.rand(size, generator=generator, dtype=torch.float64)
        density.update(t, loss)
        histories.update(t, loss)
        expected = histories.probabilities()
        warm = warm or not torch.equal(expected, torch.full_like(expected, 0.2))
        torch.testing.assert_close(density.probabilities, expected, rtol=1e-12, atol=0)
    assert warm


def warmed() -> ImportanceSampling:
    density = ImportanceSampling(6)
    for k in range(10):
        density.update(torch.arange(1, 7) / 6, torch.arange(1.0, 7.0) ** 3 * (1 + k))
    return density


def test_importance_sampling_draws_its_probabilities_without_bias():
    density, schedule = warmed(), DiscreteVP(num_timesteps=6)
    u = (torch.arange(60000, dtype=torch.float64) + 0.5) / 60000
    t = density.quantile(schedule, u)
    counts = torch.bincount((t * 6).round().long(), minlength=7)
    torch.testing.assert_close(counts[1:].double() / 60000, density.probabilities, rtol=0, atol=2 / 60000)
    assert counts[0] == 0 and density.probabilities[5] > 0.4
    losses = torch.arange(1.0, 7.0, dtype=torch.float64) ** 3
    weighted = losses[(t * 6).round().long() - 1] / density.pdf(schedule, t)
    assert float(weighted.mean()) == pytest.approx(float(losses.mean()), rel=1e-3)
    assert float(weighted.std()) < 0.02 * float(losses.std())


def test_importance_sampling_is_uniform_until_each_step_is_known():
    density, schedule = ImportanceSampling(6), DiscreteVP(num_timesteps=6)
    t = torch.arange(1, 7) / 6
    for _ in range(9):
        density.update(t, t**3)
        assert density.pdf(schedule, t).tolist() == pytest.approx([1.0] * 6)
    density.update(t[:5], t[:5])
    assert density.pdf(schedule, t).tolist() == pytest.approx([1.0] * 6)
    density.update(t[5:], t[5:])
    assert density.pdf(schedule, t)[5] > 2


def test_importance_sampling_is_saved_with_the_weights():
    density, other = warmed(), ImportanceSampling(6)
    other.load_state_dict(density.state_dict())
    for part in (density, other):
        part.update(torch.tensor([0.5]), torch.tensor([7.0]))
    assert torch.equal(density.probabilities, other.probabilities)
    assert not list(density.parameters())
