"""Samplers as equations: the posterior, the probability flow, churn."""

import math
from copy import copy
from functools import partial
from typing import Literal

import pytest
import torch

from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.families.diffusion import (
    VE,
    Cosine,
    DiscreteVP,
    EDMSchedule,
    Epsilon,
    GaussianMixtureDenoiser,
    Grid,
    Karras,
    LinearVP,
    NetworkDenoiser,
    Quadratic,
    Rectified,
    Schedule,
    SubVP,
    TimeShift,
    Uniform,
    UniformLogSNR,
    V,
)
from lit_gen.families.diffusion.samplers import (
    DDIM,
    DDPM,
    RK45,
    DiffusionSampler,
    Euler,
    EulerMaruyama,
    GridSampler,
    Heun,
)
from tests.families.diffusion.exact_answers import SAMPLERS, Fixed, Point, exact_network, run

WITHIN_ALL = Karras(sigma_min=0.03, sigma_max=50)  # levels inside the range of every schedule


# DDPM and DDIM are the Bayes posterior.

PAIRS = [(0.9, 0.7), (0.5, 0.4), (0.2, 0.001), (1.0, 0.02)]


def moments(
    sampler: GridSampler, schedule: Schedule, x_0: float, x_t: float, t: float, s: float
) -> tuple[float, float]:
    """Mean and standard deviation of x_s."""
    x, point = torch.full((1, 1), x_t, dtype=torch.float64), Point(torch.tensor(x_0, dtype=torch.float64))
    mean, above = (float(sampler.step(point, schedule, x, t, s, Fixed(z, 1))) for z in (0.0, 1.0))
    return mean, above - mean


@pytest.mark.parametrize("sampler", [DDPM(steps=1, variance="small"), DDIM(steps=1, eta=1)])
@pytest.mark.parametrize(("t", "s"), PAIRS)
def test_posterior_is_that_of_bayes(schedule: Schedule, sampler: GridSampler, t: float, s: float):
    """p(x_s | x_t, x_0) ~ p(x_t | x_s) p(x_s | x_0) on a grid of x_s."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
    x_0, x_t = 0.7, float(alpha_t * 0.4 + 0.8 * sigma_t)
    mean, std = moments(sampler, schedule, x_0, x_t, t, s)
    x_s = mean + std * torch.linspace(-10, 10, 4001, dtype=torch.float64)
    a = alpha_t / alpha_s
    log_density = -((x_t - a * x_s) ** 2) / (sigma_t**2 - a**2 * sigma_s**2) - (x_s - alpha_s * x_0) ** 2 / sigma_s**2
    weights = (log_density / 2).softmax(0)
    assert float(weights @ x_s) == pytest.approx(mean, rel=1e-6, abs=1e-9)
    assert float((weights @ (x_s - mean) ** 2).sqrt()) == pytest.approx(std, rel=1e-6)


@pytest.mark.parametrize(("t", "s"), PAIRS)
def test_large_variance_is_that_of_normal_data(schedule: Schedule, t: float, s: float):
    """p(x_s | x_t) ~ p(x_t | x_s) p(x_s) with x_0 ~ N(0, 1), on a grid of x_s."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
    _, std = moments(DDPM(steps=1, variance="large"), schedule, 0.3, 0.5, t, s)
    a = alpha_t / alpha_s
    centre = a * (alpha_s**2 + sigma_s**2) / (alpha_t**2 + sigma_t**2) * 0.5
    x_s = centre + std * torch.linspace(-10, 10, 4001, dtype=torch.float64)
    noise = sigma_t**2 - a**2 * sigma_s**2
    weights = (-((0.5 - a * x_s) ** 2 / noise + x_s**2 / (alpha_s**2 + sigma_s**2)) / 2).softmax(0)
    assert float((weights @ (x_s - weights @ x_s) ** 2).sqrt()) == pytest.approx(std, rel=1e-6)


