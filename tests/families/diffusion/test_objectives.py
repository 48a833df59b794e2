"""Losses, their weights, learned variances and learned uncertainty."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from lit_gen.core.errors import UserError
from lit_gen.families.diffusion import (
    ELBO,
    VE,
    Cosine,
    DiscreteVP,
    EDMPreconditioning,
    EDMSchedule,
    Epsilon,
    ErrorOf,
    FixedTime,
    GaussianMixtureDenoiser,
    LinearVP,
    LogitNormal,
    LognormalSigma,
    LossWeight,
    MinSNR,
    NetworkDenoiser,
    Parameterization,
    Rectified,
    Sample,
    Schedule,
    Score,
    TimeDensity,
    Uncertainty,
    UniformLogSigma,
    UniformSteps,
    UniformTime,
    V,
    VariationalBound,
    Velocity,
    diffusion_loss,
    hybrid_loss,
    variational_loss,
    weighted,
)
from lit_gen.families.diffusion.densities import lattice
from tests.families.diffusion.exact_answers import Fixed, exact_network

MODELS: dict[str, tuple[Schedule, Parameterization, TimeDensity]] = {
    "DDPM": (DiscreteVP(), Epsilon(), UniformSteps()),
    "EDM": (EDMSchedule(), EDMPreconditioning(), LognormalSigma()),
    "RF": (Rectified(), Velocity(), UniformTime()),
    "SD3": (Rectified(), Velocity(), LogitNormal()),
    "VP": (LinearVP(), Score(), UniformTime()),
    "VE": (VE(), Score("sigma"), UniformLogSigma()),
    "V": (Cosine(), V(), UniformTime()),
}
models = pytest.mark.parametrize(("schedule", "parameterization", "density"), MODELS.values(), ids=MODELS)

# The published weight of |D - x_0|^2 at noise level r = sigma / alpha.
DICTIONARY = {
    "eps": (Epsilon(), lambda r: 1 / r**2),
    "score": (Score(), lambda r: 1 / r**2),
    "x_0": (Sample(), lambda r: torch.ones_like(r)),
    "v": (V(), lambda r: 1 + 1 / r**2),
    "velocity": (Velocity(), lambda r: (1 + 1 / r) ** 2),
    "EDM": (EDMPreconditioning(0.7), lambda r: (r**2 + 0.49) / (0.7 * r) ** 2),
}


def published(parameterization: Parameterization, ratio: torch.Tensor) -> torch.Tensor:
    if isinstance(parameterization, EDMPreconditioning):
        sigma_data = parameterization.sigma_data
        return (ratio**2 + sigma_data**2) / (sigma_data * ratio) ** 2
    return next(weight for known, weight in DICTIONARY.values() if type(known) is type(parameterization))(ratio)


def inner_times(schedule: Schedule, num: int = 31) -> torch.Tensor:
    if isinstance(schedule, DiscreteVP):
        return (
            torch.linspace(1, 0, num, dtype=torch.float64)[:-1]
            .mul(schedule.num_timesteps)
            .ceil()
            .div(schedule.num_timesteps)
        )
    return schedule.time(torch.logspace(-1.5, 1.5, num, dtype=torch.float64))


def draw(density: TimeDensity, schedule: Schedule, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return density(schedule, len(images)), torch.randn_like(images)


@models
def test_the_loss_is_the_weighted_error_of_the_denoiser(mixture, schedule, parameterization, density):
    labels = torch.arange(9)

    def network(x, c_noise, given):
        assert given is labels
        return torch.tanh(x) + c_noise[:, None, None] / 1000

    torch.manual_seed(4)
    images = torch.randn(9, 2, 3, dtype=torch.float64)
    denoiser = NetworkDenoiser(network, schedule, parameterization)
    t, eps = draw(density, schedule, images)
    loss = diffusion_loss(denoiser, images, t, eps, labels)
    assert denoiser.evaluations == 0
    alpha, sigma = schedule(t)
    x_t = alpha[:, None, None] * images + sigma[:, None, None] * eps
    error = (denoiser(x_t, alpha, sigma, labels) - images).square().mean((1, 2))
    torch.testing.assert_close(loss, published(parameterization, sigma / alpha) * error, rtol=1e-6, atol=0)


@models
def test_the_exact_denoiser_is_the_minimum(mixture, schedule, parameterization, density):
    torch.manual_seed(0)
    component = torch.multinomial(mixture.weights, 4000, replacement=True)
    std = mixture.variances.sqrt()[component].reshape(-1, 2, 3)
    images = mixture.means[component].reshape(-1, 2, 3) + std * torch.randn(4000, 2, 3, dtype=torch.float64)
    t, eps = draw(density, schedule, images)
    exact = exact_network(mixture, schedule, parameterization)

    def mean_loss(shift: float, scale: float) -> float:
        network = NetworkDenoiser(lambda x, c, labels: scale * exact(x, c, labels) + shift, schedule, parameterization)
        return float(diffusion_loss(network, images, t, eps).mean())

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
    t, eps = draw(density, schedule, images)
    loss = diffusion_loss(denoiser, images, t, eps)
    ratio = schedule.ratio(t)
    expected = published(parameterization, ratio) * std**2 * ratio**2 / (std**2 + ratio**2)
    assert abs(float((loss - expected).mean())) < 4 * float((loss - expected).std()) / 100
    assert float((loss - expected).std()) < 2 * float(expected.mean())
    if isinstance(parameterization, EDMPreconditioning) and std == 0.5:
        torch.testing.assert_close(expected, torch.ones_like(expected))


def test_the_loss_keeps_the_data_type_of_the_images():
    denoiser = NetworkDenoiser(lambda x, c, labels: x.to(torch.bfloat16), Rectified(), Velocity())
    images = torch.randn(3, 1, 4, 4)
    loss = diffusion_loss(denoiser, images, torch.rand(3, dtype=torch.float64), torch.randn_like(images))
    assert loss.dtype == torch.float32 and loss.shape == (3,)


@pytest.mark.parametrize("name", DICTIONARY)
def test_the_error_of_a_target_weighs_as_published(name, schedule):
    target, weight = DICTIONARY[name]
    t = inner_times(schedule)
    ratio = schedule.ratio(t)
    torch.testing.assert_close(ErrorOf(target)(schedule, UniformTime(), t), weight(ratio), rtol=1e-9, atol=0)


@pytest.mark.parametrize("trained", [Epsilon(), V(), Velocity(), EDMPreconditioning(), Sample()])
@pytest.mark.parametrize("weight", [ErrorOf(Epsilon()), ErrorOf(Velocity()), MinSNR(3.0), ELBO()])
def test_a_weighted_loss_does_not_depend_on_what_the_network_predicts(weight, trained, mixture):
    """For the same denoiser, w |D - x_0|^2 is equal in every parameterization."""
    schedule, density = LinearVP(), UniformTime()
    torch.manual_seed(3)
    images, t = torch.randn(30, 2, 3, dtype=torch.float64), inner_times(schedule, 30)
    eps = torch.randn_like(images)
    wrong = GaussianMixtureDenoiser(mixture.means.reshape(3, 2, 3) + 0.5, mixture.variances.sqrt().reshape(3, 2, 3))
    denoiser = NetworkDenoiser(exact_network(wrong, schedule, trained), schedule, trained)
    loss = weighted(diffusion_loss(denoiser, images, t, eps), denoiser, weight, density, t)
    alpha, sigma = schedule(t)
    x_t = alpha[:, None, None] * images + sigma[:, None, None] * eps
    error = (wrong(x_t, alpha, sigma) - images).square().mean((1, 2))
    torch.testing.assert_close(loss, weight(schedule, density, t) * error, rtol=1e-6, atol=0)


def relative(weight: LossWeight, parameterization: Parameterization, schedule: Schedule, t: torch.Tensor):
    """Return the weight of the parameterization's own error."""
    denoiser = NetworkDenoiser(lambda x, c, labels: x, schedule, parameterization)
    return weighted(torch.ones_like(t), denoiser, weight, UniformTime(), t)


