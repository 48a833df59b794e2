"""Schedules."""

import math

import pytest
import torch

from lit_gen.core.errors import UserError
from lit_gen.families.diffusion import VE, Cosine, DiscreteVP, EDMSchedule, LinearVP, Rectified, Schedule, SubVP

TIMES = torch.linspace(0.003, 0.9971, 211, dtype=torch.float64)
SMALL_TIMES = torch.logspace(-14, -1, 66, dtype=torch.float64)
CONTINUOUS = [LinearVP(), LinearVP(0.3, 0.3), SubVP(), VE(), VE(0.02, 100), EDMSchedule(), Rectified(), Cosine()]
continuous = pytest.mark.parametrize("schedule", CONTINUOUS, ids=lambda schedule: type(schedule).__name__)


def integral_of_beta(t: torch.Tensor, beta_min: float = 0.1, beta_max: float = 20.0) -> torch.Tensor:
    return beta_min * t + (beta_max - beta_min) * t**2 / 2


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


@continuous
def test_no_digits_are_lost_near_the_data(schedule: Schedule):
    torch.testing.assert_close(schedule.time(schedule.ratio(SMALL_TIMES)), SMALL_TIMES, rtol=1e-13, atol=0)
    ratio = torch.logspace(-9, -1, 65, dtype=torch.float64)
    torch.testing.assert_close(schedule.ratio(schedule.time(ratio)), ratio, rtol=1e-13, atol=0)


def test_leading_order_at_the_data():
    t = torch.logspace(-14, -9, 21, dtype=torch.float64)
    for schedule, sigma in [
        (LinearVP(0.4, 7), (0.4 * t).sqrt()),
        (SubVP(0.4, 7), 0.4 * t),
        (VE(0.02, 60), 0.02 * (2 * math.log(3000) * t).sqrt()),
        (Cosine(), math.pi / 2 * t),
    ]:
        torch.testing.assert_close(schedule(t)[1], sigma, rtol=2e-8, atol=0)


def test_no_digits_are_lost_near_the_noise():
    left = 2.0 ** -torch.arange(20, 50, dtype=torch.float64)
    torch.testing.assert_close(Rectified()(1 - left)[0], left, rtol=0, atol=0)
    torch.testing.assert_close(Cosine()(1 - left)[0], math.pi / 2 * left, rtol=1e-11, atol=0)
    torch.testing.assert_close(1 - Cosine().time(1 / left), 2 / math.pi * left, rtol=0, atol=3e-13 * 2**-10)


def test_shape_is_kept_and_numbers_are_taken(schedule: Schedule):
    for method in (schedule, schedule.derivatives, schedule.sde):
        for part, whole in zip(method(0.25), method(torch.full((2, 3), 0.25)), strict=True):
            assert part.ndim == 0 and whole.shape == (2, 3)
            assert part.dtype == whole.dtype == torch.float64
            assert (whole == part).all()


def test_the_noisiest_time_is_one(schedule: Schedule):
    alpha, sigma = schedule(1.0)
    assert float(schedule.ratio(1.0)) == pytest.approx(schedule.max_ratio, rel=1e-12)
    assert float(schedule.time(schedule.max_ratio)) == pytest.approx(1, rel=1e-12)
    assert schedule.time(0.0) == 0
    assert 0 <= schedule.time(schedule.min_ratio) < 0.05
    if isinstance(schedule, (Rectified, Cosine)):
        assert alpha == 0 and sigma == 1
    if not isinstance(schedule, (VE, EDMSchedule)):
        assert schedule.time(math.inf) == 1


def test_the_least_time_of_training():
    for betas in ("linear", "cosine"):
        vp = DiscreteVP(betas)
        assert vp.time(vp.min_ratio) == pytest.approx(1e-3, rel=1e-12)
    for schedule in (LinearVP(), SubVP()):
        assert schedule.time(schedule.min_ratio) == pytest.approx(1e-5, rel=1e-12)
    assert LinearVP(min_time=0.01).min_ratio == pytest.approx(float(LinearVP().ratio(0.01)), rel=1e-12)
    assert SubVP(min_time=0.01).min_ratio == pytest.approx(float(SubVP().ratio(0.01)), rel=1e-12)


# The forward SDE.


def test_the_sde_carries_mean_and_variance_along_the_path(schedule: Schedule):
    """Check d alpha / dt = f alpha and d sigma^2 / dt = 2 f sigma^2 + g^2."""
    t = TIMES.clone().requires_grad_()
    alpha, sigma = schedule(t)
    d_alpha = torch.autograd.grad(alpha.sum(), t, retain_graph=True)[0] if alpha.requires_grad else 0 * TIMES
    (d_variance,) = torch.autograd.grad(sigma.square().sum(), t)
    f, g_squared = schedule.sde(TIMES)
    alpha, sigma = alpha.detach(), sigma.detach()
    torch.testing.assert_close(f * alpha, d_alpha, rtol=1e-10, atol=0)
    torch.testing.assert_close(2 * f * sigma**2 + g_squared, d_variance, rtol=1e-9, atol=1e-12)


