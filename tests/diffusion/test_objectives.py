import math

import pytest
import torch
from exact_answers import exact_network
from scipy import stats

from lit_gen.diffusion import (
    DiscreteVP,
    EDMPreconditioning,
    EDMSchedule,
    Epsilon,
    GaussianMixtureDenoiser,
    LogitNormal,
    LognormalSigma,
    NetworkDenoiser,
    Parameterization,
    Rectified,
    Schedule,
    TimeDensity,
    UniformSteps,
    UniformTime,
    Velocity,
    diffusion_loss,
)
from lit_gen.errors import UserError

MODELS: list[tuple[Schedule, Parameterization, TimeDensity]] = [
    (DiscreteVP(), Epsilon(), UniformSteps()),
    (EDMSchedule(), EDMPreconditioning(), LognormalSigma()),
    (Rectified(), Velocity(), UniformTime()),
    (Rectified(), Velocity(), LogitNormal()),
]
models = pytest.mark.parametrize(("schedule", "parameterization", "density"), MODELS, ids=["DDPM", "EDM", "RF", "SD3"])


@pytest.mark.parametrize("schedule", [Rectified(), EDMSchedule()])
def test_uniform_time(schedule: Schedule):
    torch.manual_seed(0)
    t = UniformTime()(schedule, 20000)
    assert t.dtype == torch.float64 and t.min() > 0
    assert stats.kstest(t.numpy(), "uniform").pvalue > 1e-3


def test_uniform_steps_visits_all_steps_alike():
    torch.manual_seed(0)
    t = UniformSteps()(DiscreteVP(num_timesteps=20), 20000)
    counts = torch.bincount((t * 20).round().long(), minlength=21)
    torch.testing.assert_close((t * 20).round() / 20, t, rtol=0, atol=0)
    assert counts[0] == 0
    assert stats.chisquare(counts[1:].numpy()).pvalue > 1e-3


def test_uniform_steps_needs_a_chain():
    with pytest.raises(UserError, match="UniformTime"):
        UniformSteps()(Rectified(), 3)


@pytest.mark.parametrize("schedule", [Rectified(), EDMSchedule()])
def test_lognormal_sigma(schedule: Schedule):
    torch.manual_seed(0)
    log_ratio = schedule.ratio(LognormalSigma(-0.4, 0.8)(schedule, 20000)).log()
    assert stats.kstest(log_ratio.numpy(), stats.norm(-0.4, 0.8).cdf).pvalue > 1e-3


def test_logit_normal():
    torch.manual_seed(0)
    t = LogitNormal(0.3, 0.7)(Rectified(), 20000)
    assert stats.kstest(t.logit().numpy(), stats.norm(0.3, 0.7).cdf).pvalue > 1e-3


def test_uniform_rectified_time_is_a_logistic_log_sigma():
    torch.manual_seed(0)
    t = UniformTime()(Rectified(), 20000)
    assert stats.kstest(Rectified().ratio(t).log().numpy(), stats.logistic.cdf).pvalue > 1e-3


@pytest.mark.parametrize("density", [UniformTime(), UniformSteps(), LognormalSigma(), LogitNormal()])
def test_the_global_seed_repeats_the_times(density: TimeDensity):
    torch.manual_seed(5)
    first = density(DiscreteVP(), 8)
    torch.manual_seed(5)
    assert torch.equal(first, density(DiscreteVP(), 8))
    assert not torch.equal(first, density(DiscreteVP(), 8))


def weight_of(parameterization: Parameterization, ratio: torch.Tensor) -> torch.Tensor:
    """The published weight of |D - x_0|^2 at noise level sigma / alpha."""
    match parameterization:
        case Epsilon():
            return 1 / ratio**2
        case Velocity():
            return (1 + 1 / ratio) ** 2
        case EDMPreconditioning():
            return (ratio**2 + 0.25) / (0.5 * ratio) ** 2
    raise AssertionError


@models
def test_the_loss_is_the_weighted_error_of_the_denoiser(mixture, schedule, parameterization, density):
    labels = torch.arange(9)

    def network(x, c_noise, given):
        assert given is labels
        return torch.tanh(x) + c_noise[:, None, None] / 1000

    images = torch.randn(9, 2, 3, dtype=torch.float64)
    denoiser = NetworkDenoiser(network, schedule, parameterization)
    torch.manual_seed(4)
    loss = diffusion_loss(denoiser, density, images, labels)
    assert denoiser.evaluations == 0

    torch.manual_seed(4)
    t = density(schedule, 9)
    eps = torch.randn_like(images)
    alpha, sigma = schedule(t)
    x_t = alpha[:, None, None] * images + sigma[:, None, None] * eps
    error = (denoiser(x_t, alpha, sigma, labels) - images).square().mean((1, 2))
    torch.testing.assert_close(loss, weight_of(parameterization, sigma / alpha) * error, rtol=1e-7, atol=0)


@models
def test_the_exact_denoiser_is_the_minimum(mixture, schedule, parameterization, density):
    torch.manual_seed(0)
    component = torch.multinomial(mixture.weights, 4000, replacement=True)
    std = mixture.variances.sqrt()[component].reshape(-1, 2, 3)
    images = mixture.means[component].reshape(-1, 2, 3) + std * torch.randn(4000, 2, 3, dtype=torch.float64)
    exact = exact_network(mixture, schedule, parameterization)

    def mean_loss(shift: float, scale: float) -> float:
        torch.manual_seed(1)  # the same times and noise for all
        network = NetworkDenoiser(lambda x, c, labels: scale * exact(x, c, labels) + shift, schedule, parameterization)
        return float(diffusion_loss(network, density, images).mean())

    best = mean_loss(0, 1)
    for shift in (-0.3, 0.3):
        assert mean_loss(shift, 1) - best == pytest.approx(shift**2, rel=0.2)
    for scale in (0.8, 1.2):
        assert mean_loss(0, scale) > best + 1e-3


@pytest.mark.parametrize("std", [0.5, 1.2])
@models
def test_the_mean_loss_of_a_gaussian_is_the_closed_form(schedule, parameterization, density, std):
    gaussian = GaussianMixtureDenoiser(torch.zeros(1, 4), torch.tensor([std], dtype=torch.float64))
    denoiser = NetworkDenoiser(exact_network(gaussian, schedule, parameterization), schedule, parameterization)
    torch.manual_seed(0)
    images = std * torch.randn(10000, 4, dtype=torch.float64)
    loss = diffusion_loss(denoiser, density, images)
    ratio = schedule.ratio(density(schedule, 100000))
    expected = weight_of(parameterization, ratio) * std**2 * ratio**2 / (std**2 + ratio**2)
    standard_error = math.sqrt(float(loss.var() / 10000 + expected.var() / 100000))
    assert abs(float(loss.mean() - expected.mean())) < 4 * standard_error
    if isinstance(parameterization, EDMPreconditioning) and std == 0.5:
        torch.testing.assert_close(expected, torch.ones_like(expected))


def test_the_loss_keeps_the_data_type_of_the_images():
    denoiser = NetworkDenoiser(lambda x, c, labels: x.to(torch.bfloat16), Rectified(), Velocity())
    loss = diffusion_loss(denoiser, UniformTime(), torch.randn(3, 1, 4, 4))
    assert loss.dtype == torch.float32 and loss.shape == (3,)
