"""Likelihoods of exact denoisers against exact densities."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.families.diffusion import (
    Denoiser,
    DiscreteVP,
    EDMPreconditioning,
    EDMSchedule,
    Epsilon,
    GaussianMixtureDenoiser,
    Karras,
    NetworkDenoiser,
    Parameterization,
    ProbabilityFlow,
    Rectified,
    Schedule,
    Uniform,
    UniformLogSNR,
    VariationalBound,
    Velocity,
    variational_loss,
)
from lit_gen.families.diffusion.likelihood import _normal_kl, _with_trace, discretised_gaussian_log_prob
from tests.families.diffusion.exact_answers import Fixed, exact_network

ONE = torch.tensor(1.0, dtype=torch.float64)
VALUES = torch.arange(256, dtype=torch.float64) / 127.5 - 1


@pytest.fixture
def centred() -> GaussianMixtureDenoiser:
    """Return a mixture of mean 0 on the line; at the largest noise level the prior then differs only in variance."""
    means = torch.tensor([[-1.0], [0.2], [0.8]])
    return GaussianMixtureDenoiser(means, torch.tensor([0.3, 0.15, 0.25]), torch.tensor([0.3, 0.3, 0.3]))


@pytest.fixture
def plane() -> GaussianMixtureDenoiser:
    """Return a mixture of mean 0 in the plane, with components as flat as (0.1, 0.5)."""
    means = torch.tensor([[1.0, 0.5], [-1.0, 0.5], [0.0, -1.0]])
    return GaussianMixtureDenoiser(means, torch.tensor([[0.1, 0.5], [0.3, 0.2], [0.4, 0.3]]))


def level(method: ProbabilityFlow, schedule: Schedule) -> Tensor:
    return method._log_ratios(schedule)[0].exp()


# --- the density ---


def test_the_density_is_the_exact_one_on_every_schedule(centred: GaussianMixtureDenoiser, schedule: Schedule) -> None:
    x = torch.linspace(-2.0, 2.0, 41, dtype=torch.float64)[:, None]
    method = ProbabilityFlow(steps=64, divergence="exact")
    found = method.log_density(centred, schedule, x, Noise(0, range(41)))
    exact = centred.log_density(x, ONE, level(method, schedule))
    likely = exact > -4  # far out the prior differs more, see the test of the prior
    assert likely.sum() >= 32
    assert (found - exact)[likely].abs().max() < 1e-3


@pytest.mark.parametrize("solver", ["heun", "rk4", "rk45"])
def test_the_density_in_the_plane(plane: GaussianMixtureDenoiser, solver: Any) -> None:
    x = 1.5 * (Noise(0, range(200)).uniform((2,), torch.float64) * 2 - 1)
    steps = {"heun": 400, "rk4": 100}.get(solver, 1)
    method = ProbabilityFlow(steps=steps, solver=solver, divergence="exact", rtol=1e-6, atol=1e-6)
    found = method.log_density(plane, EDMSchedule(), x, Noise(0, range(200)))
    exact = plane.log_density(x, ONE, level(method, EDMSchedule()))
    likely = exact > -4.5
    assert likely.sum() > 100
    assert (found - exact)[likely].abs().max() < 1e-3


@pytest.mark.parametrize(
    ("schedule", "parameterization"),
    [
        (DiscreteVP(), Epsilon()),
        (EDMSchedule(), EDMPreconditioning(0.8)),
        (Rectified(), Velocity()),
    ],
    ids=["epsilon", "edm", "velocity"],
)
def test_the_density_through_a_network(
    centred: GaussianMixtureDenoiser, schedule: Schedule, parameterization: Parameterization
) -> None:
    denoiser = NetworkDenoiser(exact_network(centred, schedule, parameterization), schedule, parameterization)
    x = torch.linspace(-1.5, 1.2, 21, dtype=torch.float64)[:, None]
    method = ProbabilityFlow(steps=64, divergence="exact")
    found = method.log_density(denoiser, schedule, x, Noise(0, range(21)))
    assert (found - centred.log_density(x, ONE, level(method, schedule))).abs().max() < 1e-3
    assert denoiser.evaluations == 4 * 64


def test_the_density_is_that_at_the_least_noise_level_of_the_grid(centred: GaussianMixtureDenoiser) -> None:
    x = torch.linspace(-1.5, 1.2, 11, dtype=torch.float64)[:, None]
    method = ProbabilityFlow(steps=64, grid=Karras(rho=20, sigma_min=0.3), divergence="exact")
    found = method.log_density(centred, Rectified(), x, Noise(0, range(11)))
    assert (found - centred.log_density(x, ONE, torch.tensor(0.3))).abs().max() < 1e-3
    assert (found - centred.log_density(x, ONE, torch.tensor(0.002))).abs().max() > 0.1


def test_the_prior_is_what_samplers_start_from() -> None:
    """The prior is N(0, sigma_max^2) for any mean and variance of the data."""
    x = torch.linspace(-2, 2, 11, dtype=torch.float64)[:, None]
    low, high = 1.0, 5.0
    method = ProbabilityFlow(steps=64, grid=UniformLogSNR(low, high), divergence="exact")
    single = GaussianMixtureDenoiser(torch.tensor([[0.5]]), torch.tensor([0.4]))
    found = method.log_density(single, EDMSchedule(), x, Noise(0, range(11)))
    std_low, std_high = math.hypot(0.4, low), math.hypot(0.4, high)
    at_high = 0.5 + (x[:, 0] - 0.5) * std_high / std_low  # the flow of a Gaussian maps x here
    expected = torch.distributions.Normal(0.0, high).log_prob(at_high) + math.log(std_high / std_low)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_an_image_does_not_depend_on_those_beside_it(mixture: GaussianMixtureDenoiser) -> None:
    x = Noise(0, range(6)).normal((2, 3), torch.float64)
    for method in (ProbabilityFlow(steps=8), ProbabilityFlow(solver="rk45", num_probes=2, probes="gaussian")):
        batch = method.log_density(mixture, EDMSchedule(), x, Noise(5, range(6)))
        alone = method.log_density(mixture, EDMSchedule(), x[4:5], Noise(5, [4]))
        torch.testing.assert_close(batch[4:5], alone, rtol=1e-12, atol=1e-12)
        other = method.log_density(mixture, EDMSchedule(), x[4:5], Noise(6, [4]))
        assert (other - alone).abs() > 1e-3, "the probes are of the seed"


# --- the solvers ---


@pytest.mark.parametrize(("solver", "order"), [("heun", 2), ("rk4", 4)])
def test_fixed_steps_converge_with_their_order(centred: GaussianMixtureDenoiser, solver: Any, order: int) -> None:
    x = torch.tensor([[-1.2], [-0.4], [0.5], [0.9]], dtype=torch.float64)

    def log_density(steps: int, solver: Any) -> Tensor:
        method = ProbabilityFlow(steps=steps, solver=solver, grid=UniformLogSNR(0.1, 10.0), divergence="exact")
        return method.log_density(centred, EDMSchedule(), x, Noise(0, range(4)))

    exact = log_density(320, "rk4")
    coarsest = 60 if solver == "heun" else 20
    errors = [(log_density(steps, solver) - exact).norm() for steps in (coarsest, 2 * coarsest, 4 * coarsest)]
    for coarse, fine in zip(errors[:-1], errors[1:], strict=True):
        assert abs(math.log2(coarse / fine) - order) < 0.3


def test_the_adaptive_solver_keeps_to_its_tolerance(plane: GaussianMixtureDenoiser) -> None:
    x = 0.5 * Noise(0, range(20)).normal((2,), torch.float64)
    grid = UniformLogSNR(0.05, 20.0)
    exact = ProbabilityFlow(steps=320, grid=grid, divergence="exact").log_density(
        plane, EDMSchedule(), x, Noise(0, range(20))
    )
    errors, evaluations = [], []
    for tolerance in (1e-3, 1e-5, 1e-7):
        before = plane.evaluations
        method = ProbabilityFlow(solver="rk45", grid=grid, divergence="exact", rtol=tolerance, atol=tolerance)
        found = method.log_density(plane, EDMSchedule(), x, Noise(0, range(20)))
        errors.append(float((found - exact).abs().max()))
        evaluations.append(plane.evaluations - before)
    assert all(error < 300 * tolerance for error, tolerance in zip(errors, (1e-3, 1e-5, 1e-7), strict=True))
    assert errors[0] > 10 * errors[1] > 100 * errors[2]
    assert evaluations[0] < evaluations[1] < evaluations[2]


# --- the divergence ---


class Curved(Denoiser):
    """Smooth function of all pixels of an image, without symmetry."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.first = torch.randn(6, 5, generator=generator, dtype=torch.float64)
        self.second = torch.randn(5, 6, generator=generator, dtype=torch.float64)

    def denoise(self, x: Tensor, alpha: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        return ((x.flatten(1) @ self.first / (1 + sigma)).tanh() @ self.second).reshape(x.shape) * alpha


def brute_force_trace(denoiser: Denoiser, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    def of_one(image: Tensor) -> Tensor:
        return denoiser(image.reshape(1, *x.shape[1:]), alpha, sigma).flatten()

    return torch.stack([torch.autograd.functional.jacobian(of_one, image.flatten()).trace() for image in x])


def test_exact_divergence_is_the_trace_of_the_jacobian() -> None:
    x = Noise(0, range(7)).normal((2, 3), torch.float64)
    alpha, sigma = torch.tensor(0.7).double(), torch.tensor(0.6).double()
    probes = ProbabilityFlow(divergence="exact")._probes(x, Noise(0, range(7)))
    denoised, trace = _with_trace(Curved(), x, alpha, sigma, probes)
    torch.testing.assert_close(trace, brute_force_trace(Curved(), x, alpha, sigma), rtol=0, atol=1e-12)
    assert torch.equal(denoised, Curved()(x, alpha, sigma)) and not denoised.requires_grad


@pytest.mark.parametrize("probes", ["rademacher", "gaussian"])
def test_hutchinsons_estimate_is_unbiased(probes: Any) -> None:
    num = 20_000
    x = Noise(0, [3]).normal((2, 3), torch.float64)
    alpha, sigma = torch.tensor(0.7).double(), torch.tensor(0.6).double()
    exact = brute_force_trace(Curved(), x, alpha, sigma)
    stds = []
    for num_probes in (1, 4):
        many = x.expand(num, 2, 3)
        vectors = ProbabilityFlow(probes=probes, num_probes=num_probes)._probes(many, Noise(1, range(num)))
        estimates = _with_trace(Curved(), many, alpha, sigma, vectors)[1] / num_probes
        stds.append(float(estimates.std()))
        standard_error = stds[-1] / math.sqrt(num)
        assert abs(float(estimates.mean() - exact)) < 4 * standard_error
        assert standard_error < 0.04 * abs(float(exact))
    assert stds[0] / stds[1] == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize("num_probes", [1, 3])
def test_hutchinsons_log_density_is_unbiased(plane: GaussianMixtureDenoiser, num_probes: int) -> None:
    """The path of x does not depend on the probes, so the estimate is linear in those of the trace."""
    num = 4000
    x = torch.tensor([[0.6, 0.4]], dtype=torch.float64)
    exact = ProbabilityFlow(steps=8, divergence="exact").log_density(plane, EDMSchedule(), x, Noise(0, [0]))
    method = ProbabilityFlow(steps=8, num_probes=num_probes)
    estimates = method.log_density(plane, EDMSchedule(), x.expand(num, 2), Noise(0, range(num)))
    standard_error = float(estimates.std()) / math.sqrt(num)
    assert abs(float(estimates.mean() - exact)) < 4 * standard_error
    assert 0 < standard_error < 0.02


def test_rademacher_probes_are_exact_for_a_diagonal_jacobian() -> None:
    stds = torch.tensor([[0.1, 0.5, 1.2]], dtype=torch.float64)
    gaussian = GaussianMixtureDenoiser(torch.tensor([[0.3, -0.2, 0.0]]), stds)
    x = Noise(0, range(5)).normal((3,), torch.float64)

    def log_density(**options) -> Tensor:
        return ProbabilityFlow(steps=16, **options).log_density(gaussian, EDMSchedule(), x, Noise(1, range(5)))

    exact = log_density(divergence="exact")
    torch.testing.assert_close(log_density(), exact, rtol=0, atol=1e-10)
    assert (log_density(probes="gaussian") - exact).abs().max() > 0.1


# --- 8-bit images ---


def test_bits_of_a_gaussian_image_are_its_entropy() -> None:
    """For 8-bit values sampled from N(0, 0.2^2), -log P by exact masses, and by dequantisation and the flow."""
    gaussian = GaussianMixtureDenoiser(torch.zeros(1, 4), torch.tensor([0.2]))
    image = VALUES[torch.tensor([[60, 100, 127, 180]])]
    images = image.expand(400, 4)
    found = ProbabilityFlow(steps=40).log_likelihood(gaussian, EDMSchedule(), images, Noise(0, range(400)))
    exact = discretised_gaussian_log_prob(image, torch.zeros(1, 4), torch.tensor(0.2)).sum()
    # a bin is narrow: the mean over samples cancels the slope of the density, and its curvature is negligible
    assert abs(float(found.mean() - exact)) < 4 * float(found.std()) / 20 + 1e-3
    assert 0 < float(found.std()) / 20 < 3e-3


def test_a_grid_from_pure_noise_is_refused() -> None:
    with pytest.raises(UserError, match="Uniform starts at pure noise"):
        ProbabilityFlow(grid=Uniform()).check(Rectified())
    ProbabilityFlow(grid=Uniform()).check(EDMSchedule())


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"steps": 0}, "steps"),
        ({"num_probes": 0}, "num_probes"),
        ({"num_draws": 0}, "num_draws"),
        ({"solver": "euler"}, "solver"),
        ({"rtol": 0.0}, "rtol"),
    ],
)
def test_options_of_the_flow_are_checked(options: dict, named: str) -> None:
    with pytest.raises(UserError, match=named):
        ProbabilityFlow(**options)


