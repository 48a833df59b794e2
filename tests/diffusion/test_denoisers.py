import math

import pytest
import torch
from exact_answers import exact_network
from torch import Tensor, nn

from lit_gen.diffusion import (
    DiscreteVP,
    EDMPreconditioning,
    EDMSchedule,
    Epsilon,
    GaussianMixtureDenoiser,
    NetworkDenoiser,
    Parameterization,
    Rectified,
    Schedule,
    Velocity,
)

MODELS: list[tuple[Schedule, Parameterization]] = [
    (DiscreteVP(), Epsilon()),
    (DiscreteVP("cosine", 60), Epsilon(60)),
    (EDMSchedule(), EDMPreconditioning()),
    (Rectified(), Velocity()),
    (DiscreteVP(), EDMPreconditioning(0.7)),
    (DiscreteVP(), Velocity()),
    (Rectified(), EDMPreconditioning(1.3)),
]
MODEL_IDS = ["DDPM", "cosine", "EDM", "RectifiedFlow", "VP-EDM", "VP-velocity", "RF-EDM"]
models = pytest.mark.parametrize(("schedule", "parameterization"), MODELS, ids=MODEL_IDS)


def double(values) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


@models
def test_the_target_denoises_to_the_data(schedule: Schedule, parameterization: Parameterization):
    torch.manual_seed(0)
    t = double([0.02, 0.3, 0.7, 0.95])
    x_0, eps = torch.randn(2, 4, 3, 2, dtype=torch.float64)
    alpha, sigma = schedule(t)
    x = alpha[:, None, None] * x_0 + sigma[:, None, None] * eps
    target = parameterization.target(x_0, eps, alpha, sigma)
    torch.testing.assert_close(parameterization.denoised(target, x, alpha, sigma), x_0, rtol=1e-9, atol=1e-9)


@models
def test_one_noise_level_or_one_for_each_image(mixture, schedule: Schedule, parameterization: Parameterization):
    torch.manual_seed(0)
    denoiser = NetworkDenoiser(exact_network(mixture, schedule, parameterization), schedule, parameterization)
    x = torch.randn(3, 2, 3, dtype=torch.float64)
    alpha, sigma = double([0.9, 0.5, 0.2]), double([0.3, 0.8, 1.5])
    each = torch.cat([denoiser(x[i : i + 1], alpha[i], sigma[i]) for i in range(3)])
    torch.testing.assert_close(denoiser(x, alpha, sigma), each, rtol=1e-12, atol=1e-12)


@models
def test_a_perfect_network_is_exact_at_any_affine_level(
    mixture, schedule: Schedule, parameterization: Parameterization
):
    torch.manual_seed(1)
    denoiser = NetworkDenoiser(exact_network(mixture, schedule, parameterization), schedule, parameterization)
    alpha = double([1, 1, 1, 0.6, 0.1, 0.03, 2.5])
    sigma = double([0.05, 0.5, 60, 0.8, 0.9, 1.0, 0.4])
    x = torch.randn(7, 2, 3, dtype=torch.float64) * (alpha**2 + sigma**2).sqrt()[:, None, None]
    torch.testing.assert_close(denoiser(x, alpha, sigma), mixture(x, alpha, sigma), rtol=1e-7, atol=1e-7)


def test_pure_noise_is_the_greatest_level_of_training(mixture):
    torch.manual_seed(2)
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    zero, one = double(0), double(1)
    rectified = NetworkDenoiser(exact_network(mixture, Rectified(), Velocity()), Rectified(), Velocity())
    mean = (mixture.weights[:, None] * mixture.means).sum(0).reshape(2, 3).expand(5, 2, 3)
    torch.testing.assert_close(rectified(x, zero, one), mean, rtol=1e-12, atol=1e-12)
    edm, preconditioning = EDMSchedule(), EDMPreconditioning()
    clamped = NetworkDenoiser(exact_network(mixture, edm, preconditioning), edm, preconditioning)
    expected = mixture(x * math.sqrt(6401), one, double(80))
    torch.testing.assert_close(clamped(x, zero, one), expected, rtol=1e-9, atol=1e-9)


def test_edm_preconditioning_identities():
    sigma = torch.logspace(-3, 3, 61, dtype=torch.float64)
    one = torch.ones_like(sigma)
    for sigma_data in (0.5, 1.7):
        parameterization = EDMPreconditioning(sigma_data)
        c_in, c_skip, c_out = parameterization.coefficients(one, sigma)
        weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
        torch.testing.assert_close(weight * c_out**2, one, rtol=1e-12, atol=0)
        torch.testing.assert_close(c_in**2 * (sigma_data**2 + sigma**2), one, rtol=1e-12, atol=0)
        torch.testing.assert_close(c_skip, sigma_data**2 / (sigma**2 + sigma_data**2), rtol=1e-12, atol=0)
        torch.testing.assert_close(c_out, sigma * sigma_data / (sigma**2 + sigma_data**2).sqrt(), rtol=1e-12, atol=0)
        # The target is F* = of_data x_0 + of_noise eps, of unit variance.
        of_data = parameterization.target(one, 0 * one, one, sigma)
        of_noise = parameterization.target(0 * one, one, one, sigma)
        torch.testing.assert_close((of_data * sigma_data) ** 2 + of_noise**2, one, rtol=1e-12, atol=0)

        # c_skip is the value at which the factor of the network's error is least.
        def squared_c_out(skip, sigma_data=sigma_data):
            return (1 - skip) ** 2 * sigma_data**2 + skip**2 * sigma**2

        torch.testing.assert_close(squared_c_out(c_skip), c_out**2, rtol=1e-9, atol=1e-15)
        for shift in (-1e-3, 1e-3):
            assert (squared_c_out(c_skip + shift) > c_out**2).all()
        c_noise = parameterization.c_noise(one, one, sigma)
        torch.testing.assert_close(c_noise, sigma.log() / 4, rtol=0, atol=1e-15)
    limits = EDMPreconditioning(0.5).coefficients(double([1, 1]), double([1e-9, 1e9]))
    torch.testing.assert_close(torch.stack(limits[1:]), double([[1, 0], [0, 0.5]]), rtol=0, atol=1e-8)


