"""The VAE's objectives, bounds, sampler and pictures."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture

from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.data import Batch, Digits, ImageDataModule
from lit_gen.distributions.pixels import Bernoulli, Categorical, DiscretisedLogistic, Gaussian, LogisticMixture
from lit_gen.families.settings import LikelihoodMethod, Temperature
from lit_gen.families.vae import VAE, ConvDecoder, ConvEncoder
from lit_gen.families.vae.models import ELBO, GaussianMixturePrior, ImportanceWeighted
from lit_gen.families.vae.variational import MixtureOfGaussians, VampPrior, gaussian_kl

VALUES = torch.arange(256, dtype=torch.float64) / 127.5 - 1
IMAGES = VALUES[torch.randint(256, (6, 1, 8, 8), generator=torch.Generator().manual_seed(0))].float()
LIKELIHOODS = [DiscretisedLogistic(), Gaussian(), Gaussian(per_pixel=False), LogisticMixture(2), Categorical()]


def encoder(image_shape: tuple[int, int, int], latent_dim: int) -> ConvEncoder:
    return ConvEncoder(image_shape, latent_dim, channels=8)


def decoder(image_shape: tuple[int, int, int], latent_dim: int) -> ConvDecoder:
    return ConvDecoder(image_shape, latent_dim, channels=8)


def randomised(shape: tuple[int, int, int] = (1, 8, 8), **settings: Any) -> VAE:
    torch.manual_seed(0)
    given: dict[str, Any] = {"latent_dim": 5, "encoder": encoder, "decoder": decoder} | settings
    model = VAE(shape, **given)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def step(model: VAE, monkeypatch: pytest.MonkeyPatch, noise: torch.Tensor) -> tuple[torch.Tensor, dict[str, Any]]:
    """Return the loss at given draws of z, (K, N, d), and the logged values."""
    logged: dict[str, Any] = {}
    monkeypatch.setattr(torch, "randn", lambda *size, **options: noise)
    monkeypatch.setattr(model, "log_training", lambda **values: logged.update(values))
    loss = model.training_step(Batch(IMAGES, None, torch.arange(6)), 0)
    monkeypatch.undo()
    return loss, logged


def test_the_likelihood_is_the_bound_that_training_minimises(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the same draw of z, the bits that training logs are those of the bound for any beta; beta = 1 is the VAE."""
    eps = Noise(3, range(6)).normal((5,))
    for beta in (1.0, 4.0):
        model = randomised(beta=beta)
        loss, logged = step(model, monkeypatch, eps[None])
        log_p = model.log_likelihood(IMAGES, Noise(3, range(6)))
        assert (log_p.shape, log_p.dtype) == ((6,), torch.float64)
        torch.testing.assert_close(logged["bits_per_dim"].double(), -log_p.mean() / (64 * math.log(2)))
        torch.testing.assert_close(loss.double(), -log_p.mean() + (beta - 1) * logged["kl"].double())
    other = model.log_likelihood(IMAGES, Noise(4, range(6)))
    assert (other - log_p).abs().min() > 1e-3, "z is of the seed"


@pytest.mark.parametrize("prior", [None, MixtureOfGaussians, VampPrior])
def test_training_by_importance_is_the_bound_of_as_many_samples(prior: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = randomised(num_importance=3, **({} if prior is None else {"prior": prior}))
    noise = Noise(3, range(6))
    eps = torch.stack([noise.normal((5,)) for _ in range(3)])
    loss, logged = step(model, monkeypatch, eps)
    log_p = model.log_likelihood(IMAGES, Noise(3, range(6)), method=ImportanceWeighted(3))
    torch.testing.assert_close(loss.double(), -log_p.mean())
    torch.testing.assert_close(logged["bits_per_dim"].double(), -log_p.mean() / (64 * math.log(2)))
    assert model.nfe == 3


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=repr)
def test_bounds_of_more_samples_are_tighter_whatever_the_likelihood(likelihood: Any) -> None:
    """They are compared in expectation, over many draws for the same image."""
    model = randomised(likelihood=likelihood)
    images = IMAGES[:1].expand(256, 1, 8, 8)

    def bound(method: LikelihoodMethod | None, seed: int) -> torch.Tensor:
        return model.log_likelihood(images, Noise(seed, range(256)), method=method)

    one, mean_of_four, of_sixteen = (
        bound(method, seed) for seed, method in enumerate((None, ELBO(4), ImportanceWeighted(16)))
    )
    by_weights = bound(ImportanceWeighted(1), 3)
    error = math.sqrt(float(one.var() + by_weights.var()) / 256)
    assert abs(float((one - mean_of_four).mean())) < 4 * error, "more draws of the same expectation"
    assert abs(float((one - by_weights).mean())) < 4 * error, "the KL divergence in closed form and by draws"
    assert mean_of_four.std() < 0.7 * one.std()
    assert of_sixteen.mean() > one.mean() + 2 * error


