"""The bounds of a VAE against a linear-Gaussian model, whose likelihood and posterior are known."""

import math

import pytest
import torch
from scipy.special import logsumexp
from torch import Tensor, nn

from lit_gen.core.noise import Noise
from lit_gen.distributions.pixels import PixelLikelihood
from lit_gen.families.vae.variational import (
    Autoencoder,
    MixtureOfGaussians,
    Prior,
    StandardNormal,
    VampPrior,
    free_bits,
    gaussian_kl,
    gaussian_log_prob,
    importance_weighted,
    kl_weight,
)

LATENT, PIXELS = 2, 6
SHAPE = (1, 2, 3)


class FixedGaussian(PixelLikelihood):
    """N(params, s^2)."""

    def __init__(self, s: float) -> None:
        super().__init__()
        self.s = s

    def num_params(self, channels: int) -> int:
        return channels

    def log_prob(self, images: Tensor, params: Tensor) -> Tensor:
        return torch.distributions.Normal(params, self.s).log_prob(images).flatten(1).sum(1)

    def mean(self, params: Tensor) -> Tensor:
        return params

    def sample(self, params: Tensor, noise: Noise, temperature: float = 1.0) -> Tensor:
        raise NotImplementedError


class LinearEncoder(nn.Module):
    """mean = A (x - b), log_var the same for all images."""

    def __init__(self, matrix: Tensor, offset: Tensor, log_var: Tensor) -> None:
        super().__init__()
        self.matrix, self.offset, self.log_var = (nn.Parameter(x.clone()) for x in (matrix, offset, log_var))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = (x.flatten(1) - self.offset) @ self.matrix.T
        return mean, self.log_var.expand_as(mean)


class LinearDecoder(nn.Module):
    """W z + b."""

    def __init__(self, matrix: Tensor, offset: Tensor) -> None:
        super().__init__()
        self.matrix, self.offset = nn.Parameter(matrix), nn.Parameter(offset)

    def forward(self, z: Tensor) -> Tensor:
        return (z @ self.matrix.T + self.offset).unflatten(1, SHAPE)


def linear_gaussian(distortion: float = 0.0, prior: Prior | None = None) -> tuple[Autoencoder, Tensor, Tensor]:
    """Return the model, images of it, and their exact log-likelihood N(b, W W^T + s^2 I).

    The columns of W are orthogonal, so that the exact posterior has a diagonal covariance, (I + W^T W / s^2)^-1; the
    encoder's mean and log-variance are that, plus a distortion.
    """
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    s = 0.6
    matrix = torch.linalg.qr(normal(PIXELS, LATENT))[0] * torch.tensor([1.5, 0.7], dtype=torch.float64)
    offset = normal(PIXELS)
    variance = 1 / (1 + matrix.square().sum(0) / s**2)
    encoding = variance[:, None] * matrix.T / s**2
    encoder = LinearEncoder(
        encoding + distortion * normal(LATENT, PIXELS), offset, variance.log() + distortion * normal(LATENT)
    )
    model = Autoencoder(
        encoder, LinearDecoder(matrix, offset), FixedGaussian(s), prior or StandardNormal(SHAPE, LATENT)
    ).double()
    images = (normal(8, LATENT) @ matrix.T + offset + s * normal(8, PIXELS)).unflatten(1, SHAPE)
    covariance = matrix @ matrix.T + s**2 * torch.eye(PIXELS, dtype=torch.float64)
    exact = torch.distributions.MultivariateNormal(offset, covariance).log_prob(images.flatten(1))
    return model, images, exact


def test_kl_is_that_of_monte_carlo() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, log_var = torch.randn(2, 1, 5, generator=generator).double()
    z = mean + (0.5 * log_var).exp() * torch.randn(400_000, 5, generator=generator).double()
    log_ratio = gaussian_log_prob(z, mean, log_var) - torch.distributions.Normal(0, 1).log_prob(z).sum(-1)
    error = log_ratio.std().item() / math.sqrt(len(log_ratio))
    assert abs(log_ratio.mean().item() - gaussian_kl(mean, log_var).sum().item()) < 4 * error


def test_kl_is_zero_only_at_the_prior() -> None:
    zero = torch.zeros(3, 2).double()
    assert gaussian_kl(zero, zero).abs().max() == 0
    assert gaussian_kl(zero + 1, zero).sum(1).allclose(torch.full((3,), 1.0).double())