@pytest.mark.parametrize("steps", [(500, 499), (2, 1), (1000, 999), (700, 400)])
def test_posterior_in_the_symbols_of_ddpm(steps: tuple[int, int]):
    """Both forms of the mean, both variances; a step of many is the chain respaced."""
    vp = DiscreteVP()
    t, s = (k / 1000 for k in steps)
    bar_t, bar_s = float(vp(t)[0]) ** 2, float(vp(s)[0]) ** 2
    beta = 1 - bar_t / bar_s
    if steps[0] - steps[1] == 1:
        assert beta == pytest.approx(1e-4 + (0.02 - 1e-4) * (steps[0] - 1) / 999, rel=1e-8)
    x_0, x_t = 0.7, -0.2
    eps = (x_t - math.sqrt(bar_t) * x_0) / math.sqrt(1 - bar_t)
    of_data = (beta * math.sqrt(bar_s) * x_0 + (1 - bar_s) * math.sqrt(1 - beta) * x_t) / (1 - bar_t)
    of_noise = (x_t - beta / math.sqrt(1 - bar_t) * eps) / math.sqrt(1 - beta)
    for sampler, variance in [
        (DDPM(steps=1, variance="small"), beta * (1 - bar_s) / (1 - bar_t)),
        (DDIM(steps=1, eta=1), beta * (1 - bar_s) / (1 - bar_t)),
        (DDPM(steps=1, variance="large"), beta),
    ]:
        mean, std = moments(sampler, vp, x_0, x_t, t, s)
        assert mean == pytest.approx(of_data, rel=1e-8) and mean == pytest.approx(of_noise, rel=1e-8)
        assert std**2 == pytest.approx(variance, rel=1e-8)


# The learned variance of DDPM lies between the other two.


class Between(Point):
    """A point with a learned variance."""

    def __init__(self, x_0: torch.Tensor, v: torch.Tensor) -> None:
        super().__init__(x_0)
        self.v = v

    def denoise_with_variance(self, x, alpha, sigma, labels):
        return self.denoise(x, alpha, sigma, labels), self.v.expand_as(x)


@pytest.mark.parametrize(("t", "s"), PAIRS)
def test_the_learned_variance_in_the_symbols_of_the_paper(schedule: Schedule, t: float, s: float):
    """exp(v log large + (1 - v) log small), pixel by pixel; exactly large at v = 1 and small at v = 0."""
    small, large = (moments(DDPM(steps=1, variance=name), schedule, 0.7, -0.2, t, s)[1] for name in ("small", "large"))
    v = torch.tensor([0.0, 1.0, 0.3, 0.85, -0.2], dtype=torch.float64)
    x = torch.full((1, 5), -0.2, dtype=torch.float64)
    ddpm, denoiser = DDPM(steps=1, variance="learned"), Between(torch.tensor(0.7, dtype=torch.float64), v)
    mean, above = (ddpm.step(denoiser, schedule, x, t, s, Fixed(z, 1)) for z in (0.0, 1.0))
    variance = (v * math.log(large**2) + (1 - v) * math.log(small**2)).exp()
    expected_mean, _ = moments(DDPM(steps=1), schedule, 0.7, -0.2, t, s)
    torch.testing.assert_close(mean, torch.full_like(mean, expected_mean), rtol=1e-13, atol=0)
    torch.testing.assert_close((above - mean)[0] ** 2, variance, rtol=1e-8, atol=0)


@pytest.mark.parametrize(("value", "name"), [(-1.0, "small"), (1.0, "large")])
def test_a_network_may_learn_either_variance(mixture, value: float, name: Literal["small", "large"]):
    vp = DiscreteVP()
    exact = exact_network(mixture, vp, Epsilon())

    def both(x, c_noise, labels):
        return torch.cat([exact(x, c_noise, labels), torch.full_like(x, value)], 1)

    learned, plain = NetworkDenoiser(both, vp, Epsilon()), NetworkDenoiser(exact, vp, Epsilon())
    images = run(DDPM(steps=9, variance="learned"), learned, vp)
    torch.testing.assert_close(images, run(DDPM(steps=9, variance=name), plain, vp), rtol=1e-10, atol=1e-10)
    assert learned.evaluations == plain.evaluations == 9
    for sampler in (DDPM(steps=9, variance="small"), DDIM(steps=9), Heun(steps=9)):
        torch.testing.assert_close(run(sampler, learned, vp), run(sampler, plain, vp), rtol=0, atol=0)


