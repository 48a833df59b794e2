"""Exact denoisers of mixtures, compared with quadrature, and scores with autograd."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from lit_gen.core.noise import Noise
from lit_gen.data import Checkerboard, PointSource, TwoMoons
from lit_gen.distributions import UniformMixture
from lit_gen.families.diffusion import GaussianMixtureDenoiser

LOW = torch.tensor([[-0.8], [0.1], [0.3]], dtype=torch.float64)
HIGH = torch.tensor([[-0.3], [0.9], [0.4]], dtype=torch.float64)
WEIGHTS = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
BOXES = UniformMixture(LOW, HIGH, WEIGHTS)


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def quadrature(x: Tensor, alpha: float, sigma: float) -> tuple[Tensor, Tensor]:
    """Return log p(x_t) and E[x_0 | x_t] of boxes on the line at x (N,), by Gauss-Legendre in 2000 pieces per box."""
    nodes, weights = (torch.from_numpy(value) / 2 for value in np.polynomial.legendre.leggauss(8))
    parts, masses = [], []
    for low, high, weight in zip(LOW[:, 0], HIGH[:, 0], WEIGHTS / WEIGHTS.sum(), strict=True):
        borders = torch.linspace(float(low), float(high), 2001, dtype=torch.float64)
        parts.append((borders[:-1, None] + (nodes + 0.5) * (high - low) / 2000).flatten())
        masses.append((weight * weights / 2000).expand(2000, -1).flatten())
    x_0, log_mass = torch.cat(parts), torch.cat(masses).log()
    log_joint = log_mass - 0.5 * ((x[:, None] - alpha * x_0) / sigma) ** 2 - math.log(sigma * math.sqrt(2 * math.pi))
    return log_joint.logsumexp(1), (log_joint.softmax(1) * x_0).sum(1)


@pytest.mark.parametrize(
    ("alpha", "sigma"),
    [(1, 0.01), (1, 0.1), (0.6, 0.8), (1, 5.0), (1, 80.0), (1, 300.0), (1, 1e5), (1e-3, 1.0), (0.0, 1.0)],
)
def test_against_quadrature(alpha: float, sigma: float) -> None:
    x = torch.linspace(-1.5, 1.5, 25, dtype=torch.float64) * max(1, 2 * sigma)
    log_density, mean = quadrature(x, alpha, sigma)
    exact = BOXES.posterior_mean(x[:, None], number(alpha), number(sigma))[:, 0]
    torch.testing.assert_close(exact, mean, rtol=0, atol=1e-8)
    torch.testing.assert_close(
        BOXES.log_density(x[:, None], number(alpha), number(sigma)), log_density, rtol=1e-9, atol=1e-9
    )


def test_far_from_all_boxes_the_nearest_border_is_meant() -> None:
    """The tail of a truncated normal is nearly exponential: its mean is sigma^2 / distance inside the box."""
    x = torch.tensor([[-2.0], [2.0]], dtype=torch.float64)
    distance = torch.tensor([1.2, 1.1], dtype=torch.float64)
    inside = torch.tensor([-0.8, 0.9], dtype=torch.float64) + torch.tensor([1.0, -1.0]) * 0.002**2 / distance
    torch.testing.assert_close(BOXES.posterior_mean(x, number(1), number(0.002))[:, 0], inside, rtol=0, atol=1e-10)


def test_without_noise_it_is_the_density_of_the_data() -> None:
    x = torch.tensor([[-0.8], [-0.5], [0.0], [0.1], [0.35], [2.0]], dtype=torch.float64)
    expected = torch.tensor([2, 2, 0, 2.5, 2.5 + 5, 0], dtype=torch.float64) / 3.5
    torch.testing.assert_close(BOXES.log_density(x, number(1), number(0)).exp(), expected)


def test_dimensions_are_independent_within_a_box() -> None:
    square = UniformMixture(torch.tensor([[-0.5, 0.2]]), torch.tensor([[0.1, 0.6]]))
    sides = [UniformMixture(square.low[:, k, None], square.high[:, k, None]) for k in (0, 1)]
    x = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    alpha, sigma = number(0.7), torch.linspace(0.1, 2, 6, dtype=torch.float64)
    expected = sum(side.log_density(x[:, k, None], alpha, sigma) for k, side in enumerate(sides))
    torch.testing.assert_close(square.log_density(x, alpha, sigma), expected)
    means = torch.cat([side.posterior_mean(x[:, k, None], alpha, sigma) for k, side in enumerate(sides)], 1)
    torch.testing.assert_close(square.posterior_mean(x, alpha, sigma), means)
    assert square.posterior_mean(x.reshape(6, 2, 1, 1), alpha, sigma).shape == (6, 2, 1, 1)


@pytest.mark.parametrize("source", [Checkerboard(), TwoMoons()], ids=lambda source: source.name)
@pytest.mark.parametrize(("alpha", "sigma"), [(1.0, 0.05), (0.8, 0.3), (0.5, 0.5), (1.0, 20.0)])
def test_the_score_is_that_of_the_denoiser(source: PointSource, alpha: float, sigma: float) -> None:
    noise = Noise(0, range(40))
    x = alpha * source.exact.draw(noise)[0] + sigma * noise.normal((2,), torch.float64)
    x.requires_grad_()
    (score,) = torch.autograd.grad(source.exact.log_density(x, number(alpha), number(sigma)).sum(), x)
    of_denoiser = (alpha * source.exact.posterior_mean(x, number(alpha), number(sigma)) - x) / sigma**2
    torch.testing.assert_close(score, of_denoiser.detach(), rtol=1e-9, atol=1e-9 / sigma**2)


def test_draws_are_of_the_mixture() -> None:
    """Samples of each box are uniform, and samples of each Gaussian are normal."""
    x, component = BOXES.draw(Noise(0, range(5000)))
    assert stats.chisquare(torch.bincount(component).numpy(), (5000 * WEIGHTS / 3.5).numpy()).pvalue > 1e-3
    for k in range(3):
        inside = (x[component == k, 0] - LOW[k]) / (HIGH[k] - LOW[k])
        assert stats.kstest(inside.numpy(), "uniform").pvalue > 1e-3
    stds = torch.tensor([[0.5, 2.0], [1.0, 0.1]])
    normal = GaussianMixtureDenoiser(torch.tensor([[3.0, 0.0], [-1.0, 5.0]]), stds, torch.tensor([0.3, 0.7]))
    x, component = normal.draw(Noise(0, range(5000)))
    assert stats.chisquare(torch.bincount(component).numpy(), [1500, 3500]).pvalue > 1e-3
    z = (x - normal.means[component]) / stds[component]
    for k in (0, 1):
        for dim in (0, 1):
            assert stats.kstest(z[component == k, dim].numpy(), "norm").pvalue > 1e-3
