"""The VAE's likelihood and divergence against exact answers."""

import math

import torch

from lit_gen.models.vae import discretised_logistic_log_prob, gaussian_kl

torch.manual_seed(0)
VALUES = torch.arange(256, dtype=torch.float64) / 127.5 - 1


def test_masses_of_the_256_values_sum_to_one() -> None:
    for log_scale in (-7.0, -4.0, -2.0, 0.5, 3.0):
        for mean in (-1.3, -1.0, -0.2, 0.0, 0.7, 1.0, 2.0):
            log_p = discretised_logistic_log_prob(
                VALUES, torch.full_like(VALUES, mean), torch.tensor(log_scale, dtype=torch.float64)
            )
            assert abs(log_p.exp().sum().item() - 1) < 1e-12


def test_masses_are_differences_of_the_logistic_cdf() -> None:
    mean, scale = torch.randn(256).double(), 0.3

    def cdf(x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid((x - mean) / scale)

    expected = cdf(VALUES + 1 / 255) - cdf(VALUES - 1 / 255)
    expected[0] = cdf(VALUES + 1 / 255)[0]
    expected[-1] = 1 - cdf(VALUES - 1 / 255)[-1]
    log_p = discretised_logistic_log_prob(VALUES, mean, torch.tensor(math.log(scale), dtype=torch.float64))
    torch.testing.assert_close(log_p.exp(), expected, rtol=1e-10, atol=1e-14)


def test_far_from_the_mean_the_log_mass_is_finite_in_float32() -> None:
    log_scale = torch.tensor(-7.0, requires_grad=True)
    log_p = discretised_logistic_log_prob(VALUES.float(), torch.full((256,), -1.0), log_scale)
    assert torch.isfinite(log_p).all()
    log_p.sum().backward()
    assert log_scale.grad is not None and torch.isfinite(log_scale.grad)


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
