"""Likelihoods of exact denoisers against exact densities."""

import math
from typing import Any

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
    Velocity,
)
from lit_gen.families.diffusion.likelihood import _with_trace, discretised_gaussian_log_prob
from tests.families.diffusion.exact_answers import exact_network

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