def test_a_variance_that_was_not_learned(mixture):
    with pytest.raises(UserError, match=r"sampler\.variance: learned, but this model has no learned variance"):
        run(DDPM(steps=3, variance="learned"), mixture, DiscreteVP())
    with pytest.raises(UserError, match="small, large or learned"):
        DDPM(variance="leanred")  # type: ignore[arg-type]


@pytest.mark.parametrize("eta", [0.3, 0.8])
def test_ddim_in_its_own_symbols(eta: float):
    vp, t, s = DiscreteVP(), 0.6, 0.35
    bar_t, bar_s = float(vp(t)[0]) ** 2, float(vp(s)[0]) ** 2
    x_0, x_t = 0.7, -0.2
    c = eta * math.sqrt((1 - bar_s) / (1 - bar_t)) * math.sqrt(1 - bar_t / bar_s)
    eps = (x_t - math.sqrt(bar_t) * x_0) / math.sqrt(1 - bar_t)
    mean, std = moments(DDIM(steps=1, eta=eta), vp, x_0, x_t, t, s)
    assert mean == pytest.approx(math.sqrt(bar_s) * x_0 + math.sqrt(1 - bar_s - c**2) * eps, rel=1e-10)
    assert std == pytest.approx(c, rel=1e-10)


def test_ddim_on_the_exploding_path_is_the_ancestral_step_of_sigma_up_and_down():
    edm, t, s, eta = EDMSchedule(), 0.3, 0.1, 0.7
    sigma_t, sigma_s = 80 * t, 80 * s
    up = eta * sigma_s / sigma_t * math.sqrt(sigma_t**2 - sigma_s**2)
    down = math.sqrt(sigma_s**2 - up**2)
    mean, std = moments(DDIM(steps=1, eta=eta), edm, 0.7, 5.0, t, s)
    assert mean == pytest.approx(0.7 + down * (5.0 - 0.7) / sigma_t, rel=1e-10)
    assert std == pytest.approx(up, rel=1e-10)


@pytest.mark.parametrize("grid", [Karras(), Uniform(), UniformLogSNR()])
def test_ddpm_with_small_variance_is_ddim_with_eta_one(mixture, schedule, grid: Grid):
    ddpm, ddim = (
        run(sampler, mixture, schedule)
        for sampler in (DDPM(steps=9, grid=grid, variance="small"), DDIM(steps=9, grid=grid, eta=1.0))
    )
    torch.testing.assert_close(ddpm, ddim, rtol=1e-10, atol=1e-10)


# Samplers of the probability flow.


