"""Bounds on log p(x), priors of z, and the module that combines encoder, decoder, likelihood and prior.

With z ~ q(z | x) = N(mean(x), diag(exp(log_var(x)))) and the importance weight w(z) = p(x | z) p(z) / q(z | x),

    ELBO    = E log w(z) = E log p(x | z) - KL(q(z | x) || p(z))  <=  log p(x)         Kingma and Welling 2014
    IWAE_K  = E log (1/K sum_k w(z_k)), z_1 .. z_K ~ q             rises with K to it   Burda et al. 2016

Papers: https://arxiv.org/abs/1312.6114, https://arxiv.org/abs/1509.00519
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.distributions.pixels import PixelLikelihood

Encode = Callable[[Tensor], tuple[Tensor, Tensor]]


def gaussian_kl(mean: Tensor, log_var: Tensor) -> Tensor:
    """Return KL(N(mean, exp(log_var)) || N(0, 1)) = 1/2 (mean^2 + exp(log_var) - 1 - log_var), elementwise in nats."""
    return 0.5 * (mean.square() + log_var.exp() - 1 - log_var)


def gaussian_log_prob(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """Return log N(z; mean, diag(exp(log_var))) in nats, summed over the last axis."""
    return -0.5 * ((z - mean).square() * torch.exp(-log_var) + log_var + math.log(2 * math.pi)).sum(-1)


def free_bits(kl: Tensor, threshold: float) -> Tensor:
    """Return sum_j max(threshold, mean_n kl_nj): a dimension costs at least the threshold, on the batch's mean.

    Paper: Kingma et al. 2016, https://arxiv.org/abs/1606.04934

    Args:
        kl: KL divergence of each image and dimension, (N, d), in nats.
        threshold: lambda, in nats per dimension.
    """
    return kl.mean(0).clamp(min=threshold).sum()


def kl_weight(images_seen: int, beta: float, warmup: int) -> float:
    """Return the weight of the KL divergence: beta, after a linear rise from zero over the first `warmup` images."""
    return beta * min(1.0, images_seen / warmup) if warmup else beta


def importance_weighted(log_weights: Tensor) -> Tensor:
    """Return log (1/K sum_k w_k), (N,), given log w (K, N)."""
    return log_weights.logsumexp(0) - math.log(len(log_weights))


class Components(NamedTuple):
    """A mixture of K Gaussians with diagonal covariance.

    Attributes:
        log_weights: Logarithms (K,) of the weights, which sum to one.
        mean: Means (K, d).
        log_var: Logarithms (K, d) of the variances.
    """

    log_weights: Tensor
    mean: Tensor
    log_var: Tensor

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log sum_k w_k N(z; mean_k, exp(log_var_k)): z (..., d) -> (...)."""
        return (self.log_weights + gaussian_log_prob(z[..., None, :], self.mean, self.log_var)).logsumexp(-1)

    def sample(self, noise: Noise, temperature: float = 1.0) -> Tensor:
        """Sample z (N, d), with the standard deviation within each component multiplied by the temperature."""
        eps = noise.normal(self.mean.shape[1:], self.mean.dtype).to(self.mean.device)
        chosen = choose(self.log_weights.exp(), noise)
        return self.mean[chosen] + temperature * torch.exp(0.5 * self.log_var[chosen]) * eps


def choose(weights: Tensor, noise: Noise) -> Tensor:
    """Sample an index (N,) per image with the given probabilities (K,); K = 1 uses no random number."""
    if len(weights) == 1:
        return torch.zeros(len(noise), dtype=torch.long, device=weights.device)
    u = noise.uniform((1,)).to(weights)
    return (u > weights.cumsum(0)[:-1]).sum(1)


class Prior(nn.Module, ABC):
    """p(z), a mixture of Gaussians."""

    @abstractmethod
    def components(self, encode: Encode) -> Components:
        """Return the mixture; `encode` returns mean and log-variance of q(z | x), for a prior built from posteriors."""

    def initialise(self, images: Tensor) -> None:  # noqa: B027  (most do not look at the data)
        """Set initial values from training images; does nothing by default."""


class StandardNormal(Prior):
    """N(0, I).

    Args:
        image_shape: (C, H, W) of the images; unused.
        latent_dim: Dimension d of z.
    """

    zeros: Tensor

    def __init__(self, image_shape: tuple[int, int, int], latent_dim: int) -> None:
        super().__init__()
        self.register_buffer("zeros", torch.zeros(1, latent_dim), persistent=False)

    def components(self, encode: Encode) -> Components:
        return Components(self.zeros[:, 0], self.zeros, self.zeros)


