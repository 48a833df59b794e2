r"""KL autoencoder: the first stage of latent diffusion models (Rombach et al. 2022, https://arxiv.org/abs/2112.10752).

The encoder returns a normal distribution for each channel and position of a grid of latents. With D values per image,

    z = m(x) + s(x) eps,    loss = |x - decoder(z)|^2 / D + w KL(N(m(x), s(x)^2) || N(0, 1)) / D

A small weight w keeps the latents near the origin and lets them hold almost all of an image. A second stage is trained
on the means m(x).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.data.batches import Batch
from lit_gen.families.autoencoder import ImageAutoencoder
from lit_gen.families.optimizers import OptimizerFactory
from lit_gen.families.settings import Sampler
from lit_gen.families.vae.variational import gaussian_kl
from lit_gen.families.vq.networks.autoencoder import AutoencoderNetwork, ConvAutoencoder
from lit_gen.metrics.reconstruction import psnr, ssim

NetworkFactory = Callable[[tuple[int, int, int], int], AutoencoderNetwork]
MOST_LOG_VAR = 20.0
"""Bound of the log-variance on both sides, so that its exponential stays finite."""


class GaussianConvAutoencoder(ConvAutoencoder):
    """Convolutional encoder of images to means and log-variances (N, 2 c, h, w), and decoder of latents (N, c, h, w).

    Its arguments are those of `ConvAutoencoder`.
    """

    NUM_ENCODED = 2


class GaussianAutoencoder(nn.Module):
    """Images -> distribution of latents -> images.

    Args:
        network: Encoder of images to means and log-variances (N, 2 c, h, w), and decoder of latents (N, c, h, w).
    """

    def __init__(self, network: AutoencoderNetwork) -> None:
        super().__init__()
        self.network = network

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance of the latents, each (N, c, h, w), in float32 at least."""
        moments: Tensor = self.network.encoder(images)
        mean, log_var = moments.to(torch.promote_types(moments.dtype, torch.float32)).chunk(2, 1)
        return mean, log_var.clamp(-MOST_LOG_VAR, MOST_LOG_VAR)

    def decode(self, latents: Tensor) -> Tensor:
        """Return the images (N, C, H, W) of latents."""
        images: Tensor = self.network.decoder(latents)
        return images

    def forward(self, images: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """Return the reconstructions from latents drawn with noise eps (N, c, h, w), and the KL divergence (N,)."""
        mean, log_var = self.encode(images)
        z = mean + torch.exp(0.5 * log_var) * eps
        return self.decode(z.to(images.dtype)), gaussian_kl(mean, log_var).flatten(1).sum(1)


class KLAutoencoder(ImageAutoencoder):
    """An autoencoder with normal latents on a grid, with the equations at the top of this module.

    A sample decodes standard normal latents. The KL divergence is too weak to make them likely, so samples are poor: a
    second stage, such as EDM with `first_stage.run`, learns the distribution of the latents.

    Args:
        image_shape: (C, H, W) of one image; comes from the data.
        num_classes: Number of classes of the data; comes from the data.
        latent_dim: Number c of channels of the latents.
        kl_weight: Weight w of the KL divergence.
        network: Encoder and decoder, called with the shape of the images and the number of channels of the latents.
        optimizer: Optimizer of all parameters.
        warmup: Images over which the learning rate rises linearly from zero.
        compile: Compile the autoencoder with torch.compile.

    Raises:
        UserError: If latent_dim is below 1, or the weight is negative.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        num_classes: int = 0,
        latent_dim: int = 4,
        kl_weight: float = 1e-6,
        network: NetworkFactory = GaussianConvAutoencoder,
        optimizer: OptimizerFactory = lambda p: torch.optim.Adam(p, lr=1e-3),
        warmup: int = 0,
        compile: bool = False,
    ) -> None:
        super().__init__(image_shape, num_classes, warmup=warmup, compile=compile)
        if latent_dim < 1:
            raise UserError(f"model.latent_dim: {latent_dim} is not positive; give at least 1")
        if not 0 <= kl_weight < math.inf:
            raise UserError(f"model.kl_weight: {kl_weight} is not a weight; give 0 or a positive number")
        self.latent_dim = latent_dim
        self.kl_weight = kl_weight
        self.autoencoder = GaussianAutoencoder(network(self.image_shape, latent_dim))
        self.optimizer = optimizer

    @property
    def generator(self) -> nn.Module:
        return self.autoencoder

    # --- interface for a second stage ---

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape (c, h, w) of the latents."""
        return (self.latent_dim, *self.autoencoder.network.size)

    def latents(self, images: Tensor) -> Tensor:
        """Return the means (N, c, h, w) of the latents of images."""
        return self.autoencoder.encode(images)[0]

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Return the images of latents (N, c, h, w)."""
        return self.autoencoder.decode(latents)

    # --- training ---

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images = batch.images
        eps = torch.randn(len(images), *self.latent_shape, device=images.device)
        reconstructions, kl = self.autoencoder(images, eps)
        error = functional.mse_loss(reconstructions, images)
        loss: Tensor = error + self.kl_weight * kl.mean() / images[0].numel()
        self.log_training(loss=loss.detach(), kl=kl.detach().mean(), psnr=10 * torch.log10(4 / error.detach()))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        mean, log_var = self.autoencoder.encode(batch.images)
        reconstructions = self.autoencoder.decode(mean)
        self.log_validation(
            batch,
            reconstruction_error=functional.mse_loss(reconstructions, batch.images),
            kl=gaussian_kl(mean, log_var).flatten(1).sum(1).mean(),
            psnr=psnr(reconstructions, batch.images).mean(),
            ssim=ssim(reconstructions, batch.images).mean(),
        )

    def draw(self, noise: Noise, labels: Tensor | None, sampler: Sampler | None) -> Tensor:
        self.nfe = 1.0
        return self.autoencoder.decode(noise.normal(self.latent_shape).to(self.device))
