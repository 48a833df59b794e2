"""Variational autoencoder (Kingma and Welling 2013, https://arxiv.org/abs/1312.6114)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lit_gen.data import Batch
from lit_gen.dequantisation import bits_per_dim
from lit_gen.methods import LikelihoodMethod, Sampler
from lit_gen.models.base import GenerativeModel, OptimizerFactory
from lit_gen.networks.vae import ConvDecoder, ConvEncoder
from lit_gen.noise import Noise
from lit_gen.pixel_likelihoods import discretised_logistic_log_prob

EncoderFactory = Callable[[tuple[int, int, int], int], nn.Module]
DecoderFactory = Callable[[tuple[int, int, int], int], nn.Module]


class VAE(GenerativeModel):
    """A convolutional VAE with a discretised logistic likelihood, so its bound is in bits of the 8-bit image.

    q(z | x) = N(mean(x), exp(log_var(x))); p(z) = N(0, I); p(x | z) gives each 8-bit value the mass that a logistic of
    mean decoder(z) and one learned scale puts on its bin. Training minimises -log p(x | z) + beta KL(q || p) in nats
    per image. Images are drawn as the mean of p(x | z), z ~ p(z), in one evaluation of the decoder.

    Args:
        image_shape: (C, H, W) of one image; comes from the data.
        num_classes: Number of classes of the data; comes from the data.
        latent_dim: Dimension of z.
        beta: Weight of the KL divergence; 1 gives the bound on the likelihood.
        encoder: Called with images, gives (mean, log_var), each (N, latent_dim).
        decoder: Called with z (N, latent_dim), gives images.
        optimizer: Optimizer of all parameters.
        warmup: Images over which the learning rate rises linearly from zero.
        compile: Compile the decoder with torch.compile.
    """

    likelihood_kind = "bound"

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int = 0,
        latent_dim: int = 32,
        beta: float = 1.0,
        encoder: EncoderFactory = ConvEncoder,
        decoder: DecoderFactory = ConvDecoder,
        optimizer: OptimizerFactory = lambda p: torch.optim.Adam(p, lr=1e-3),
        warmup: int = 0,
        compile: bool = False,
    ) -> None:
        super().__init__(image_shape, num_classes, warmup=warmup, compile=compile)
        self.latent_dim = latent_dim
        self.beta = beta
        self.encoder = encoder(self.image_shape, latent_dim)
        self.decoder = decoder(self.image_shape, latent_dim)
        self.log_scale = nn.Parameter(torch.tensor(-2.0))
        self.optimizer = optimizer

    @property
    def generator(self) -> nn.Module:
        return self.decoder

    def configure_optimizers(self) -> Any:
        return self.warmup_schedule(self.optimizer(self.parameters()))

    def bound(self, images: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """The two terms of the bound = reconstruction - KL at z = mean + std eps, each (N,), in nats per image."""
        mean, log_var = self.encoder(images)
        z = mean + torch.exp(0.5 * log_var) * eps
        log_p = discretised_logistic_log_prob(images, self.decoder(z), self.log_scale)
        return log_p.flatten(1).sum(1), gaussian_kl(mean, log_var)

    def log_prob(self, images: Tensor, noise: Noise, labels: Tensor | None, method: LikelihoodMethod | None) -> Tensor:
        eps = noise.normal((self.latent_dim,)).to(self.device)
        reconstruction, kl = self.bound(images, eps)
        self.nfe = 1.0
        return reconstruction - kl

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        eps = torch.randn(len(batch.images), self.latent_dim, device=batch.images.device)
        reconstruction, kl = self.bound(batch.images, eps)
        loss = (self.beta * kl - reconstruction).mean()
        bits = bits_per_dim(reconstruction.detach() - kl.detach(), batch.images[0].numel())
        self.log_training(loss=loss.detach(), kl=kl.detach().mean(), bits_per_dim=bits.mean())
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        bits = bits_per_dim(self.log_likelihood(batch.images, Noise(0, batch.index)), batch.images[0].numel())
        self.log_validation(batch, bits_per_dim=bits.mean())

    def draw(self, noise: Noise, labels: Tensor | None, sampler: Sampler | None) -> Tensor:
        z = noise.normal((self.latent_dim,)).to(self.device)
        self.nfe = 1.0
        return self.decoder(z)


def gaussian_kl(mean: Tensor, log_var: Tensor) -> Tensor:
    """KL(N(mean, exp(log_var)) || N(0, I)) = 1/2 sum(mean^2 + exp(log_var) - 1 - log_var), (N, d) to (N,) nats."""
    return 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum(1)