def test_edm_with_unit_data_is_minus_the_vp_velocity():
    torch.manual_seed(0)
    vp = DiscreteVP()
    alpha, sigma = vp(torch.rand(8))
    x_0, eps = torch.randn(2, 8, dtype=torch.float64)
    target = EDMPreconditioning(1.0).target(x_0, eps, alpha, sigma)
    torch.testing.assert_close(target, sigma * x_0 - alpha * eps, rtol=1e-12, atol=1e-12)


def test_c_noise():
    steps = torch.arange(1, 1001, dtype=torch.float64)
    t = steps / 1000
    alpha, sigma = DiscreteVP()(t)
    assert torch.equal(Epsilon().c_noise(t, alpha, sigma).float(), (steps - 1).float())
    assert torch.equal(Epsilon(250).c_noise(steps[:250] / 250, alpha, sigma).float(), (steps[:250] - 1).float())
    assert Epsilon().c_noise(double(0.0125), alpha, sigma) == pytest.approx(11.5)
    torch.testing.assert_close(Velocity().c_noise(t, 1 - t, t), 999 * t)


def test_the_network_sees_whole_steps_at_the_knots():
    seen = []

    def network(x, c_noise, labels):
        seen.append(c_noise)
        return 0 * x

    vp = DiscreteVP()
    denoiser = NetworkDenoiser(network, vp, Epsilon())
    for k in range(1, 1001):
        denoiser(torch.zeros(2, 1), *vp(k / 1000))
    torch.testing.assert_close(torch.stack(seen), torch.arange(1000.0)[:, None].expand(1000, 2), rtol=0, atol=1e-4)


class Recorder(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5, dtype=dtype))
        self.seen: list[tuple] = []

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        self.seen.append((x.dtype, c_noise.dtype, c_noise.shape, labels))
        return self.scale * x


@pytest.mark.parametrize(
    ("network_dtype", "c_noise_dtype"),
    [(torch.float32, torch.float32), (torch.bfloat16, torch.float32), (torch.float64, torch.float64)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_casts_for_the_network_and_back(network_dtype, c_noise_dtype, dtype):
    network = Recorder(network_dtype)
    denoiser = NetworkDenoiser(network, EDMSchedule(), EDMPreconditioning())
    labels = torch.tensor([4, 2, 0])
    for alpha, sigma in [(double(1), double(2)), (double([1, 1, 1]), double([1, 2, 3]))]:
        denoised = denoiser(torch.randn(3, 1, 2, 2, dtype=dtype), alpha, sigma, labels)
        assert denoised.dtype == dtype
        assert network.seen[-1][:3] == (network_dtype, c_noise_dtype, (3,))
        assert network.seen[-1][3] is labels
    assert denoiser.evaluations == len(network.seen) == 2


def test_clip_keeps_the_range_of_the_data():
    vp = DiscreteVP("cosine")
    x = torch.randn(50, 1, dtype=torch.float64)
    alpha, sigma = vp(1.0)
    free = NetworkDenoiser(lambda x, c, labels: 0.9 * x, vp, Epsilon())(x, alpha, sigma)
    clipped = NetworkDenoiser(lambda x, c, labels: 0.9 * x, vp, Epsilon(), clip=1.0)(x, alpha, sigma)
    assert free.abs().min() > 1
    torch.testing.assert_close(clipped, free.sign(), rtol=0, atol=0)


def test_the_mixture_agrees_with_its_density_by_tweedie(mixture: GaussianMixtureDenoiser):
    torch.manual_seed(3)
    x = torch.randn(6, 2, 3, dtype=torch.float64, requires_grad=True)
    alpha, sigma = torch.rand(2, 6, dtype=torch.float64) + 0.3
    (score,) = torch.autograd.grad(mixture.log_density(x, alpha, sigma).sum(), x)
    tweedie = (x + sigma[:, None, None] ** 2 * score) / alpha[:, None, None]
    torch.testing.assert_close(mixture(x, alpha, sigma), tweedie, rtol=1e-10, atol=1e-10)


def test_the_density_of_the_mixture_integrates_to_one(mixture_1d: GaussianMixtureDenoiser):
    x = torch.linspace(-12, 12, 20001, dtype=torch.float64)
    density = mixture_1d.log_density(x[:, None], double(0.8), double(0.5)).exp()
    assert float(torch.trapezoid(density, x)) == pytest.approx(1, abs=1e-10)


def test_the_mixture_is_the_posterior_mean_by_quadrature(mixture_1d: GaussianMixtureDenoiser):
    alpha, sigma, x_t = double(0.7), double(0.4), double([[-0.9], [0.1], [1.2]])
    x_0 = torch.linspace(-4, 4, 20001, dtype=torch.float64)
    prior = mixture_1d.log_density(x_0[:, None], double(1), double(0)).exp()
    joint = prior * (-0.5 * ((x_t - alpha * x_0) / sigma) ** 2).exp()
    mean = (joint * x_0).sum(1, keepdim=True) / joint.sum(1, keepdim=True)
    torch.testing.assert_close(mixture_1d(x_t, alpha, sigma), mean, rtol=1e-9, atol=1e-9)
