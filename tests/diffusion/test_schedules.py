import math

import pytest
import torch

from lit_gen.diffusion import DiscreteVP, EDMSchedule, Rectified, Schedule
from lit_gen.errors import UserError

TIMES = torch.linspace(0.003, 0.9971, 211, dtype=torch.float64)


def test_runs_from_data_to_noise(schedule: Schedule):
    alpha, sigma = schedule(torch.tensor([0.0, 0.3, 0.6, 1.0]))
    assert alpha[0] == 1 and sigma[0] == 0
    assert alpha.dtype == sigma.dtype == torch.float64
    ratio = sigma / alpha
    assert (ratio.diff() > 0).all()
    assert ratio[-1] == pytest.approx(schedule.max_ratio, rel=1e-9)


def test_derivatives_are_those_of_autograd(schedule: Schedule):
    t = TIMES.clone().requires_grad_()
    alpha, sigma = schedule(t)
    expected_alpha = torch.autograd.grad(alpha.sum(), t, retain_graph=True)[0] if alpha.requires_grad else 0 * TIMES
    (expected_sigma,) = torch.autograd.grad(sigma.sum(), t)
    d_alpha, d_sigma = schedule.derivatives(TIMES)
    torch.testing.assert_close(d_alpha, expected_alpha, rtol=1e-10, atol=0)
    torch.testing.assert_close(d_sigma, expected_sigma, rtol=1e-10, atol=0)


def test_derivatives_are_those_of_finite_differences(schedule: Schedule):
    h = 1e-7
    for side, derivative in zip(
        [(a - b) / h for a, b in zip(schedule(TIMES), schedule(TIMES - h), strict=True)],
        schedule.derivatives(TIMES),
        strict=True,
    ):
        torch.testing.assert_close(side, derivative, rtol=1e-4, atol=1e-6)


def test_time_inverts_ratio(schedule: Schedule):
    torch.testing.assert_close(schedule.time(schedule.ratio(TIMES)), TIMES, rtol=1e-9, atol=1e-12)
    low = max(schedule.min_ratio / 10, 1e-4)
    high = min(schedule.max_ratio, 1e3)
    ratio = torch.logspace(math.log10(low), math.log10(high), 99, dtype=torch.float64)
    torch.testing.assert_close(schedule.ratio(schedule.time(ratio)), ratio, rtol=1e-9, atol=0)


def test_shape_is_kept_and_numbers_are_taken(schedule: Schedule):
    alpha, sigma = schedule(0.25)
    for part, whole in zip((alpha, sigma), schedule(torch.full((2, 3), 0.25)), strict=True):
        assert part.ndim == 0 and whole.shape == (2, 3)
        assert (whole == part).all()


def test_time_at_the_ends():
    assert Rectified().time(0.0) == 0 and Rectified().time(math.inf) == 1
    for betas in ("linear", "cosine"):
        vp = DiscreteVP(betas)
        assert vp.time(0.0) == 0 and vp.time(math.inf) == 1
        assert vp.time(vp.min_ratio) == pytest.approx(1e-3, rel=1e-12)


@pytest.mark.parametrize("betas", ["linear", "cosine"])
def test_discrete_knots_are_the_products_of_the_betas(betas):
    if betas == "linear":
        beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    else:
        f = [math.cos((k / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for k in range(1001)]
        beta = torch.tensor([min(1 - f[k] / f[k - 1], 0.999) for k in range(1, 1001)], dtype=torch.float64)
        assert (beta == 0.999).sum() == 1
    alpha_bar = (1 - beta).cumprod(0)
    alpha, sigma = DiscreteVP(betas)(torch.arange(1, 1001, dtype=torch.float64) / 1000)
    torch.testing.assert_close(alpha**2, alpha_bar, rtol=1e-11, atol=0)
    torch.testing.assert_close(sigma**2, 1 - alpha_bar, rtol=1e-11, atol=0)


def test_between_knots_log_alpha_bar_is_linear_and_variance_is_preserved():
    for vp in (DiscreteVP(), DiscreteVP("cosine", 40)):
        knots = torch.arange(vp.num_timesteps + 1, dtype=torch.float64) / vp.num_timesteps
        log = vp(knots)[0].log()
        alpha, sigma = vp(knots[:-1] + 0.3 / vp.num_timesteps)
        torch.testing.assert_close(alpha.log(), 0.7 * log[:-1] + 0.3 * log[1:], rtol=1e-9, atol=1e-15)
        torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha), rtol=1e-14, atol=0)


def test_published_values_of_the_linear_betas():
    vp = DiscreteVP()
    assert float(vp(1.0)[0]) ** 2 == pytest.approx(4.03583e-5, rel=1e-5)
    assert vp.min_ratio == pytest.approx(0.010001, abs=1e-6)
    assert vp.max_ratio == pytest.approx(157.407, abs=1e-3)


def test_published_values_of_the_cosine_betas():
    vp = DiscreteVP("cosine")
    assert 1 - float(vp(0.001)[0]) ** 2 == pytest.approx(4.12842e-5, rel=1e-5)
    assert float(vp(1.0)[0]) ** 2 == pytest.approx(2.43e-9, rel=2e-3)
    assert vp.max_ratio == pytest.approx(2.03e4, rel=2e-3)
    assert float(vp.ratio(0.999)) == pytest.approx(641.7, rel=1e-4)


def test_shorter_chains_end_at_like_noise():
    for num_timesteps in (100, 400):
        assert DiscreteVP(num_timesteps=num_timesteps).max_ratio == pytest.approx(157.4, rel=0.6)


def test_ranges():
    assert (EDMSchedule().min_ratio, EDMSchedule().max_ratio) == (0.002, 80.0)
    assert (Rectified().min_ratio, Rectified().max_ratio) == (0.0, math.inf)
    assert float(EDMSchedule(sigma_max=20)(0.5)[1]) == 10


def test_bad_arguments():
    with pytest.raises(UserError, match="betas"):
        DiscreteVP("linaer")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="num_timesteps"):
        DiscreteVP(num_timesteps=1)
    with pytest.raises(UserError, match="sigma_min"):
        EDMSchedule(sigma_min=0)
