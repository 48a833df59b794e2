"""Variational autoencoders (Kingma and Welling 2014, https://arxiv.org/abs/1312.6114)."""

import math
from abc import ABC
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.core.pixels import BIN_WIDTH
from lit_gen.data.batches import Batch
from lit_gen.data.module import ImageDataModule
from lit_gen.distributions.dequantisation import bits_per_dim, dequantise
from lit_gen.distributions.pixels import Bernoulli, Categorical, DiscretisedLogistic, PixelLikelihood
from lit_gen.families.base import GenerativeModel
from lit_gen.families.capabilities import Capabilities
from lit_gen.families.optimizers import OptimizerFactory
from lit_gen.families.settings import LikelihoodMethod, Sampler, Temperature
from lit_gen.families.vae.networks import ConvDecoder, ConvEncoder
from lit_gen.families.vae.variational import (
    Autoencoder,
    Prior,
    StandardNormal,
    Terms,
    choose,
    free_bits,
    gaussian_kl,
    importance_weighted,
    kl_weight,
)

EncoderFactory = Callable[[tuple[int, int, int], int], nn.Module]
DecoderFactory = Callable[[tuple[int, int, int], int], nn.Module]
PriorFactory = Callable[[tuple[int, int, int], int], Prior]
NUM_STEPS = 8
"""Number of images in one interpolation."""


class VariationalMethod(LikelihoodMethod, ABC):
    """A lower bound on the likelihood of a VAE, estimated by draws of z from q(z | x)."""

    kind = "bound"
    dequantisation = None
    num_decodings: int


class ELBO(VariationalMethod):
    """Evidence lower bound, with the expectation over z estimated by the mean of some draws.

    Args:
        num_draws: Number of draws of z.

    Raises:
        UserError: If num_draws is below 1.
    """

    def __init__(self, num_draws: int = 1) -> None:
        self.num_draws = self.num_decodings = _positive("evaluation.likelihood_method.num_draws", num_draws)


class ImportanceWeighted(VariationalMethod):
    """IWAE_K, the bound by K importance samples (Burda et al. 2016), which rises with K to the log-likelihood.

    Args:
        num_samples: Number K of importance samples.

    Raises:
        UserError: If num_samples is below 1.
    """

    def __init__(self, num_samples: int = 100) -> None:
        self.num_samples = self.num_decodings = _positive("evaluation.likelihood_method.num_samples", num_samples)


class GaussianMixturePrior(Sampler):
    """Sampler of z from a mixture of Gaussians fitted to codes of training images, instead of the prior.

    Each of at most `max_images` evenly spaced training images gives one z ~ q(z | x). Together they represent the
    aggregate posterior. The covariances are full (Ghosh et al. 2020, https://arxiv.org/abs/1903.12436).

    Args:
        num_components: Number of Gaussians.
        temperature: Factor on the standard deviations within each Gaussian.
        max_images: Largest number of training images.

    Raises:
        UserError: If a number is not positive.
    """

    learns_from_data = True

    def __init__(self, num_components: int = 10, temperature: float = 1.0, max_images: int = 10_000) -> None:
        self.num_components = _positive("sampler.num_components", num_components)
        self.temperature = Temperature(temperature).temperature
        self.max_images = _positive("sampler.max_images", max_images)
        self._mixture: tuple[Tensor, Tensor, Tensor] | None = None

    def fit(self, codes: Tensor, device: torch.device) -> None:
        """Fit the mixture to codes (M, d), float64, and keep it on the device."""
        from sklearn.mixture import GaussianMixture  # slow to import

        fitted = GaussianMixture(self.num_components, random_state=0).fit(codes.numpy())
        weights, means, covariances = (
            torch.from_numpy(x).to(device, torch.float32 if device.type == "mps" else torch.float64)
            for x in (fitted.weights_, fitted.means_, fitted.covariances_)
        )
        self._mixture = weights, means, torch.linalg.cholesky(covariances)

    def codes(self, noise: Noise) -> Tensor:
        """Sample z (N, d)."""
        assert self._mixture is not None, "call fit first"
        weights, means, factors = self._mixture
        eps = noise.normal(means.shape[1:], means.dtype).to(means.device)
        chosen = choose(weights, noise)
        return (means[chosen] + self.temperature * (factors[chosen] @ eps[:, :, None])[:, :, 0]).float()