def test_min_snr_in_the_published_forms():
    schedule = LinearVP()
    t = inner_times(schedule)
    snr = schedule.ratio(t) ** -2
    least = torch.minimum(snr, torch.tensor(5.0))
    assert (least < 5).any() and (least == 5).any()
    for parameterization, expected in [(Sample(), least), (Epsilon(), least / snr), (V(), least / (snr + 1))]:
        torch.testing.assert_close(relative(MinSNR(), parameterization, schedule, t), expected, rtol=1e-9, atol=0)
    with pytest.raises(UserError, match="gamma"):
        MinSNR(0)


def test_no_weight_leaves_the_loss_alone():
    denoiser = NetworkDenoiser(lambda x, c, labels: x, Rectified(), Velocity())
    loss = torch.rand(3)
    assert weighted(loss, denoiser, None, UniformTime(), torch.rand(3)) is loss


def test_the_elbo_weighs_by_the_slope_of_the_signal_to_noise_ratio(schedule):
    t = inner_times(schedule)
    if isinstance(schedule, DiscreteVP):
        t = t - 0.3 / schedule.num_timesteps  # away from the kinks
    step = 1e-7
    snr = [schedule.ratio(t + sign * step) ** -2 for sign in (-1, 1)]
    expected = (snr[0] - snr[1]) / (4 * step)
    # with a density of 1 in t
    uniform = ELBO()(schedule, UniformTime(), t) * UniformTime().pdf(schedule, t)
    torch.testing.assert_close(uniform, expected, rtol=2e-4, atol=0)