class MixtureOfGaussians(Prior):
    """A mixture of Gaussians with diagonal covariance, whose weights, means and variances are learned with the VAE.

    Args:
        image_shape: (C, H, W) of the images; unused.
        latent_dim: Dimension d of z.
        num_components: Number K of Gaussians.

    Raises:
        UserError: If num_components is below 1.
    """

    def __init__(self, image_shape: tuple[int, int, int], latent_dim: int, num_components: int = 50) -> None:
        super().__init__()
        _check_components(num_components)
        self.logits = nn.Parameter(torch.zeros(num_components))
        self.means = nn.Parameter(torch.randn(num_components, latent_dim))
        self.log_vars = nn.Parameter(torch.zeros(num_components, latent_dim))

    def components(self, encode: Encode) -> Components:
        return Components(self.logits.log_softmax(0), self.means, self.log_vars)


class VampPrior(Prior):
    """p(z) = 1/K sum_k q(z | u_k), the mean posterior of K learned pseudo-inputs u_k, initialised by training images.

    Paper: Tomczak and Welling 2018, https://arxiv.org/abs/1705.07120

    Args:
        image_shape: (C, H, W) of the images.
        latent_dim: Dimension d of z; unused.
        num_components: Number K of pseudo-inputs.

    Raises:
        UserError: If num_components is below 1.
    """

    def __init__(self, image_shape: tuple[int, int, int], latent_dim: int, num_components: int = 100) -> None:
        super().__init__()
        _check_components(num_components)
        self.pseudo_inputs = nn.Parameter(torch.randn(num_components, *image_shape))

    def components(self, encode: Encode) -> Components:
        mean, log_var = encode(self.pseudo_inputs)
        return Components(mean.new_full((len(mean),), -math.log(len(mean))), mean, log_var)

    @torch.no_grad()
    def initialise(self, images: Tensor) -> None:
        """Set the pseudo-inputs to evenly spaced images, with repetition if there are too few."""
        num = len(self.pseudo_inputs)
        self.pseudo_inputs.copy_(images[torch.arange(num) * max(1, len(images) // num) % len(images)])


def _check_components(num: int) -> None:
    if num < 1:
        raise UserError(f"model.prior.num_components: {num} is not positive; give at least 1")


class Terms(NamedTuple):
    """Terms of the bounds, for K draws of z for each of N images, in nats.

    Attributes:
        log_p: log p(x | z), (K, N).
        log_ratio: log q(z | x) - log p(z), (K, N); its expectation is the KL divergence.
        mean: Mean of q(z | x), (N, d).
        log_var: Log-variance of q(z | x), (N, d).
    """

    log_p: Tensor
    log_ratio: Tensor
    mean: Tensor
    log_var: Tensor


class Autoencoder(nn.Module):
    """Encoder, decoder, likelihood of the pixels and prior, which define q(z | x) and p(x, z) = p(x | z) p(z).

    The encoder receives the class as one-hot maps concatenated to the channels of the image, the decoder as a one-hot
    vector concatenated to z.

    Args:
        encoder: Called with images, returns (mean, log_var), each (N, d).
        decoder: Called with z, returns the parameter maps of the likelihood.
        likelihood: p(x | z) given the maps.
        prior: p(z).
        num_classes: Number of classes that the networks receive; 0 for none.
    """

    def __init__(
        self, encoder: nn.Module, decoder: nn.Module, likelihood: PixelLikelihood, prior: Prior, num_classes: int = 0
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.likelihood = likelihood
        self.prior = prior
        self.num_classes = num_classes

    def networks(self) -> list[nn.Module]:
        """Return the networks, which run in the training precision; the likelihood is computed in float32."""
        return [self.encoder, self.decoder]

    def encode(self, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance of q(z | x), each (N, d), in float32 at least."""
        if labels is not None:
            maps = functional.one_hot(labels, self.num_classes)[:, :, None, None].expand(-1, -1, *images.shape[2:])
            images = torch.cat([images, maps.to(images.dtype)], 1)
        mean, log_var = self.encoder(images)
        dtype = torch.promote_types(mean.dtype, torch.float32)
        return mean.to(dtype), log_var.to(dtype)

    def decode(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the parameter maps (N, P, H, W) of p(x | z)."""
        if labels is not None:
            z = torch.cat([z, functional.one_hot(labels, self.num_classes).to(z.dtype)], 1)
        maps: Tensor = self.decoder(z)
        return maps

    def components(self) -> Components:
        """Return the prior as a mixture."""
        return self.prior.components(self.encode)

    def forward(self, images: Tensor, labels: Tensor | None, eps: Tensor) -> Terms:
        """Return the terms of the bounds at z = mean + exp(log_var / 2) eps.

        Args:
            images: Images (N, C, H, W), dequantised for a likelihood that is a density.
            labels: Classes (N,), or None.
            eps: Standard normal numbers (K, N, d).
        """
        mean, log_var = self.encode(images, labels)
        z = mean + torch.exp(0.5 * log_var) * eps
        num = len(eps)
        params = self.decode(z.flatten(0, 1), None if labels is None else labels.repeat(num))
        log_p = self.likelihood.log_prob(images.repeat(num, 1, 1, 1), params).unflatten(0, (num, -1))
        log_ratio = gaussian_log_prob(z, mean, log_var) - self.components().log_prob(z)
        return Terms(log_p, log_ratio, mean, log_var)
