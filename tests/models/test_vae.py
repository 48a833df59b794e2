"""The VAE's likelihood and divergence against exact answers."""

import math

import pytest
import torch

from lit_gen.data import Batch
from lit_gen.models.vae import VAE, gaussian_kl
from lit_gen.noise import Noise
from lit_gen.pixel_likelihoods import discretised_logistic_log_prob

torch.manual_seed(0)
VALUES = torch.arange(256, dtype=torch.float64) / 127.5 - 1


def test_kl_is_that_of_monte_carlo() -> None:
    mean, log_var = torch.randn(1, 5).double(), torch.randn(1, 5).double()
    q = torch.distributions.Normal(mean, (0.5 * log_var).exp())
    z = q.sample(torch.Size([400_000]))
    log_ratio = (q.log_prob(z) - torch.distributions.Normal(0, 1).log_prob(z)).sum(-1)
    error = log_ratio.std().item() / math.sqrt(len(log_ratio))
    assert abs(log_ratio.mean().item() - gaussian_kl(mean, log_var).item()) < 4 * error


def test_kl_is_zero_only_at_the_prior() -> None:
    zero = torch.zeros(3, 2).double()
    assert gaussian_kl(zero, zero).abs().max() == 0
    assert gaussian_kl(zero + 1, zero).allclose(torch.full((3,), 1.0).double())


def randomised(beta: float = 1.0) -> VAE:
    torch.manual_seed(0)
    model = VAE((1, 8, 8), latent_dim=5, beta=beta)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def test_the_likelihood_is_the_bound_that_training_minimises(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the same draw of z; the bits that training logs are those of the bound, whatever beta."""
    images = VALUES[torch.randint(256, (6, 1, 8, 8))].float()
    eps = Noise(3, range(6)).normal((5,))
    monkeypatch.setattr(torch, "randn", lambda *size, **options: eps)
    logged: dict[str, torch.Tensor] = {}
    for beta in (1.0, 4.0):
        model = randomised(beta)
        monkeypatch.setattr(model, "log_training", lambda **values: logged.update(values))
        loss = model.training_step(Batch(images, None, torch.arange(6)), 0)
        log_p = model.log_likelihood(images, Noise(3, range(6)))
        assert (log_p.shape, log_p.dtype) == ((6,), torch.float64)
        torch.testing.assert_close(logged["bits_per_dim"].double(), -log_p.mean() / (64 * math.log(2)))
        torch.testing.assert_close(loss.double(), -log_p.mean() + (beta - 1) * logged["kl"].double())
    other = model.log_likelihood(images, Noise(4, range(6)))
    assert (other - log_p).abs().min() > 1e-3, "z is of the seed"


def test_the_likelihood_is_a_lower_bound_on_that_by_importance_sampling() -> None:
    """log mean over z of p(x | z) p(z) / q(z | x) rises with the number of z towards log p(x)."""
    model = randomised()
    images = VALUES[torch.randint(256, (1, 1, 8, 8))].float()
    many = images.expand(2000, 1, 8, 8)
    bound = model.log_likelihood(many, Noise(0, range(2000)))
    with torch.no_grad():
        mean, log_var = (value.double() for value in model.encoder(images))
        q = torch.distributions.Normal(mean, (0.5 * log_var).exp())
        z = mean + (0.5 * log_var).exp() * Noise(0, range(2000)).normal((5,)).double()
        log_p = discretised_logistic_log_prob(images, model.decoder(z.float()), model.log_scale).flatten(1).sum(1)
        weights = log_p + torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1) - q.log_prob(z).sum(1)
    standard_error = float((weights - bound).std()) / math.sqrt(2000)
    assert abs(float((weights - bound).mean())) < 4 * standard_error + 1e-2, "the same bound, its KL by Monte Carlo"
    by_importance = torch.logsumexp(weights, 0) - math.log(2000)
    assert float(bound.mean()) < float(by_importance) - 0.05