def test_a_density_is_turned_into_the_mass_of_eight_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a Gaussian far wider than a bin, the mass is its density at the value times the width of a bin."""
    model = randomised(likelihood=Gaussian(per_pixel=False))
    model.generator.likelihood.log_scale.data.fill_(1.0)  # type: ignore[operator, union-attr]
    eps = Noise(0, range(6)).normal((5,))
    loss, _ = step(model, monkeypatch, eps[None])
    with torch.no_grad():
        mean, log_var = model.generator.encode(IMAGES)
        params = model.generator.decode(mean + torch.exp(0.5 * log_var) * eps)
        log_p = torch.distributions.Normal(params, math.e).log_prob(IMAGES).flatten(1).sum(1) - 64 * math.log(127.5)
        expected = (gaussian_kl(mean, log_var).sum(1) - log_p).mean()
    assert abs(float(loss.detach() - expected)) < 0.05
    assert model.capabilities.dequantisation == "uniform"


def test_free_bits_and_the_rise_of_beta(monkeypatch: pytest.MonkeyPatch) -> None:
    eps = torch.randn(1, 6, 5)
    plain, logged = step(randomised(beta=0.0), monkeypatch, eps)
    model = randomised(free_bits=100.0, beta=2.0)
    loss, _ = step(model, monkeypatch, eps)
    torch.testing.assert_close(loss, plain + 2 * 5 * 100.0)
    loss.backward()
    gradient = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    reference = randomised(beta=0.0)
    step(reference, monkeypatch, eps)[0].backward()
    for one, other in zip(gradient, reference.parameters(), strict=True):
        torch.testing.assert_close(one, other.grad)
    rising = randomised(beta=2.0, kl_warmup=1000)
    rising.clock.images_seen = 250
    loss, logged = step(rising, monkeypatch, eps)
    torch.testing.assert_close(loss, plain + 0.5 * logged["kl"])


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)])
def test_sizes_and_classes(shape: tuple[int, int, int]) -> None:
    model = randomised(shape, num_classes=3, class_conditional=True, likelihood=LogisticMixture(2))
    assert model.sample(Noise(0, range(4))).shape == (4, *shape)
    labels = torch.tensor([0, 1, 2, 0])
    images = VALUES[torch.randint(256, (4, *shape))].float()
    given = model.log_likelihood(images, Noise(0, range(4)), labels)
    others = model.log_likelihood(images, Noise(0, range(4)), (labels + 1) % 3)
    assert (given - others).abs().min() > 1e-4


@pytest.mark.parametrize("likelihood", [Bernoulli(), Categorical()], ids=repr)
def test_what_has_no_centre_is_drawn(likelihood: Any) -> None:
    model = randomised(likelihood=likelihood)
    images = model.sample(Noise(0, range(4)))
    levels = (images + 1) * (0.5 if isinstance(likelihood, Bernoulli) else 127.5)
    assert (levels - levels.round()).abs().max() < 1e-4
    assert torch.equal(model.sample(Noise(0, [2]))[0], images[2])


def test_pictures() -> None:
    model = randomised()
    noise = Noise(0, range(6))
    with torch.no_grad():
        reconstructions = model.picture("reconstructions", IMAGES, None, noise)
        paths = model.picture("interpolations", IMAGES, None, noise)
    assert reconstructions.shape == (2, 6, 1, 8, 8) and paths.shape == (3, 8, 1, 8, 8)
    assert torch.equal(reconstructions[0], IMAGES)
    torch.testing.assert_close(paths[:, 0], reconstructions[1, :3])
    torch.testing.assert_close(paths[:, -1], reconstructions[1, 3:])
    assert model.picture("interpolations", IMAGES[:1], None, Noise(0, [0])).shape == (1, 8, 1, 8, 8)


def test_temperature_scales_the_noise_of_the_prior() -> None:
    model = randomised()
    z = Noise(0, range(3)).normal((5,))
    with torch.no_grad():
        expected = model.generator.likelihood.centre(model.generator.decode(0.5 * z))
    torch.testing.assert_close(model.sample(Noise(0, range(3)), sampler=Temperature(0.5)), expected)


def test_the_fitted_mixture_is_that_of_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mixture is fitted to one code per image, and its draws have the moments of the mixture."""
    model, data = randomised(latent_dim=3), ImageDataModule(Digits())
    fitted: list[GaussianMixture] = []
    fit = GaussianMixture.fit

    def keep(self: GaussianMixture, x: np.ndarray) -> GaussianMixture:
        fitted.append(self)
        return fit(self, x)

    monkeypatch.setattr(GaussianMixture, "fit", keep)
    sampler = GaussianMixturePrior(num_components=3, max_images=200)
    model.prepare_sampler(sampler, data)
    mixture = fitted[0]
    z = sampler.codes(Noise(1, range(20_000))).double()
    mean = mixture.weights_ @ mixture.means_
    deviations = mixture.means_ - mean
    covariance = np.einsum("k,kij->ij", mixture.weights_, mixture.covariances_) + np.einsum(
        "k,ki,kj->ij", mixture.weights_, deviations, deviations
    )
    scale = float(z.std(0).max())
    assert np.abs(z.mean(0).numpy() - mean).max() < 4 * scale / math.sqrt(20_000)
    assert np.abs(np.cov(z.numpy().T) - covariance).max() < 0.05 * scale**2
    # the mean log-density of its draws is that of scikit-learn's own draws
    own, theirs = mixture.score(z.numpy()), mixture.score(mixture.sample(20_000)[0])
    assert abs(own - theirs) < 0.05
    assert torch.equal(sampler.codes(Noise(1, [9]))[0].double(), z[9])
    again = GaussianMixturePrior(num_components=3, max_images=200)
    model.prepare_sampler(again, data)
    assert torch.equal(again.codes(Noise(1, range(5))).double(), z[:5])
    with torch.no_grad():
        shown = model.generator.likelihood.centre(model.generator.decode(z[:5].float()))
    torch.testing.assert_close(model.sample(Noise(1, range(5)), sampler=sampler), shown)
    assert sampler.to_dict() == {
        "name": "GaussianMixturePrior", "num_components": 3, "temperature": 1.0, "max_images": 200,
    }  # fmt: skip


