import math

import pytest
import torch

from lit_gen.diffusion import (
    DiscreteVP,
    EDMSchedule,
    Grid,
    Karras,
    Quadratic,
    Rectified,
    Schedule,
    Uniform,
    UniformLogSNR,
)
from lit_gen.diffusion.samplers.base import describe
from lit_gen.errors import UserError

GRIDS = [Uniform(), Quadratic(), Quadratic(0.8), Karras(), Karras(3, 0.05, 20), UniformLogSNR()]

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


def test_bad_arguments():
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
    assert describe(Karras(rho=3)) == {"name": "Karras", "rho": 3, "sigma_min": 0.002, "sigma_max": 80.0}