class VAE(GenerativeModel):
    """A VAE: q(z | x) = N(mean(x), diag(exp(log_var(x)))), a prior p(z), and p(x | z) a likelihood of pixels.

    Training minimises -log p(x | z) + beta KL(q || p) in nats per image, or with `num_importance` > 1 the negative
    importance-weighted bound (IWAE, Burda et al. 2016). A sample is the centre of p(x | z) with z ~ p(z), in one
    evaluation of the decoder: the mean, or the medians of discretised logistics. If pixels are binary or have a
    probability per value, the sample is drawn from p(x | z). A class-conditional model gives the label to encoder and
    decoder.

    Args:
        image_shape: (C, H, W) of one image; comes from the data.
        latent_dim: Dimension d of z.
        beta: Weight of the KL divergence (Higgins et al. 2017); 1 gives the bound on the likelihood.
        kl_warmup: Images over which the weight beta rises linearly from zero.
        free_bits: KL divergence per dimension of z, on the batch's mean, that is free, in nats (Kingma et al. 2016).
        num_importance: Number K of importance samples of the bound in training.
        encoder: Called with images, returns (mean, log_var), each (N, latent_dim).
        decoder: Called with z (N, latent_dim), returns the parameter maps of the likelihood, (N, P, H, W).
        likelihood: p(x | z) given the maps. Default: discretised logistics with one scale for all pixels.
        prior: p(z).
        optimizer: Optimizer of all parameters.

    Raises:
        UserError: If a number is out of range, or if free bits or classes meet a prior that does not support them.
    """

    capabilities = Capabilities(
        samplers=(Temperature, GaussianMixturePrior),
        likelihood_kind="bound",
        likelihood_methods=(VariationalMethod,),
        pictures=("reconstructions", "interpolations"),
    )

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        latent_dim: int = 32,
        beta: float = 1.0,
        kl_warmup: int = 0,
        free_bits: float = 0.0,
        num_importance: int = 1,
        encoder: EncoderFactory = ConvEncoder,
        decoder: DecoderFactory = ConvDecoder,
        likelihood: PixelLikelihood | None = None,
        prior: PriorFactory = StandardNormal,
        optimizer: OptimizerFactory = lambda p: torch.optim.Adam(p, lr=1e-3),
        **kwargs: Any,
    ) -> None:
        super().__init__(image_shape, **kwargs)
        for key, value in (("beta", beta), ("kl_warmup", kl_warmup), ("free_bits", free_bits)):
            if not 0 <= value < math.inf:
                raise UserError(f"model.{key}: {value} is not a finite number >= 0; give 0 or a positive number")
        self.latent_dim = _positive("model.latent_dim", latent_dim)
        self.beta = beta
        self.kl_warmup = kl_warmup
        self.free_bits = free_bits
        self.num_importance = _positive("model.num_importance", num_importance)
        self.optimizer = optimizer
        channels, height, width = self.image_shape
        likelihood = likelihood or DiscretisedLogistic(per_pixel=False)
        self.capabilities = replace(self.capabilities, dequantisation=likelihood.dequantisation)
        self.autoencoder = Autoencoder(
            encoder((channels + self.num_classes, height, width), latent_dim),
            decoder((likelihood.num_params(channels), height, width), latent_dim + self.num_classes),
            likelihood,
            prior(self.image_shape, latent_dim),
            self.num_classes,
        )
        self.closed_form = isinstance(self.generator.prior, StandardNormal)
        """True if KL(q || p) has a closed form, and thus a value per dimension."""
        self._check_settings()
        self.title = "VAE" if num_importance == 1 else "IWAE"
        if not self.closed_form:
            self.title += f"-{type(self.generator.prior).__name__}"

    @property
    def generator(self) -> Autoencoder:
        return self.autoencoder

    def _check_settings(self) -> None:
        if self.free_bits and (self.num_importance > 1 or not self.closed_form):
            raise UserError(
                f"model.free_bits: {self.free_bits} applies to the KL divergence per dimension, which needs "
                "model.num_importance=1 and model.prior=StandardNormal; set it to 0, or change these keys"
            )
        if self.num_classes and hasattr(self.generator.prior, "pseudo_inputs"):
            raise UserError(
                f"model.prior: the pseudo-inputs of {type(self.generator.prior).__name__} have no class; choose "
                "another prior, or set model.class_conditional to false"
            )

    def check_data(self, data: ImageDataModule) -> None:
        self.generator.likelihood.check_levels(data.name, data.num_levels)

    def initialise(self, images: Tensor) -> None:
        self.generator.prior.initialise(images)

    # --- the bounds ---

    def terms(self, images: Tensor, labels: Tensor | None, eps: Tensor) -> Terms:
        """Return the terms of the bounds, with log p(x | z) the log-mass of 8-bit images even if it is a density."""
        terms: Terms = self.generator(images, labels, eps)
        if self.capabilities.dequantisation == "none":
            return terms
        return terms._replace(log_p=terms.log_p + images[0].numel() * math.log(BIN_WIDTH))

    def kl(self, terms: Terms) -> Tensor:
        """Return KL(q || p) of each image (N,), in closed form if possible, otherwise estimated by the draws of z."""
        if self.closed_form:
            return gaussian_kl(terms.mean, terms.log_var).sum(1)
        return terms.log_ratio.mean(0)

    def log_prob(self, images: Tensor, noise: Noise, labels: Tensor | None, method: LikelihoodMethod | None) -> Tensor:
        assert isinstance(method, VariationalMethod)
        bounds = []
        for _ in range(method.num_decodings):
            points = (
                images if self.capabilities.dequantisation == "none" else dequantise(images, noise).to(images.dtype)
            )
            eps = noise.normal((self.latent_dim,)).to(self.device)
            terms = self.terms(points, labels, eps[None])
            cost = self.kl(terms) if isinstance(method, ELBO) else terms.log_ratio[0]
            bounds.append((terms.log_p[0] - cost).double())
        self.nfe = float(method.num_decodings)
        stacked = torch.stack(bounds)
        return stacked.mean(0) if isinstance(method, ELBO) else importance_weighted(stacked)

    def default_likelihood_method(self) -> LikelihoodMethod:
        return ELBO()

    # --- training ---

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images = batch.images
        if self.capabilities.dequantisation != "none":
            images = images + (torch.rand_like(images) - 0.5) * BIN_WIDTH
        eps = torch.randn(self.num_importance, len(images), self.latent_dim, device=images.device)
        terms = self.terms(images, self.conditioning(batch), eps)
        beta = kl_weight(self.images_seen, self.beta, self.kl_warmup)
        kl = self.kl(terms)
        if self.num_importance > 1:
            loss = -importance_weighted(terms.log_p - beta * terms.log_ratio).mean()
            bound = importance_weighted(terms.log_p - terms.log_ratio)
        else:
            bound = terms.log_p[0] - kl
            per_dimension = gaussian_kl(terms.mean, terms.log_var)
            cost = free_bits(per_dimension, self.free_bits) if self.free_bits else kl.mean()
            loss = beta * cost - terms.log_p.mean()
        bits = bits_per_dim(bound.detach(), images[0].numel()).mean()
        self.log_training(loss=loss.detach(), kl=kl.detach().mean(), beta=beta, bits_per_dim=bits)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        log_p = self.log_likelihood(batch.images, Noise(0, batch.index), self.conditioning(batch))
        self.log_validation(batch, bits_per_dim=bits_per_dim(log_p, batch.images[0].numel()).mean())

    @torch.no_grad()
    def diagnostics(self, noise: Noise) -> dict[str, float]:
        """Return statistics of the codes of 512 validation images, or training images without a validation split.

        active_units: number of dimensions of z whose posterior mean has a variance over the images above 0.01 (Burda et
        al.). collapsed: share of the other dimensions. kl_min, kl_median, kl_max: minimum, median and maximum over the
        dimensions of their mean KL divergence to N(0, 1).
        """
        if self._trainer is None:
            return {}
        data: ImageDataModule = self.trainer.datamodule  # type: ignore[attr-defined]
        batch = data.examples("val" if data.num_val else "train", 512)
        labels = self.conditioning(batch)
        labels = labels.to(self.device) if labels is not None else None
        mean, log_var = self.generator.encode(batch.images.to(self.device), labels)
        active = int((mean.var(0) > 0.01).sum())
        numbers = {"active_units": float(active), "collapsed": 1 - active / self.latent_dim}
        if self.closed_form:
            kl = gaussian_kl(mean, log_var).mean(0)
            numbers |= {"kl_min": float(kl.min()), "kl_median": float(kl.median()), "kl_max": float(kl.max())}
        return numbers

    # --- sampling ---

    @torch.no_grad()
    def prepare_sampler(self, sampler: Sampler | None, data: ImageDataModule) -> None:
        super().prepare_sampler(sampler, data)
        if not isinstance(sampler, GaussianMixturePrior):
            return
        batch = data.examples("train", sampler.max_images)
        if len(batch.images) < sampler.num_components:
            raise UserError(
                f"sampler.num_components: {sampler.num_components} components need as many training images, but "
                f"{data.name} has {len(batch.images)}; give a smaller number"
            )
        codes = []
        for part in torch.arange(len(batch.images)).split(256):
            labels = batch.labels[part].to(self.device) if batch.labels is not None and self.num_classes else None
            mean, log_var = self.generator.encode(batch.images[part].to(self.device), labels)
            eps = Noise(0, batch.index[part], self.device).normal(mean.shape[1:])
            codes.append((mean + torch.exp(0.5 * log_var) * eps).double().cpu())
        sampler.fit(torch.cat(codes), self.device)

    def draw(self, noise: Noise, labels: Tensor | None, sampler: Sampler | None) -> Tensor:
        if isinstance(sampler, GaussianMixturePrior):
            z = sampler.codes(noise)
        else:
            temperature = sampler.temperature if isinstance(sampler, Temperature) else 1.0
            z = self.generator.components().sample(noise, temperature)
        self.nfe = 1.0
        params, likelihood = self.generator.decode(z, labels), self.generator.likelihood
        if isinstance(likelihood, (Bernoulli, Categorical)):
            return likelihood.sample(params, noise)
        return likelihood.centre(params)

    def picture(
        self, name: str, images: Tensor, labels: Tensor | None, noise: Noise, sampler: Sampler | None = None
    ) -> Tensor:
        """Return images above the centres of p(x | z) at their mean codes, or centres between the codes of pairs."""
        z, _ = self.generator.encode(images, labels)
        if name == "reconstructions":
            return torch.stack([images, self.generator.likelihood.centre(self.generator.decode(z, labels))])
        pairs = max(1, len(z) // 2)
        first, last = z[:pairs], z[-pairs:]
        path = torch.lerp(first[:, None], last[:, None], torch.linspace(0, 1, NUM_STEPS, device=z.device)[:, None])
        labels = labels[:pairs].repeat_interleave(NUM_STEPS) if labels is not None else None
        shown = self.generator.likelihood.centre(self.generator.decode(path.flatten(0, 1), labels))
        rows: Tensor = shown.unflatten(0, (pairs, NUM_STEPS))
        return rows


def _positive(key: str, value: int) -> int:
    """Return the value; raise a UserError that names the key unless it is at least 1."""
    if value < 1:
        raise UserError(f"{key}: {value} is not positive; give at least 1")
    return value