def test_temperature_scales_the_deviations_within_each_gaussian_of_the_mixture() -> None:
    """z_T = mean + T (z_1 - mean) of the same component: variances are multiplied by T^2, means do not move."""
    model, data = randomised(latent_dim=3), ImageDataModule(Digits())
    z = {}
    for temperature in (1.0, 0.5, 3.0):
        sampler = GaussianMixturePrior(num_components=3, temperature=temperature, max_images=200)
        model.prepare_sampler(sampler, data)
        z[temperature] = sampler.codes(Noise(1, range(50))).double()
    assert sampler._mixture is not None
    means = sampler._mixture[1]
    distances = torch.cdist(2 * z[0.5] - z[1.0], means)
    nearest = distances.argmin(1)
    assert distances.amin(1).max() < 1e-5 and len(nearest.unique()) == 3
    deviations = z[1.0] - means[nearest]
    assert deviations.square().mean() > 1e-3
    torch.testing.assert_close(z[3.0] - means[nearest], 3 * deviations, rtol=0, atol=1e-5)


def test_active_units_are_those_whose_mean_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    model = randomised()
    assert model.diagnostics(Noise(0, range(2))) == {}
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(512, 5, generator=generator) * torch.tensor([1.0, 0.5, 0.05, 0.0, 0.2])
    monkeypatch.setattr(model.generator, "encode", lambda images, labels=None: (means, torch.zeros(512, 5)))
    trainer: Any = type("Trainer", (), {"datamodule": ImageDataModule(Digits())})()
    monkeypatch.setattr(model, "_trainer", trainer)
    monkeypatch.setattr(type(model), "trainer", property(lambda self: self._trainer))
    numbers = model.diagnostics(Noise(0, range(2)))
    assert numbers["active_units"] == 3 and numbers["collapsed"] == pytest.approx(0.4)
    assert numbers["kl_min"] == 0 and numbers["kl_max"] == pytest.approx(0.5 * means[:, 0].square().mean().item())


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"beta": -1.0}, "model.beta"),
        ({"free_bits": -1.0}, "model.free_bits"),
        ({"num_importance": 0}, "model.num_importance"),
        ({"free_bits": 0.1, "num_importance": 5}, "model.free_bits"),
        ({"free_bits": 0.1, "prior": VampPrior}, "model.free_bits"),
        ({"prior": VampPrior, "num_classes": 3, "class_conditional": True}, "model.prior"),
        ({"prior": lambda shape, dim: MixtureOfGaussians(shape, dim, 0)}, "model.prior.num_components"),
    ],
)
def test_what_does_not_suit_is_said(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        VAE((1, 8, 8), **settings)


def test_bad_methods_and_samplers() -> None:
    for cls, key in (
        (ELBO, "num_draws"),
        (ImportanceWeighted, "num_samples"),
        (GaussianMixturePrior, "num_components"),
    ):
        with pytest.raises(UserError, match=key):
            cls(0)