def test_the_elbo_weight_is_the_likelihood_weighting_of_score_matching():
    schedule = LinearVP()
    t = inner_times(schedule)
    _, g_squared = schedule.sde(t)
    alpha, sigma = schedule(t)
    # g^2 / 2 |score - score*|^2 with score = (alpha D - x) / sigma^2
    expected = g_squared / 2 * (alpha / sigma**2) ** 2
    elbo = ELBO()(schedule, UniformTime(), t) * UniformTime().pdf(schedule, t)
    torch.testing.assert_close(elbo, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("schedule", "density"),
    [
        (LinearVP(min_time=1e-3), UniformTime()),
        (LinearVP(min_time=1e-3), UniformLogSigma()),
        (VE(), UniformTime()),
        (VE(), UniformLogSigma()),
        (EDMSchedule(), UniformLogSigma()),
    ],
)
def test_the_mean_elbo_does_not_depend_on_the_density(schedule, density):
    """The diffusion term of N(0, s^2) is log((1 + s^2 SNR_0) / (1 + s^2 SNR_1)) / 2 in nats per dimension."""
    variance = 0.3
    t = density.quantile(schedule, lattice(0.5 / 200000, 0, 200000, 200000))
    ratio = schedule.ratio(t)
    error = variance * ratio**2 / (variance + ratio**2)
    low, high = schedule.min_ratio, schedule.max_ratio
    expected = math.log((1 + variance / low**2) / (1 + variance / high**2)) / 2
    assert float((ELBO()(schedule, density, t) * error).mean()) == pytest.approx(expected, rel=1e-3)


def test_the_elbo_of_one_time_is_refused():
    with pytest.raises(UserError, match="FixedTime"):
        ELBO()(Rectified(), FixedTime(), torch.ones(2))


# --- learned variances ---

CHAIN = DiscreteVP("cosine", 12)


def levels(*shape: int) -> torch.Tensor:
    """Return random 8-bit images that include both extreme values."""
    images = torch.randint(256, shape).double()
    images.view(-1)[:2] = torch.tensor([0.0, 255.0]).double()
    return images / 127.5 - 1


def two_outputs() -> tuple[NetworkDenoiser, torch.Tensor]:
    """Return a network of 2 C channels with one parameter for the mean and one for the variance."""
    weights = torch.tensor([0.3, 0.4], dtype=torch.float64, requires_grad=True)

    def network(x, c_noise, labels):
        answer = torch.tanh(x) * weights[0] + c_noise[:, None, None] / 100
        return torch.cat([answer, 1.5 * torch.sin(3 * x + weights[1])], 1)

    return NetworkDenoiser(network, CHAIN, Epsilon(12)), weights


