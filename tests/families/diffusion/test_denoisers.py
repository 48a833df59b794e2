"""Parameterizations, conversions between them, and denoisers of networks."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from lit_gen.core.errors import UserError
from lit_gen.families.diffusion import (
    VE,
    Cosine,
    DiscreteVP,
    EDMPreconditioning,
    EDMSchedule,
    Epsilon,
    GaussianMixtureDenoiser,
    LinearVP,
    NetworkDenoiser,
    Parameterization,
    Rectified,
    Sample,
    Schedule,
    Score,
    SubVP,
    V,
    Velocity,
    convert,
)
from lit_gen.families.diffusion.denoisers import per_image
from lit_gen.networks.embeddings import FourierFeatures, sinusoids
from tests.families.diffusion.exact_answers import exact_network

MODELS: list[tuple[Schedule, Parameterization]] = [
    (DiscreteVP(), Epsilon()),
    (DiscreteVP("cosine", 60), Epsilon(60)),
    (EDMSchedule(), EDMPreconditioning()),
    (Rectified(), Velocity()),
    (DiscreteVP(), EDMPreconditioning(0.7)),
    (DiscreteVP(), Velocity()),
    (Rectified(), EDMPreconditioning(1.3)),
    (LinearVP(), Score()),
    (SubVP(), Score()),
    (VE(sigma_max=90), Score("sigma")),
    (VE(sigma_max=90), Score("sigma", scale_input=True)),
    (Cosine(), V()),
    (EDMSchedule(), V()),
    (VE(sigma_max=90), Sample()),
    (Rectified(), Sample()),
    (Cosine(), Epsilon()),
]
MODEL_IDS = [f"{type(schedule).__name__}-{type(parameterization).__name__}" for schedule, parameterization in MODELS]
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
    _, c_skip, c_out = (per_image(value, x) for value in parameterization.coefficients(alpha, sigma))
    torch.testing.assert_close(c_skip * x + c_out * target, x_0, rtol=1e-9, atol=1e-9)


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


@pytest.mark.parametrize("schedule", [Rectified(), Cosine()])
@pytest.mark.parametrize("parameterization", [Epsilon(), Score(), Score("sigma"), EDMPreconditioning()])
def test_pure_noise_where_the_network_could_not_tell(schedule: Schedule, parameterization: Parameterization):
    """At alpha = 0, F = eps does not determine x_0 and ln(sigma / alpha) is infinite: the network uses 1e5."""
    seen = []

    def network(x: Tensor, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        seen.append(c_noise)
        return 0.5 * x

    denoiser = NetworkDenoiser(network, schedule, parameterization)
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    at_the_end = denoiser(x, double(0), double(1))
    assert at_the_end.isfinite().all() and seen[0].isfinite().all()
    torch.testing.assert_close(at_the_end, denoiser(x, double(1e-5), double(1)), rtol=1e-6, atol=1e-9)
    assert (denoiser(x, double(2e-5), double(1)) - at_the_end).abs().max() > 1e-6 * at_the_end.abs().max()


@pytest.mark.parametrize(
    ("schedule", "parameterization"),
    [
        (EDMSchedule(), EDMPreconditioning()),
        (DiscreteVP(), Epsilon()),
        (LinearVP(), Epsilon()),
        (VE(), Score("sigma")),
    ],
)
def test_less_noise_than_in_training_is_the_least_level_of_it(schedule: Schedule, parameterization: Parameterization):
    """A level below those of training is clamped to the smallest, and x is scaled to it."""
    seen = []

    def network(x: Tensor, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        seen.append((x, c_noise))
        return 0.5 * x

    denoiser = NetworkDenoiser(network, schedule, parameterization)
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    t = schedule.time(schedule.min_ratio)
    alpha, sigma = schedule(t)
    expected = denoiser((alpha**2 + sigma**2).sqrt() * x, alpha, sigma)
    for level in (0.0, 0.3 * schedule.min_ratio):
        found = denoiser((1 + level**2) ** 0.5 * x, double(1), double(level))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
        torch.testing.assert_close(seen[-1], seen[0], rtol=1e-12, atol=0)
    denoiser(x, double(1), double(1.5 * schedule.min_ratio))
    assert (seen[-1][1] > seen[0][1]).all()


# Conversions.

KINDS = [Epsilon(), Score(), Sample(), V(), Velocity(), EDMPreconditioning(0.6)]
sources = pytest.mark.parametrize("source", KINDS, ids=lambda kind: type(kind).__name__)
targets = pytest.mark.parametrize("target", KINDS, ids=lambda kind: type(kind).__name__)


@sources
@targets
def test_conversions(source: Parameterization, target: Parameterization):
    torch.manual_seed(4)
    alpha, sigma = torch.rand(2, 20, dtype=torch.float64) + 0.05
    x_0, eps = torch.randn(2, 20, 3, dtype=torch.float64)
    x = alpha[:, None] * x_0 + sigma[:, None] * eps
    value, expected = (kind.target(x_0, eps, alpha, sigma) for kind in (source, target))
    torch.testing.assert_close(convert(value, source, target, x, alpha, sigma), expected, rtol=1e-11, atol=1e-11)
    one = convert(value[:1], source, target, x[:1], alpha[0], sigma[0])
    torch.testing.assert_close(one, expected[:1], rtol=1e-11, atol=1e-11)


@sources
@targets
@pytest.mark.parametrize(("alpha", "sigma"), [(0.0, 1.3), (0.8, 0.0)], ids=["noise", "data"])
def test_conversions_at_the_ends_of_time(source: Parameterization, target: Parameterization, alpha, sigma):
    """Exact if x and the source determine the target, and not finite otherwise."""
    torch.manual_seed(5)
    alpha, sigma = double(alpha), double(sigma)
    x_0, eps = torch.randn(2, 4, 3, dtype=torch.float64)
    x = alpha * x_0 + sigma * eps
    (a, b), (a_target, b_target) = (kind.weights(alpha, sigma) for kind in (source, target))
    known = torch.stack([torch.stack([alpha, sigma]), torch.stack([a, b])])
    wanted = torch.cat([known, torch.stack([a_target, b_target])[None]])
    told = torch.linalg.matrix_rank(known) == torch.linalg.matrix_rank(wanted)
    converted = convert(source.target(x_0, eps, alpha, sigma), source, target, x, alpha, sigma)
    if told:
        torch.testing.assert_close(converted, target.target(x_0, eps, alpha, sigma), rtol=1e-13, atol=1e-13)
    else:
        assert not converted.isfinite().any()
    blind = (Epsilon, Score) if alpha == 0 else (Sample,)
    assert told or isinstance(source, blind)


def test_the_score_at_the_data_is_scaled_by_sigma(mixture):
    """At sigma = 0, F = sigma score = 0 implies D = x / alpha and an expected eps of 0."""
    x, alpha, sigma = torch.randn(3, 2, 3, dtype=torch.float64), double(0.7), double(0)
    zero = torch.zeros_like(x)
    torch.testing.assert_close(convert(zero, Score(), Sample(), x, alpha, sigma), x / alpha, rtol=1e-14, atol=0)
    torch.testing.assert_close(convert(zero, Score(), Velocity(), x, alpha, sigma), -x / alpha, rtol=1e-14, atol=0)


def test_conversions_in_closed_form(mixture):
    torch.manual_seed(6)
    x = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    alpha, sigma = torch.rand(2, dtype=torch.float64) + 0.2
    (score,) = torch.autograd.grad(mixture.log_density(x, alpha, sigma).sum(), x)
    x = x.detach()
    denoised = mixture(x, alpha, sigma)
    eps = (x - alpha * denoised) / sigma
    for target, expected in [
        (Epsilon(), eps),
        (Score(), sigma * score),
        (Velocity(), eps - denoised),
        (V(), (alpha * eps - sigma * denoised) / (alpha**2 + sigma**2).sqrt()),
        (EDMPreconditioning(1.0), (sigma * denoised - alpha * eps) / (alpha**2 + sigma**2).sqrt()),
    ]:
        torch.testing.assert_close(convert(denoised, Sample(), target, x, alpha, sigma), expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(convert(expected, target, Sample(), x, alpha, sigma), denoised, rtol=1e-9, atol=1e-9)
    # On the straight path, z = (1 - u) x_0 + u eps.
    u = sigma / (alpha + sigma)
    z, velocity, score = x / (alpha + sigma), eps - denoised, score * (alpha + sigma)
    torch.testing.assert_close(convert(velocity, Velocity(), Sample(), z, 1 - u, u), z - u * velocity)
    torch.testing.assert_close(convert(velocity, Velocity(), Epsilon(), z, 1 - u, u), z + (1 - u) * velocity)
    torch.testing.assert_close(convert(u * score, Score(), Velocity(), z, 1 - u, u), -(z + u * score) / (1 - u))


def test_the_preconditionings_of_song_in_the_table_of_edm():
    """Compare on x / alpha = x_0 + sigma eps with the table of EDM.

    VP: c_in = 1 / sqrt(1 + sigma^2), c_out = -sigma, c_noise = 999 t; VE: c_in = 1, c_out = sigma,
    c_noise = ln(sigma / 2).

    Our VE network receives ln(sigma); the constant has no effect, as the next test shows. `Epsilon` is DDPM's network
    on that VP path, and receives the step of the chain, counted from 0.
    """
    t = 0.01 + 0.98 * torch.rand(9, dtype=torch.float64)
    for schedule, parameterization, sign in [(LinearVP(), Epsilon(), -1), (LinearVP(), Score(), 1)]:
        alpha, sigma = schedule(t)
        ratio = sigma / alpha
        c_in, c_skip, c_out = parameterization.coefficients(alpha, sigma)
        torch.testing.assert_close(c_in * alpha, (1 + ratio**2).rsqrt(), rtol=1e-11, atol=0)
        torch.testing.assert_close(c_skip * alpha, torch.ones_like(t), rtol=1e-14, atol=0)
        torch.testing.assert_close(c_out, sign * ratio, rtol=1e-14, atol=0)
        c_noise = 1000 * t - 1 if sign < 0 else 999 * t
        torch.testing.assert_close(parameterization.c_noise(t, alpha, sigma), c_noise, rtol=1e-14, atol=0)
    alpha, sigma = VE()(t)
    coefficients = Score("sigma").coefficients(alpha, sigma)
    torch.testing.assert_close(coefficients, (alpha, alpha, sigma), rtol=0, atol=0)
    scaled = Score("sigma", scale_input=True).coefficients(alpha, sigma)
    torch.testing.assert_close(scaled, ((1 + sigma**2).rsqrt(), alpha, sigma), rtol=1e-14, atol=0)
    c_noise = Score("sigma").c_noise(t, alpha, sigma)
    torch.testing.assert_close(c_noise - (sigma / 2).log(), torch.full_like(t, math.log(2)), rtol=1e-13, atol=0)


@pytest.mark.parametrize("embed", [partial(sinusoids, dim=16), FourierFeatures(16).double()])
def test_a_constant_in_c_noise_turns_the_features(embed):
    """It rotates each pair of cosine and sine by a constant angle, which a linear layer can undo."""
    c, constant = torch.linspace(-6, 4, 40, dtype=torch.float64), torch.tensor([math.log(2)], dtype=torch.float64)
    (cos, sin), (cos_of, sin_of) = embed(c).chunk(2, 1), embed(constant).chunk(2, 1)
    turned = torch.cat([cos * cos_of + sin * sin_of, sin * cos_of - cos * sin_of], dim=1)
    torch.testing.assert_close(embed(c - constant), turned, rtol=0, atol=1e-10)
    assert (turned - embed(c)).abs().max() > 0.5


@pytest.mark.parametrize("parameterization", [V(), Sample()])
def test_v_and_sample_give_the_network_an_input_of_unit_norm(parameterization: Parameterization):
    alpha, sigma = torch.rand(2, 9, dtype=torch.float64) + 0.1
    norm = (alpha**2 + sigma**2).sqrt()
    c_in, c_skip, c_out = parameterization.coefficients(alpha, sigma)
    torch.testing.assert_close(c_in, 1 / norm, rtol=1e-13, atol=0)
    if isinstance(parameterization, V):
        torch.testing.assert_close(c_skip, alpha / norm**2, rtol=1e-13, atol=0)
        torch.testing.assert_close(c_out, -sigma / norm, rtol=1e-13, atol=0)
    else:
        torch.testing.assert_close((c_skip, c_out), (0 * norm, torch.ones_like(norm)), rtol=0, atol=0)


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

        # c_skip minimises the factor of the network's error.
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
    for parameterization in (Velocity(), V(), Sample(), Score()):
        torch.testing.assert_close(parameterization.c_noise(t, alpha, sigma), 999 * t, rtol=0, atol=0)
    c_noise = Score("sigma").c_noise(t, alpha, sigma)
    torch.testing.assert_close(c_noise, (sigma / alpha).log(), rtol=0, atol=1e-14)
    with pytest.raises(UserError, match="condition"):
        Score("noise")  # type: ignore[arg-type]


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


# Learned variance.


def test_a_network_with_twice_the_channels_learns_the_variance():
    torch.manual_seed(7)
    calls = []

    def both(x: Tensor, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        calls.append(labels)
        return torch.cat([0.3 * x, torch.tanh(x)], 1)

    vp, labels = DiscreteVP(), torch.tensor([1, 0, 2])
    x, (alpha, sigma) = torch.randn(3, 2, 4, 4, dtype=torch.float64), vp(0.4)
    denoiser = NetworkDenoiser(both, vp, Epsilon())
    plain = NetworkDenoiser(lambda x, c_noise, labels: 0.3 * x, vp, Epsilon())
    denoised, v = denoiser.given(labels).with_variance(x, alpha, sigma)
    assert denoiser.evaluations == len(calls) == 1 and calls[0] is labels
    torch.testing.assert_close(denoised, plain(x, alpha, sigma), rtol=0, atol=0)
    torch.testing.assert_close(v, (torch.tanh(x) + 1) / 2, rtol=1e-12, atol=0)
    torch.testing.assert_close(denoiser(x, alpha, sigma), denoised, rtol=0, atol=0)
    assert denoiser.evaluations == 2
    clipped = NetworkDenoiser(both, vp, Epsilon(), clip=0.1).with_variance(x, alpha, sigma)
    torch.testing.assert_close(clipped, (denoised.clamp(-0.1, 0.1), v), rtol=0, atol=0)


def test_other_denoisers_learn_no_variance(mixture):
    x, alpha, sigma = torch.randn(3, 2, 3, dtype=torch.float64), double(0.8), double(0.5)
    plain = NetworkDenoiser(lambda x, c_noise, labels: 0.3 * x, DiscreteVP(), Epsilon())
    for denoiser in (mixture, plain):
        for bound in (denoiser, denoiser.given(torch.zeros(3))):
            before = denoiser.evaluations
            denoised, v = bound.with_variance(x, alpha, sigma)
            assert v is None and denoiser.evaluations == before + 1
            torch.testing.assert_close(denoised, denoiser(x, alpha, sigma), rtol=0, atol=0)


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
