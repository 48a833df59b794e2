"""The posterior of a step, for every schedule."""

import pytest
import torch

from lit_gen.core.errors import UserError
from lit_gen.families.diffusion.posterior import posterior, step_variance
from lit_gen.families.diffusion.schedules import VE, Cosine, DiscreteVP, EDMSchedule, Rectified, Schedule, SubVP

SCHEDULES = [DiscreteVP(), SubVP(), VE(), EDMSchedule(), Rectified(), Cosine()]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
@pytest.mark.parametrize("s", [0.05, 0.5, 0.69])
def test_conditional_moments_of_the_joint_distribution(schedule: Schedule, s: float) -> None:
    """Given x_0, (x_s, x_t) is normal, so x_s given x_t follows from its means and covariance."""
    t, x_0, x_t = 0.7, torch.tensor(0.4, dtype=torch.float64), torch.tensor(-0.6, dtype=torch.float64)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
    covariance = alpha_t / alpha_s * sigma_s**2
    mean = alpha_s * x_0 + covariance / sigma_t**2 * (x_t - alpha_t * x_0)
    variance = sigma_s**2 - covariance**2 / sigma_t**2
    step = posterior(schedule, t, s)
    torch.testing.assert_close(step.mean(x_t, x_0), mean, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(step.small, variance, rtol=1e-8, atol=0)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
def test_large_variance_is_that_of_standard_normal_data(schedule: Schedule) -> None:
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(0.7), schedule(0.5)
    of_s, of_t = alpha_s**2 + sigma_s**2, alpha_t**2 + sigma_t**2
    covariance = alpha_t / alpha_s * of_s
    torch.testing.assert_close(posterior(schedule, 0.7, 0.5).large, of_s - covariance**2 / of_t, rtol=1e-8, atol=0)


def test_times_of_single_images_are_those_of_a_batch() -> None:
    schedule, t, s = DiscreteVP(), torch.tensor([0.2, 0.9]).double(), torch.tensor([0.1, 0.4]).double()
    x_t, x_0 = torch.randn(2, 2, 3, 1, 1, dtype=torch.float64)
    batch = posterior(schedule, t, s)
    assert batch.mean(x_t, x_0).shape == x_0.shape
    for row in range(2):
        single = posterior(schedule, t[row], s[row])
        assert torch.equal(batch.mean(x_t, x_0)[row], single.mean(x_t[row], x_0[row]))
        assert [value[row] for value in batch] == list(single)


def test_learned_variance_interpolates_in_the_logarithm() -> None:
    small, large = torch.tensor(0.01), torch.tensor(0.04)
    between = torch.tensor([0.0, 0.5, 1.0])
    variance = step_variance("learned", small, large, between, "sampler.variance")
    torch.testing.assert_close(variance, torch.tensor([0.01, 0.02, 0.04]))
    assert step_variance("small", small, large, between, "sampler.variance") == small
    assert step_variance("large", small, large, None, "sampler.variance") == large
    with pytest.raises(UserError, match=r"^sampler\.variance: .* choose small or large$"):
        step_variance("learned", small, large, None, "sampler.variance")