# --- the bound ---


def test_masses_of_the_256_values_sum_to_one() -> None:
    for std in (1e-3, 0.01, 0.3, 5.0):
        for mean in (-1.3, -1.0, -0.2, 0.0, 0.7, 1.0, 3.0):
            log_p = discretised_gaussian_log_prob(VALUES, torch.full_like(VALUES, mean), torch.tensor(std).double())
            assert abs(log_p.exp().sum().item() - 1) < 1e-12


def test_masses_are_differences_of_the_normal_cdf() -> None:
    mean = torch.randn(256, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    normal = torch.distributions.Normal(mean, 0.3)
    expected = normal.cdf(VALUES + 1 / 255) - normal.cdf(VALUES - 1 / 255)
    expected[0] = normal.cdf(VALUES + 1 / 255)[0]
    expected[-1] = 1 - normal.cdf(VALUES - 1 / 255)[-1]
    log_p = discretised_gaussian_log_prob(VALUES, mean, torch.tensor(0.3, dtype=torch.float64))
    torch.testing.assert_close(log_p.exp(), expected, rtol=1e-9, atol=1e-14)


def test_far_from_the_mean_the_log_mass_and_its_gradients_are_finite_in_float32() -> None:
    std, mean = torch.tensor(0.01, requires_grad=True), torch.full((256,), -1.0, requires_grad=True)
    log_p = discretised_gaussian_log_prob(VALUES.float(), mean, std)
    exact = discretised_gaussian_log_prob(VALUES, mean.detach().double(), torch.tensor(0.01).double())
    torch.testing.assert_close(log_p.double(), exact, rtol=1e-4, atol=1e-4)
    log_p.sum().backward()
    assert std.grad is not None and torch.isfinite(std.grad)
    assert mean.grad is not None and torch.isfinite(mean.grad).all()


def test_the_divergence_of_normals_is_that_of_torch() -> None:
    values = Noise(0, [0]).normal((4, 50), torch.float64)[0]
    p = torch.distributions.Normal(values[0], values[1].exp())
    q = torch.distributions.Normal(values[2], values[3].exp())
    found = _normal_kl(p.mean, p.variance, q.mean, q.variance)
    torch.testing.assert_close(found, torch.distributions.kl_divergence(p, q), rtol=1e-12, atol=1e-12)


class Nodes(Noise):
    """Noise whose values for the images of a batch are the nodes of a quadrature rule for the normal distribution."""

    def __init__(self, num: int = 40) -> None:
        super().__init__(0, range(num))
        nodes, weights = np.polynomial.hermite_e.hermegauss(num)
        self.nodes, self.weights = torch.tensor(nodes), torch.tensor(weights / weights.sum())

    def normal(self, shape, dtype=torch.float32) -> Tensor:
        return self.nodes.reshape(-1, *[1] * len(shape)).expand(-1, *shape).to(dtype)


def expected_bound(method: VariationalBound, denoiser: Denoiser, schedule: Schedule, value: Tensor) -> float:
    """Return the bound on log P of one 8-bit value, with its exact expectation."""
    noise = Nodes()
    return float(method.log_likelihood(denoiser, schedule, value.expand(len(noise), 1), noise) @ noise.weights)


def log_mass_of_chain(schedule: DiscreteVP, variance: Any, mean: float, std: float, value: Tensor) -> float:
    """Return log P of a value under ancestral sampling, for data from N(mean, std^2).

    All steps are linear, hence Gaussian. The textbook formula is
    x_{k-1} = (x_k - beta / sqrt(1 - abar) eps) / sqrt(1 - beta) + noise.
    """
    abar = (schedule(torch.linspace(0, 1, schedule.num_timesteps + 1).double())[0] ** 2).tolist()
    m, var = 0.0, 1 - abar[-1]
    for k in range(schedule.num_timesteps, 0, -1):
        beta = 1 - abar[k] / abar[k - 1]
        gain = math.sqrt(abar[k]) * std**2 / (abar[k] * std**2 + 1 - abar[k])  # D = mean + gain (x - sqrt(abar) mean)
        if k == 1:
            small = (1 - abar[1]) / (1 - abar[2]) * (1 - abar[2] / abar[1])
            m, var = mean + gain * (m - math.sqrt(abar[1]) * mean), gain**2 * var + small
            break
        to_eps = 1 / math.sqrt(1 - abar[k])  # eps = (x - sqrt(abar) D) to_eps
        slope = (1 - beta * to_eps**2 * (1 - math.sqrt(abar[k]) * gain)) / math.sqrt(1 - beta)
        d_at_0 = mean - gain * math.sqrt(abar[k]) * mean
        m = slope * m + beta * to_eps**2 * math.sqrt(abar[k]) * d_at_0 / math.sqrt(1 - beta)
        tilde = beta * (1 - abar[k - 1]) / (1 - abar[k])
        var = slope**2 * var + (tilde if variance == "small" else beta)
    log_p = discretised_gaussian_log_prob(value[None], torch.tensor([m]).double(), torch.tensor([var**0.5]).double())
    return float(log_p[0])


@pytest.mark.parametrize("variance", ["small", "large"])
def test_the_bound_lies_below_the_log_mass_of_the_chains_samples(variance: Any) -> None:
    schedule = DiscreteVP(num_timesteps=50)
    gaussian = GaussianMixtureDenoiser(torch.tensor([[0.1]]), torch.tensor([0.4]))
    for byte in (40, 128, 200):
        bound = expected_bound(VariationalBound(variance), gaussian, schedule, VALUES[byte])
        exact = log_mass_of_chain(schedule, variance, 0.1, 0.4, VALUES[byte])
        assert 0 < exact - bound < 4


@pytest.mark.parametrize(("variance", "gap"), [("small", 0.4), ("large", 0.2)])
def test_the_bound_tends_to_the_log_mass_of_the_data(variance: Any, gap: float) -> None:
    """The gap is of first order in the step, up to the width of a bin."""
    schedule = EDMSchedule()
    gaussian = GaussianMixtureDenoiser(torch.tensor([[0.1]]), torch.tensor([0.4]))
    std = 0.02 * 0.4 / math.hypot(0.4, 0.02)  # of x_0 given x_1
    exact = discretised_gaussian_log_prob(VALUES[140:141], torch.tensor([0.1]), torch.tensor([0.4]))[0]
    gaps = []
    for steps in (64, 128, 256):
        grid = UniformLogSNR(sigma_min=0.02, sigma_max=80.0)
        method = VariationalBound(variance, steps=steps, grid=grid, decoder_std=std)
        gaps.append(float(exact) - expected_bound(method, gaussian, schedule, VALUES[140]))
    assert 0 < gaps[0] < gap
    for coarse, fine in zip(gaps[:-1], gaps[1:], strict=True):
        assert 1.9 < coarse / fine < 2.3
    assert abs(2 * gaps[2] - gaps[1]) < 0.004


def test_on_average_over_the_data_the_bound_is_above_the_entropy() -> None:
    """The loss of a model with few steps, for any variance."""
    gaussian = GaussianMixtureDenoiser(torch.tensor([[0.1]]), torch.tensor([0.3]))
    bytes_ = torch.arange(4, 256, 12)
    log_p = discretised_gaussian_log_prob(VALUES, torch.full_like(VALUES, 0.1), torch.tensor(0.3).double())
    weights = log_p[bytes_].exp() / log_p[bytes_].exp().sum()
    for method in (VariationalBound("small"), VariationalBound("large")):
        schedule = DiscreteVP(num_timesteps=20)
        bounds = torch.tensor([expected_bound(method, gaussian, schedule, VALUES[byte]) for byte in bytes_]).double()
        assert float(weights @ (log_p[bytes_] - bounds)) > 0.1


def test_a_part_of_the_terms_estimates_the_bound_without_bias(mixture: GaussianMixtureDenoiser) -> None:
    schedule, num = DiscreteVP(num_timesteps=30), 3000
    image = VALUES[torch.tensor([[[10, 250, 128], [0, 255, 90]]])]
    images = image.expand(num, 2, 3)
    before = mixture.evaluations
    whole = VariationalBound().log_likelihood(mixture, schedule, images, Noise(0, range(num)))
    assert mixture.evaluations - before == 30
    for num_terms in (1, 7):
        before = mixture.evaluations
        part = VariationalBound(num_terms=num_terms).log_likelihood(mixture, schedule, images, Noise(1, range(num)))
        assert mixture.evaluations - before == num_terms + 1
        error = math.hypot(float(part.std()), float(whole.std())) / math.sqrt(num)
        assert abs(float(part.mean() - whole.mean())) < 4 * error
        assert part.std() > 1.5 * whole.std()
    more = VariationalBound(num_terms=99).log_likelihood(mixture, schedule, images[:5], Noise(0, range(5)))
    assert torch.equal(more, whole[:5])


def test_terms_are_evenly_spaced_and_each_is_as_likely() -> None:
    noise = Noise(0, range(20_000))
    chosen = VariationalBound(num_terms=3)._chosen(10, noise)
    assert chosen.shape == (20_000, 3) and set(chosen.diff(dim=1).flatten().tolist()) == {3, 4}
    shares = torch.bincount(chosen.flatten(), minlength=10) / 20_000
    torch.testing.assert_close(shares, torch.full((10,), 0.3), rtol=0, atol=4 * math.sqrt(0.3 * 0.7 / 20_000))
    everything = VariationalBound()._chosen(10, noise)
    assert torch.equal(everything, torch.arange(10).expand(20_000, 10))


class TwoHeads(torch.nn.Module):
    """Network that depends only on x and predicts epsilon, and 2 v - 1 in further channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = torch.nn.Linear(channels, 2 * channels, dtype=torch.float64)

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        return self.mix(x.movedim(1, -1)).tanh().movedim(-1, 1)


def test_the_learned_variance_gives_the_bound_that_training_minimises() -> None:
    """Term by term, the bound with one sample of eps is the sum of the training losses of all steps."""
    torch.manual_seed(0)
    schedule = DiscreteVP(num_timesteps=60)
    denoiser = NetworkDenoiser(TwoHeads(2), schedule, Epsilon(60))
    images = VALUES[torch.randint(256, (5, 2, 3))]
    terms = VariationalBound("learned").terms(denoiser, schedule, images, Fixed(0.7, 5))
    eps = torch.full_like(images, 0.7)
    with torch.no_grad():
        bits = [
            variational_loss(denoiser, images, torch.full((5,), k / 60, dtype=torch.float64), eps) for k in range(1, 61)
        ]
    nats = torch.stack(bits) / 60 * math.log(2) * 6
    torch.testing.assert_close(terms["decoder"], nats[0], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(terms["transitions"], nats[1:].sum(0), rtol=1e-10, atol=1e-10)
    alpha, sigma = schedule(1.0)
    prior = torch.distributions.kl_divergence(
        torch.distributions.Normal(alpha * images, sigma), torch.distributions.Normal(0.0, sigma)
    )
    torch.testing.assert_close(terms["prior"], prior.flatten(1).sum(1), rtol=1e-10, atol=1e-12)


def test_a_learned_variance_needs_a_model_that_has_one(mixture: GaussianMixtureDenoiser) -> None:
    images = torch.zeros(1, 2, 3)
    with pytest.raises(UserError, match="no learned variance"):
        VariationalBound("learned").log_likelihood(mixture, DiscreteVP(num_timesteps=5), images, Noise(0, [0]))


def test_the_bound_of_an_image_does_not_depend_on_those_beside_it(mixture: GaussianMixtureDenoiser) -> None:
    images = VALUES[torch.randint(256, (4, 2, 3), generator=torch.Generator().manual_seed(0))]
    for num_terms in (None, 3):
        method = VariationalBound(steps=9, num_terms=num_terms)
        batch = method.log_likelihood(mixture, Rectified(), images, Noise(2, range(4)))
        alone = method.log_likelihood(mixture, Rectified(), images[3:], Noise(2, [3]))
        torch.testing.assert_close(batch[3:], alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "named"), [({"steps": 1}, "steps"), ({"num_terms": 0}, "num_terms"), ({"variance": "huge"}, "variance")]
)
def test_options_of_the_bound_are_checked(options: dict, named: str) -> None:
    with pytest.raises(UserError, match=named):
        VariationalBound(**options)


@pytest.mark.parametrize("decoder_std", [0.0, -1.0, math.inf, math.nan])
def test_the_width_of_the_decoder_is_above_0(decoder_std: float) -> None:
    with pytest.raises(UserError, match=rf"^evaluation\.likelihood_method\.decoder_std: {decoder_std} is not .* 0"):
        VariationalBound(decoder_std=decoder_std)
