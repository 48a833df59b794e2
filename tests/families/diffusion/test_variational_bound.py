"""The variational bound of exact denoisers against exact masses."""

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
    EDMSchedule,
    Epsilon,
    GaussianMixtureDenoiser,
    NetworkDenoiser,
    Rectified,
    Schedule,
    UniformLogSNR,
    VariationalBound,
    variational_loss,
)
from lit_gen.families.diffusion.likelihood import _normal_kl, discretised_gaussian_log_prob
from tests.families.diffusion.exact_answers import Fixed

VALUES = torch.arange(256, dtype=torch.float64) / 127.5 - 1


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
