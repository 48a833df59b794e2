"""Time grids."""

import math

import pytest
import torch

from lit_gen.core.errors import UserError
from lit_gen.families.diffusion import (
    VE,
    Cosine,
    DiscreteVP,
    EDMSchedule,
    Grid,
    Karras,
    LinearVP,
    Quadratic,
    Rectified,
    Schedule,
    SubVP,
    TimeShift,
    Uniform,
    UniformLogSNR,
)
from lit_gen.families.settings import describe

GRIDS = [
    Uniform(),
    Quadratic(),
    Quadratic(0.8),
    Karras(),
    Karras(3, 0.05, 20),
    UniformLogSNR(),
    TimeShift(),
    TimeShift(0.3),
]

KARRAS_18 = [80, 57.58598, 40.78557, 28.37458, 19.35245, 12.91008, 8.400935, 5.315195, 3.256822, 1.923340, 1.088171]
KARRAS_18 += [0.5853481, 0.2964423, 0.1395165, 0.05994731, 0.02293452, 0.007528020, 0.002]


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: type(grid).__name__)
@pytest.mark.parametrize("steps", [1, 2, 17, 1000])
def test_decreases_to_exactly_zero(schedule: Schedule, grid: Grid, steps: int):
    times = grid(schedule, steps)
    assert times.shape == (steps + 1,) and times.dtype == torch.float64
    assert (times.diff() < 0).all() and times[-1] == 0
    assert times[0] <= 1 + 1e-12


@pytest.mark.parametrize("schedule", [EDMSchedule(), Rectified()])
def test_karras_gives_the_published_levels(schedule: Schedule):
    ratio = schedule.ratio(Karras()(schedule, 18))
    torch.testing.assert_close(ratio[:-1], torch.tensor(KARRAS_18, dtype=torch.float64), rtol=5e-7, atol=0)


def test_karras_stays_within_the_levels_of_training():
    vp = DiscreteVP()
    ratio = vp.ratio(Karras()(vp, 10))
    assert float(ratio[0]) == pytest.approx(80, rel=1e-9)
    assert float(ratio[-2]) == pytest.approx(vp.min_ratio, rel=1e-9)
    ratio = vp.ratio(Karras(sigma_max=1e3)(vp, 10))
    assert float(ratio[0]) == pytest.approx(vp.max_ratio, rel=1e-9)


def test_log_snr_is_uniform_and_is_the_limit_of_karras():
    schedule = Rectified()
    ratio = schedule.ratio(UniformLogSNR()(schedule, 25))[:-1]
    gaps = ratio.log().diff()
    torch.testing.assert_close(gaps, torch.full_like(gaps, math.log(0.002 / 80) / 24), rtol=1e-10, atol=0)
    torch.testing.assert_close(schedule.ratio(Karras(rho=1e6)(schedule, 25))[:-1], ratio, rtol=1e-4, atol=0)


def test_uniform_and_quadratic_times():
    vp = DiscreteVP()
    torch.testing.assert_close(Uniform()(vp, 4), torch.tensor([1, 0.75, 0.5, 0.25, 0], dtype=torch.float64))
    torch.testing.assert_close(Quadratic()(vp, 4), torch.tensor([1, 0.5625, 0.25, 0.0625, 0], dtype=torch.float64))
    torch.testing.assert_close(Quadratic(0.8)(vp, 2), torch.tensor([0.8, 0.2, 0], dtype=torch.float64))


def test_time_shift_is_that_of_stable_diffusion_3():
    u = torch.linspace(1, 0, 11, dtype=torch.float64)
    for shift in (3.0, 0.4):
        shifted = TimeShift(shift)(Rectified(), 10)
        torch.testing.assert_close(shifted, shift * u / (1 + (shift - 1) * u), rtol=1e-13, atol=0)
    torch.testing.assert_close(TimeShift(1)(Rectified(), 10), Uniform()(Rectified(), 10), rtol=1e-13, atol=0)


def test_time_shift_multiplies_the_noise_levels(schedule: Schedule):
    """On u = sigma / (alpha + sigma), from the largest level, on every schedule."""
    alpha, sigma = schedule(TimeShift(5)(schedule, 8))
    assert float((sigma / alpha)[0]) == pytest.approx(schedule.max_ratio, rel=1e-9)
    u = sigma / 5 / (alpha + sigma / 5)  # levels divided by the shift
    torch.testing.assert_close(u.diff(), (-u[0] / 8).expand(8), rtol=1e-9, atol=0)


SCHEDULES = [DiscreteVP(), LinearVP(), SubVP(), VE(), EDMSchedule(), Rectified(), Cosine()]


@pytest.mark.parametrize("trained", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
@pytest.mark.parametrize("grid", [Karras(sigma_max=30), UniformLogSNR(1e-3, 30), TimeShift(2)])
def test_a_model_keeps_its_levels_on_another_path(trained: Schedule, grid: Grid):
    own = trained.ratio(grid(trained, 9))
    for path in SCHEDULES:
        limits = path.min_ratio, path.max_ratio
        if isinstance(grid, TimeShift) and path.max_ratio < trained.max_ratio:
            start = path.ratio(grid(path.with_levels_of(trained), 9))[0]
            assert float(start) == pytest.approx(path.max_ratio, rel=1e-9)
        else:
            levels = path.ratio(grid(path.with_levels_of(trained), 9))
            torch.testing.assert_close(levels, own, rtol=1e-8, atol=1e-12)
        assert (path.min_ratio, path.max_ratio) == limits


def test_bad_arguments():
    for shift in (0, -1, math.inf):
        with pytest.raises(UserError, match="shift"):
            TimeShift(shift)
    with pytest.raises(UserError, match="rho"):
        Karras(rho=0)
    with pytest.raises(UserError, match="sigma_min"):
        Karras(sigma_min=1, sigma_max=0.5)
    with pytest.raises(UserError, match="sigma_min"):
        UniformLogSNR(sigma_max=math.inf)
    with pytest.raises(UserError, match="start"):
        Quadratic(0)
    with pytest.raises(UserError, match="outside the model's"):
        Karras(sigma_min=200, sigma_max=300)(DiscreteVP(), 5)


def test_description():
    assert describe(Uniform()) == {"name": "Uniform"}
    assert describe(TimeShift(2.0)) == {"name": "TimeShift", "shift": 2.0}
    assert describe(Karras(rho=3)) == {"name": "Karras", "rho": 3, "sigma_min": 0.002, "sigma_max": 80.0}