def test_with_the_exact_posterior_every_weight_is_the_likelihood() -> None:
    """ELBO = IWAE = log p(x) for each image and each draw of z."""
    model, images, exact = linear_gaussian()
    terms = model(images, None, torch.randn(7, 8, LATENT, dtype=torch.float64))
    torch.testing.assert_close(terms.log_p - terms.log_ratio, exact.expand(7, 8), rtol=1e-12, atol=1e-12)


def test_bounds_rise_with_samples_to_the_likelihood() -> None:
    """The ELBO is below it by KL(q || posterior)."""
    model, images, exact = linear_gaussian(distortion=0.1)
    repeats = 1000
    with torch.no_grad():
        eps = torch.randn(50, repeats * 8, LATENT, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        terms = model(images.repeat(repeats, 1, 1, 1), None, eps)
    log_w = terms.log_p - terms.log_ratio
    elbo, five, fifty = (float(importance_weighted(log_w[:k]).mean()) for k in (1, 5, 50))
    of_all = float(exact.mean())
    assert elbo < five - 0.05 < fifty - 0.06 and of_all - (of_all - elbo) / 10 < fifty < of_all + 0.003
    with torch.no_grad():
        mean, log_var = model.encode(images)
        posterior, _, _ = linear_gaussian()
        true_mean, true_log_var = posterior.encode(images)
    q = torch.distributions.Normal(mean, (0.5 * log_var).exp())
    gap = torch.distributions.kl_divergence(q, torch.distributions.Normal(true_mean, (0.5 * true_log_var).exp())).sum(1)
    by_all = log_w.view(50, repeats, 8).mean((0, 1))
    error = log_w.view(-1, 8).std(0) / math.sqrt(50 * repeats)
    assert ((by_all - (exact - gap)).abs() < 4.5 * error).all()
    closed_form = terms.log_p.view(50, repeats, 8).mean((0, 1)) - gaussian_kl(mean, log_var).sum(1)
    assert ((closed_form - (exact - gap)).abs() < 0.02).all()


def test_the_bound_of_one_sample_is_the_mean_log_weight_and_of_many_their_log_mean() -> None:
    log_w = torch.randn(4, 3).double()
    torch.testing.assert_close(importance_weighted(log_w[:1]), log_w[0])
    torch.testing.assert_close(importance_weighted(log_w).exp(), log_w.exp().mean(0))


def test_the_gradient_through_z_is_that_of_finite_differences() -> None:
    """Finite differences at fixed noise, for every parameter of the encoder."""
    model, images, _ = linear_gaussian(distortion=0.2)
    eps = torch.randn(5, 8, LATENT, dtype=torch.float64)

    def bound() -> Tensor:
        terms = model(images, None, eps)
        return importance_weighted(terms.log_p - terms.log_ratio).mean()

    parameters = list(model.encoder.parameters())
    gradients = torch.autograd.grad(bound(), parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        flat = parameter.data.view(-1)
        for i in range(len(flat)):
            values = []
            for step in (1e-5, -1e-5):
                flat[i] += step
                values.append(bound().item())
                flat[i] -= step
            difference = (values[0] - values[1]) / 2e-5
            assert abs(difference - gradient.view(-1)[i].item()) < 1e-6


def test_the_reparameterised_gradient_is_that_of_the_expectation() -> None:
    """d/d mean and d/d log_var of E_q z^2 = mean^2 + exp(log_var): 2 mean and exp(log_var)."""
    mean, log_var = torch.tensor(0.7).double().requires_grad_(), torch.tensor(-0.4).double().requires_grad_()
    eps = torch.randn(400_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    z = mean + torch.exp(0.5 * log_var) * eps
    by_mean, by_log_var = torch.autograd.grad(z.square().mean(), [mean, log_var])
    assert abs(by_mean.item() - 1.4) < 0.01 and abs(by_log_var.item() - math.exp(-0.4)) < 0.01


def test_free_bits_cost_nothing_below_the_threshold() -> None:
    """The threshold applies to the mean over the batch: one image may be above it while the mean is below."""
    kl = torch.tensor([[0.1, 0.9], [0.3, 0.5]], dtype=torch.float64, requires_grad=True)
    cost = free_bits(kl, 0.25)
    (gradient,) = torch.autograd.grad(cost, kl)
    assert cost.item() == pytest.approx(0.25 + 0.7)
    assert torch.equal(gradient, torch.tensor([[0.0, 0.5], [0.0, 0.5]], dtype=torch.float64))
    assert free_bits(kl, 0.0).item() == pytest.approx(kl.sum(1).mean().item())


def test_the_weight_rises_linearly_and_stays() -> None:
    assert [kl_weight(seen, 4.0, 1000) for seen in (0, 250, 1000, 5000)] == [0.0, 1.0, 4.0, 4.0]
    assert kl_weight(0, 0.5, 0) == 0.5


@pytest.mark.parametrize("kind", [StandardNormal, MixtureOfGaussians, VampPrior])
def test_density_of_a_prior_is_that_of_the_mixture_by_brute_force(kind: type[Prior]) -> None:
    torch.manual_seed(0)
    prior = kind(SHAPE, LATENT) if kind is StandardNormal else kind(SHAPE, LATENT, 4)  # type: ignore[call-arg]
    model, images, _ = linear_gaussian(distortion=0.2, prior=prior)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.copy_(torch.randn_like(parameter))
        z = torch.randn(5, LATENT, dtype=torch.float64)
        components = model.components()
        if isinstance(prior, VampPrior):
            mean, log_var = model.encoder(prior.pseudo_inputs)
            weights = torch.full((4,), 0.25).double()
        elif isinstance(prior, MixtureOfGaussians):
            mean, log_var, weights = prior.means, prior.log_vars, prior.logits.exp() / prior.logits.exp().sum()
        else:
            mean, log_var, weights = torch.zeros(1, 2), torch.zeros(1, 2), torch.ones(1)
        densities = [
            [
                math.log(weights[k]) + torch.distributions.Normal(mean[k], (0.5 * log_var[k]).exp()).log_prob(x).sum()
                for k in range(len(weights))
            ]
            for x in z
        ]
        torch.testing.assert_close(components.log_prob(z), torch.tensor(logsumexp(densities, axis=1)))
        terms = model(images, None, torch.randn(3, 8, LATENT, dtype=torch.float64))
        q = gaussian_log_prob(z[:1], terms.mean[:1], terms.log_var[:1])
        assert q.shape == (1,) and terms.log_ratio.shape == (3, 8)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_draws_of_a_prior_have_the_moments_of_the_mixture(temperature: float) -> None:
    torch.manual_seed(0)
    prior = MixtureOfGaussians(SHAPE, LATENT, 3).double()
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.copy_(torch.randn_like(parameter))
        components = prior.components(lambda x: (x, x))
        z = components.sample(Noise(0, range(40_000)), temperature)
        weights = components.log_weights.exp()[:, None]
        mean = (weights * prior.means).sum(0)
        second = (weights * (prior.means.square() + temperature**2 * prior.log_vars.exp())).sum(0)
        assert (z.mean(0) - mean).abs().max() < 4 * z.std(0).max() / 200
        assert (z.var(0) / (second - mean.square()) - 1).abs().max() < 0.05
        assert torch.equal(components.sample(Noise(0, [7]), temperature)[0], z[7])


def test_pseudo_inputs_begin_as_evenly_spaced_images() -> None:
    images = torch.arange(10.0).view(10, 1, 1, 1).expand(10, *SHAPE)
    for num, expected in ((5, [0, 2, 4, 6, 8]), (12, [*range(10), 0, 1])):
        prior = VampPrior(SHAPE, LATENT, num)
        prior.initialise(images)
        assert prior.pseudo_inputs[:, 0, 0, 0].tolist() == expected


def test_classes_are_given_to_both_networks() -> None:
    seen: dict[str, Tensor] = {}

    class Record(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
            seen[self.name] = x
            return (x.flatten(1)[:, :2], x.flatten(1)[:, 2:4]) if x.ndim == 4 else x[:, :2]

    model = Autoencoder(Record("encoder"), Record("decoder"), FixedGaussian(1.0), StandardNormal(SHAPE, 2), 3)
    images, labels = torch.randn(2, *SHAPE), torch.tensor([2, 0])
    mean, _ = model.encode(images, labels)
    model.decode(mean, labels)
    assert torch.equal(seen["encoder"][:, 1:, 0, 0], torch.eye(3)[labels])
    assert torch.equal(seen["decoder"], torch.cat([mean, torch.eye(3)[labels]], 1))