def test_the_sdes_of_the_papers():
    torch.manual_seed(0)
    t = torch.rand(50, dtype=torch.float64)
    low, high = 0.1 + 2 * float(torch.rand(())), 10 + 10 * float(torch.rand(()))
    beta = low + (high - low) * t
    g_ve = low * (high / low) ** t * math.sqrt(2 * math.log(high / low))
    for schedule, f, g_squared in [
        (LinearVP(low, high), -beta / 2, beta),
        (SubVP(low, high), -beta / 2, beta * (1 - (-2 * integral_of_beta(t, low, high)).exp())),
        (VE(low, high), 0 * t, g_ve**2),
        (EDMSchedule(sigma_max=high), 0 * t, 2 * high**2 * t),
        (Rectified(), -1 / (1 - t), 2 * t / (1 - t)),
        (Cosine(), -math.pi / 2 * (math.pi / 2 * t).tan(), math.pi * (math.pi / 2 * t).tan()),
    ]:
        torch.testing.assert_close(schedule.sde(t), (f, g_squared), rtol=1e-11, atol=0)
    # The chain: the rate is constant within a step.
    f, g_squared = DiscreteVP().sde(torch.tensor([0.4315, 0.432], dtype=torch.float64))
    rate = torch.full((2,), -1000 * math.log1p(-(1e-4 + (0.02 - 1e-4) * 431 / 999)), dtype=torch.float64)
    torch.testing.assert_close((f, g_squared), (-rate / 2, rate), rtol=1e-9, atol=0)


def test_the_sde_is_finite_at_the_data(schedule: Schedule):
    f, g_squared = schedule.sde(torch.zeros(2))
    assert f.isfinite().all() and g_squared.isfinite().all() and (g_squared >= 0).all()


def test_the_sde_is_infinite_where_no_data_is_left():
    for schedule in (Rectified(), Cosine()):
        f, g_squared = schedule.sde(1.0)
        assert f == -math.inf and g_squared == math.inf


# Each schedule against its paper.


def test_linear_vp_in_the_symbols_of_song():
    torch.manual_seed(1)
    t = torch.rand(50, dtype=torch.float64)
    integral = integral_of_beta(t)
    alpha, sigma = LinearVP()(t)
    torch.testing.assert_close(alpha, (-integral / 2).exp(), rtol=1e-12, atol=0)
    torch.testing.assert_close(sigma**2, 1 - (-integral).exp(), rtol=1e-10, atol=1e-13)
    sigma = torch.logspace(-3, 2, 31, dtype=torch.float64)  # the inverse as EDM writes it
    inverse = ((0.1**2 + 2 * 19.9 * (1 + sigma**2).log()).sqrt() - 0.1) / 19.9
    torch.testing.assert_close(LinearVP().time(sigma), inverse, rtol=1e-8, atol=0)


def test_published_values_of_the_linear_vp():
    vp = LinearVP()
    assert vp.max_ratio == pytest.approx(152.167, abs=1e-3)
    assert float(vp.ratio(1e-3)) == pytest.approx(0.010486, abs=1e-6)
    assert vp.min_ratio == pytest.approx(0.0010005, abs=1e-7)


def test_linear_vp_is_the_limit_of_the_chain():
    t = torch.linspace(0.01, 1, 34, dtype=torch.float64)
    errors = [
        float((DiscreteVP(num_timesteps=num).ratio(t).log() - LinearVP().ratio(t).log()).abs().max())
        for num in (1000, 10000)
    ]
    assert 9 < errors[0] / errors[1] < 11 and errors[1] < 0.005


def test_sub_vp_is_vp_with_its_sigma_squared():
    t = torch.cat([SMALL_TIMES, TIMES])
    (alpha, sigma), (vp_alpha, vp_sigma) = SubVP()(t), LinearVP()(t)
    torch.testing.assert_close(alpha, vp_alpha, rtol=0, atol=0)
    torch.testing.assert_close(sigma, vp_sigma**2, rtol=1e-14, atol=0)


def test_ve_is_the_integral_of_its_noise():
    sigma_min, sigma_max = 0.02, 30.0
    schedule, growth = VE(sigma_min, sigma_max), math.log(30.0 / 0.02)
    for end in (0.001, 0.2, 1.0):
        nodes = torch.linspace(0, end, 20001, dtype=torch.float64)
        g_squared = 2 * growth * (sigma_min * (sigma_max / sigma_min) ** nodes) ** 2
        variance = float(torch.trapezoid(g_squared, nodes))
        assert float(schedule(end)[1]) ** 2 == pytest.approx(variance, rel=1e-6)
    t = torch.linspace(0, 1, 33, dtype=torch.float64)
    kernel = sigma_min * (sigma_max / sigma_min) ** t  # the paper's, which starts at sigma_min
    torch.testing.assert_close(schedule(t)[1] ** 2 + sigma_min**2, kernel**2, rtol=1e-12, atol=0)


def test_cosine_is_the_circle():
    alpha, sigma = Cosine()(TIMES)
    torch.testing.assert_close(torch.atan2(sigma, alpha), math.pi / 2 * TIMES, rtol=1e-13, atol=0)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(TIMES), rtol=1e-14, atol=0)


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
    assert VE().min_ratio == 0.01 and VE().max_ratio == pytest.approx(math.sqrt(2500 - 1e-4), rel=1e-12)
    for schedule in (Rectified(), Cosine()):
        assert (schedule.min_ratio, schedule.max_ratio) == (0.0, math.inf)
    assert float(EDMSchedule(sigma_max=20)(0.5)[1]) == 10


def test_bad_arguments():
    with pytest.raises(UserError, match="betas"):
        DiscreteVP("linaer")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="num_timesteps"):
        DiscreteVP(num_timesteps=1)
    with pytest.raises(UserError, match="sigma_min"):
        EDMSchedule(sigma_min=0)
    for schedule in (LinearVP, SubVP):
        for arguments in ({"beta_min": 0.0}, {"beta_min": 21.0}, {"beta_max": math.inf}):
            with pytest.raises(UserError, match="beta_min"):
                schedule(**arguments)
        for min_time in (0.0, 1.0):
            with pytest.raises(UserError, match="min_time"):
                schedule(min_time=min_time)
    for arguments in ({"sigma_min": 0.0}, {"sigma_min": 40.0}, {"sigma_max": math.inf}):
        with pytest.raises(UserError, match="sigma_min"):
            VE(**arguments)