def by_hand(images: torch.Tensor, eps: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the term of step k of each image in bits per dimension, from the betas, and the error of eps."""
    alpha_bar = torch.cat([torch.ones(1), CHAIN(torch.arange(1, 13, dtype=torch.float64) / 12)[0] ** 2])
    beta = 1 - alpha_bar[1:] / alpha_bar[:-1]
    tilde = beta * (1 - alpha_bar[:-1]) / (1 - alpha_bar[1:])
    tilde[0] = tilde[1]
    now, before, b = alpha_bar[k], alpha_bar[k - 1], beta[k - 1]
    x = now.sqrt() * images + (1 - now).sqrt() * eps
    denoiser, _ = two_outputs()
    eps_hat, v = denoiser.network(x, torch.full((len(x),), k - 1.0), None).detach().chunk(2, 1)
    x_0 = (x - (1 - now).sqrt() * eps_hat) / now.sqrt()

    def mean(data: torch.Tensor) -> torch.Tensor:
        return (b * before.sqrt() * data + (1 - before) * (1 - b).sqrt() * x) / (1 - now)

    std = ((v + 1) / 2 * b.log() + (1 - v) / 2 * tilde[k - 1].log()).mul(0.5).exp()
    if k > 1:
        nats = kl_divergence(Normal(mean(images), tilde[k - 1].sqrt()), Normal(mean(x_0), std))
    else:
        # The mass of each bin by the midpoint rule, the first and the last bin being half-infinite.
        edges = torch.where(images == -1, -6.0, images - 1 / 255), torch.where(images == 1, 6.0, images + 1 / 255)
        fine = (torch.arange(20000).double() + 0.5) / 20000
        points = edges[0][..., None] + (edges[1] - edges[0])[..., None] * fine
        density = Normal(x_0[..., None], std[..., None]).log_prob(points).exp()
        nats = -(density.mean(-1) * (edges[1] - edges[0])).log()
    return nats.flatten(1).mean(1) / math.log(2), (eps_hat - eps).square().flatten(1).mean(1)


@pytest.mark.parametrize("k", [1, 2, 3, 11, 12])
def test_the_bound_against_torch_and_integration(k):
    torch.manual_seed(k)
    images = levels(4, 2, 3)
    eps = 0.3 * torch.randn_like(images)
    expected, error = by_hand(images, eps, k)
    denoiser, _ = two_outputs()
    t = torch.full((4,), k / 12, dtype=torch.float64)
    torch.testing.assert_close(variational_loss(denoiser, images, t, eps), 12 * expected, rtol=1e-6, atol=0)
    hybrid = hybrid_loss(denoiser, images, t, eps, vlb_weight=0.01)
    torch.testing.assert_close(hybrid, error + 0.12 * expected, rtol=1e-6, atol=0)


def test_the_bound_of_a_batch_of_steps_is_that_of_each():
    torch.manual_seed(0)
    images, t = levels(12, 2, 3), torch.arange(1, 13, dtype=torch.float64) / 12
    eps = torch.randn_like(images)
    denoiser, _ = two_outputs()
    whole = variational_loss(denoiser, images, t, eps)
    each = [variational_loss(denoiser, *(part[i : i + 1] for part in (images, t, eps))) for i in range(12)]
    torch.testing.assert_close(whole, torch.cat(each), rtol=1e-12, atol=0)


def test_the_sum_of_the_terms_is_the_bound_of_the_likelihood():
    """With the smallest variance, and the same noise at every step."""
    network = two_outputs()[0].network
    images = levels(3, 2, 3)
    noise = Fixed(0.4, 3)
    small = NetworkDenoiser(lambda x, c, labels: network(x, c, labels)[:, :2], CHAIN, Epsilon(12))
    terms = VariationalBound("small").terms(small, CHAIN, images, noise)
    expected = (terms["transitions"] + terms["decoder"]) / (6 * math.log(2))

    def least(x, c, labels):
        return torch.cat([network(x, c, labels)[:, :2], -torch.ones_like(x)], 1)

    learned = NetworkDenoiser(least, CHAIN, Epsilon(12))
    eps = torch.full_like(images, 0.4)
    losses = [variational_loss(learned, images, torch.full((3,), k / 12).double(), eps) for k in range(1, 13)]
    torch.testing.assert_close(torch.stack(losses).mean(0), expected, rtol=1e-6, atol=0)


def test_the_hybrid_loss_teaches_the_mean_by_the_error_alone():
    torch.manual_seed(0)
    images, t = levels(12, 2, 3), torch.arange(1, 13, dtype=torch.float64) / 12
    eps = torch.randn_like(images)
    denoiser, weights = two_outputs()

    def gradient(loss: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(loss.sum(), weights)[0]

    simple = gradient(diffusion_loss(denoiser, images, t, eps))
    bound = gradient(variational_loss(denoiser, images, t, eps))
    hybrid = gradient(hybrid_loss(denoiser, images, t, eps, vlb_weight=0.1))
    assert simple[1] == 0 and bound.abs().min() > 1e-3
    torch.testing.assert_close(hybrid, torch.stack([simple[0], 0.1 * bound[1]]), rtol=1e-12, atol=0)


def test_the_gradient_of_the_first_step_is_finite_at_the_ends():
    denoiser, weights = two_outputs()
    images = torch.tensor([-1.0, 1.0, 0.0, -1.0, 1.0, 0.0]).double().reshape(1, 2, 3)
    for scale in (0.0, 1.0, 1e3):  # the mean on, near and far from the data
        loss = variational_loss(denoiser, images, torch.tensor([1 / 12]).double(), scale * torch.ones_like(images))
        assert torch.autograd.grad(loss.sum(), weights)[0].isfinite().all()


def test_a_learned_variance_needs_a_chain_and_two_outputs():
    images = levels(2, 2, 3)
    t, eps = torch.full((2,), 0.5).double(), torch.randn_like(images)
    one = NetworkDenoiser(lambda x, c, labels: x, CHAIN, Epsilon(12))
    with pytest.raises(UserError, match="out_channels"):
        hybrid_loss(one, images, t, eps)
    two = NetworkDenoiser(lambda x, c, labels: torch.cat([x, x], 1), Rectified(), Velocity())
    with pytest.raises(UserError, match="DiscreteVP"):
        variational_loss(two, images, t, eps)
    # the plain loss only uses F
    alone = NetworkDenoiser(lambda x, c, labels: x, Rectified(), Velocity())
    assert torch.equal(diffusion_loss(two, images, t, eps), diffusion_loss(alone, images, t, eps))


# --- learned uncertainty ---


def test_uncertainty_begins_as_nothing_and_is_least_at_the_log_of_the_loss():
    torch.manual_seed(0)
    uncertainty = Uncertainty()
    loss, ratio = torch.rand(50) + 0.1, torch.logspace(-2, 2, 50)
    assert torch.equal(uncertainty(loss, ratio), loss)
    assert torch.equal(uncertainty(loss[:2], torch.tensor([0.0, math.inf])), loss[:2])
    with torch.no_grad():
        uncertainty.bias.fill_(math.log(0.7))
    slopes = torch.autograd.grad(uncertainty(torch.full((50,), 0.7), ratio).sum(), list(uncertainty.parameters()))
    assert all(slope.abs().max() < 1e-4 for slope in slopes)
    # L / e^u + u and its gradient with respect to L
    loss.requires_grad_()
    (slope,) = torch.autograd.grad(uncertainty(loss, ratio).sum(), loss)
    torch.testing.assert_close(slope, torch.full((50,), 1 / 0.7))


def test_uncertainty_is_linear_in_the_fourier_features_of_the_paper():
    """Check u = sum_k w_k sqrt(2) cos(2 pi (f_k z + phi_k)) / sqrt(K) + b of z = ln(sigma / alpha) / 4, at z = 0.1."""
    uncertainty = Uncertainty(2).double()
    with torch.no_grad():
        uncertainty.frequencies.copy_(torch.tensor([1.0, 0.5]))
        uncertainty.phases.copy_(torch.tensor([0.25, 0.0]))
        uncertainty.weight.copy_(torch.tensor([3.0, 5.0]))
        uncertainty.bias.fill_(0.75)
    found = uncertainty.level(torch.tensor([math.exp(0.4)], dtype=torch.float64)).item()
    assert found == pytest.approx(-3 * math.sin(0.2 * math.pi) + 5 * math.cos(0.1 * math.pi) + 0.75, abs=1e-12)
    torch.manual_seed(0)
    drawn = Uncertainty(100_000)
    assert drawn.frequencies.std().item() == pytest.approx(1, abs=0.01)
    assert drawn.phases.aminmax() == pytest.approx((0, 1), abs=1e-3)


def test_uncertainty_learns_the_log_of_the_mean_loss():
    torch.manual_seed(0)
    uncertainty = Uncertainty()
    optimizer = torch.optim.Adam(uncertainty.parameters(), lr=0.02)
    ratio = torch.logspace(-2.5, 2, 256)
    mean = 0.02 + 1 / (1 + ratio)  # over two orders of magnitude
    for _ in range(400):
        noisy = mean * 2 * torch.rand(256)
        optimizer.zero_grad()
        uncertainty(noisy, ratio).mean().backward()
        optimizer.step()
    assert (uncertainty.level(ratio) - mean.log()).abs().mean().item() < 0.1