@pytest.mark.parametrize("grid", [Karras(), Quadratic(0.9), UniformLogSNR()])
def test_ddim_is_euler_in_sigma_and_in_rectified_coordinates(mixture, schedule, grid: Grid):
    ddim = run(DDIM(steps=9, grid=grid), mixture, schedule)
    for coordinates in ("sigma", "rectified"):
        euler = run(Euler(steps=9, grid=grid, coordinates=coordinates), mixture, schedule)
        torch.testing.assert_close(euler, ddim, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("betas", ["linear", "cosine"])
def test_euler_in_the_time_of_vp_is_another_discretisation(mixture, betas):
    schedule, grid = DiscreteVP(betas), Uniform()
    ddim, other = (
        run(sampler, mixture, schedule)
        for sampler in (DDIM(steps=20, grid=grid), Euler(steps=20, grid=grid, coordinates="schedule"))
    )
    assert 0.05 < float((ddim - other).abs().max()) < 5


@pytest.mark.parametrize(("schedule", "same"), [(EDMSchedule(), "sigma"), (Rectified(), "rectified")])
def test_euler_in_the_time_of_the_schedule_is_its_own_path(mixture, schedule, same):
    own, named = (run(Euler(steps=9, coordinates=name), mixture, schedule) for name in ("schedule", same))
    torch.testing.assert_close(own, named, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("schedule", [DiscreteVP(), EDMSchedule(), Rectified()])
def test_the_velocity_is_that_of_the_probability_flow(mixture, schedule: Schedule):
    """dx/dt from one Euler step, against the flow of each path in terms of the score."""
    t, s = 0.4321, 0.4
    torch.manual_seed(0)
    x = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    alpha, sigma = schedule(t)
    (score,) = torch.autograd.grad(mixture.log_density(x, alpha, sigma).sum(), x)
    x = x.detach()
    velocity = (Euler(steps=1, coordinates="schedule").step(mixture, schedule, x, t, s, Noise(0, range(4))) - x) / (
        s - t
    )
    match schedule:
        case DiscreteVP():
            rate = -1000 * math.log1p(-(1e-4 + (0.02 - 1e-4) * 432 / 999))  # within step 433 of the chain
            expected = -rate / 2 * (x + score)
        case EDMSchedule():
            expected = -80 * sigma * score
        case Rectified():
            expected = -(x + t * score) / (1 - t)
            torch.testing.assert_close(velocity, (x - mixture(x, alpha, sigma)) / t, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(velocity, expected, rtol=1e-9, atol=1e-9)


def test_the_probability_flow_is_the_sde_with_half_the_score(mixture, schedule: Schedule):
    """alpha' D + sigma' eps_hat = f x - g^2 score / 2."""
    torch.manual_seed(0)
    for t in (0.02, 0.37, 0.81, 0.98):
        x = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
        (alpha, sigma), (d_alpha, d_sigma), (f, g_squared) = schedule(t), schedule.derivatives(t), schedule.sde(t)
        (score,) = torch.autograd.grad(mixture.log_density(x, alpha, sigma).sum(), x)
        denoised = mixture(x.detach(), alpha, sigma)
        velocity = d_alpha * denoised + d_sigma * (x.detach() - alpha * denoised) / sigma
        torch.testing.assert_close(velocity, f * x.detach() - g_squared / 2 * score, rtol=1e-8, atol=1e-9)


PATHS = [DiscreteVP(), LinearVP(), SubVP(), VE(), EDMSchedule(), Rectified(), Cosine()]
paths = pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)


@paths
def test_the_flow_of_one_path_is_that_of_another_rescaled(mixture, schedule: Schedule, path: Schedule):
    """u'_r(x) = (ds / dr) / s x + s (dt / dr) u_t(x / s), with t the time of equal ratio and s = sigma'_r / sigma_t."""
    torch.manual_seed(1)
    x = torch.randn(4, 2, 3, dtype=torch.float64)

    def velocity(schedule: Schedule, t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        (alpha, sigma), (d_alpha, d_sigma) = schedule(t), schedule.derivatives(t)
        denoised = mixture(x, alpha, sigma)
        return d_alpha * denoised + d_sigma * (x - alpha * denoised) / sigma

    for ratio in (0.07, 0.6, 11.0):
        r = path.time(ratio).requires_grad_()
        t = schedule.time(path.ratio(r))
        s = path(r)[1] / schedule(t)[1]
        (dt,), (ds,) = torch.autograd.grad(t, r, retain_graph=True), torch.autograd.grad(s, r)
        r, t, s = r.detach(), t.detach(), s.detach()
        expected = ds / s * x + s * dt * velocity(schedule, t, x / s)
        torch.testing.assert_close(velocity(path, r, x), expected, rtol=1e-7, atol=1e-7)


@paths
def test_a_change_of_schedule_after_training_leaves_the_images_unchanged(mixture, schedule: Schedule, path: Schedule):
    """A network trained on one path and sampled on another, at the same noise levels."""
    model = NetworkDenoiser(exact_network(mixture, schedule, V()), schedule, V())
    grids: list[Grid] = [Karras(sigma_max=40)]
    if path.max_ratio >= schedule.max_ratio:  # else the path does not reach the noise that this grid begins with
        grids.append(TimeShift())
    for grid in grids:
        for sampler in (DDIM, Euler, partial(Heun, coordinates="rectified")):
            own, other = (run(sampler(steps=5, grid=grid, schedule=s), model, schedule) for s in (None, path))
            torch.testing.assert_close(other, own, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_same_levels_give_the_same_images_on_every_schedule(mixture, sampler: DiffusionSampler):
    """All commute with a rescaling of x, but for Euler and Euler-Maruyama in the time of another path."""
    if isinstance(sampler, GridSampler):
        sampler = copy(sampler)
        sampler.grid = WITHIN_ALL
    elif isinstance(sampler, RK45):
        sampler = RK45(sigma_min=WITHIN_ALL.sigma_min, sigma_max=WITHIN_ALL.sigma_max)
    images = [
        run(sampler, mixture, schedule)
        for schedule in (EDMSchedule(), DiscreteVP(), DiscreteVP("cosine"), LinearVP(), SubVP(), Cosine(), Rectified())
    ]
    # Each starts at sigma eps, hence at the same x / alpha.
    names = ("linear", "cosine", "vp", "subvp", "circle", "rectified")
    for other, name in zip(images[1:], names, strict=True):
        own_time = getattr(sampler, "coordinates", "") == "schedule"
        if own_time and (isinstance(sampler, EulerMaruyama) or name != "rectified"):
            assert (other - images[0]).abs().max() > 1e-3
        else:
            torch.testing.assert_close(other, images[0], rtol=1e-8, atol=1e-8)


# Churn.


def test_heun_is_algorithm_2_of_edm(mixture):
    """A plain transcription, with its own loop and noise."""
    steps, S_churn, S_min, S_max, S_noise = 12, 5.0, 0.05, 30.0, 1.003
    noise = Noise(1, range(6))
    sigmas = [(80 ** (1 / 7) + i / 11 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(steps)] + [0.0]

    def denoise(x, sigma):
        return mixture(x, torch.tensor(1.0), torch.tensor(sigma, dtype=torch.float64))

    x = sigmas[0] * noise.normal((2, 3), torch.float64)
    for i, sigma in enumerate(sigmas[:-1]):
        gamma = min(S_churn / steps, math.sqrt(2) - 1) if S_min <= sigma <= S_max else 0.0
        hat = sigma * (1 + gamma)
        if gamma > 0:
            x = x + math.sqrt(hat**2 - sigma**2) * S_noise * noise.normal((2, 3), torch.float64)
        d = (x - denoise(x, hat)) / hat
        new = x + (sigmas[i + 1] - hat) * d
        if sigmas[i + 1] != 0:
            d_new = (new - denoise(new, sigmas[i + 1])) / sigmas[i + 1]
            new = x + (sigmas[i + 1] - hat) * (d + d_new) / 2
        x = new
    heun = Heun(steps=steps, S_churn=S_churn, S_min=S_min, S_max=S_max, S_noise=S_noise)
    ours = heun.sample(mixture, EDMSchedule(), Noise(1, range(6)), (2, 3))
    torch.testing.assert_close(ours, x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("schedule", [EDMSchedule(), DiscreteVP(), Rectified()])
@pytest.mark.parametrize("S_churn", [2.0, 1e9])
def test_churn_keeps_the_variance(mixture_1d: GaussianMixtureDenoiser, schedule: Schedule, S_churn: float):
    """After the noise of a step, x has the marginal of the raised level."""
    gamma = min(S_churn / 10, math.sqrt(2) - 1)
    t, s = 0.3, 0.2
    alpha, sigma = schedule(t)
    torch.manual_seed(0)
    component = torch.multinomial(mixture_1d.weights, 30000, replacement=True)
    std = (alpha**2 * mixture_1d.variances[component] + sigma**2).sqrt()
    x = alpha * mixture_1d.means[component] + std * torch.randn_like(std)
    for S_noise in (1.0, 1.1):
        point = Point(torch.zeros((), dtype=torch.float64))
        Heun(steps=10, S_churn=S_churn, S_noise=S_noise).step(point, schedule, x, t, s, Noise(0, range(30000)))
        churned, alpha_hat, sigma_hat = point.seen[0]
        assert alpha_hat == alpha and sigma_hat == pytest.approx(float(sigma) * (1 + gamma), rel=1e-12)
        added = (sigma_hat**2 - float(sigma) ** 2) * S_noise**2
        assert float(churned.var()) == pytest.approx(float(x.var()) + added, rel=0.03)


@pytest.mark.parametrize(("S_min", "S_max", "draws"), [(0.0, math.inf, 18), (1.0, 10.0, 5), (0.05, 50.0, 13)])
def test_churn_acts_only_between_its_limits(mixture, S_min: float, S_max: float, draws: int):
    noise = Noise(0, range(2))
    Heun(steps=18, S_churn=10, S_min=S_min, S_max=S_max).sample(mixture, EDMSchedule(), noise, (2, 3))
    assert noise.draws == 1 + draws
