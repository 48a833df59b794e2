"""First stage of two-stage models: images as a small grid of codes (van den Oord et al. 2017; Esser et al. 2021)."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.data.batches import Batch
from lit_gen.data.module import ImageDataModule
from lit_gen.families.autoencoder import ImageAutoencoder
from lit_gen.families.gan.losses import hinge_discriminator_loss, wasserstein_generator_loss
from lit_gen.families.optimizers import OptimizerFactory
from lit_gen.families.settings import Sampler
from lit_gen.families.two_networks import TwoNetworks
from lit_gen.families.vq.networks.autoencoder import (
    AutoencoderNetwork,
    ConvAutoencoder,
    PatchDiscriminator,
    QuantisedAutoencoder,
)
from lit_gen.families.vq.networks.quantisers import Quantised, Quantiser, VectorQuantiser, perplexity, usage
from lit_gen.metrics.feature_nets import FeatureNet
from lit_gen.metrics.perceptual import PerceptualKind, PerceptualLoss, perceptual_loss
from lit_gen.metrics.reconstruction import psnr, reconstruction_scores, ssim

AutoencoderFactory = Callable[[tuple[int, int, int], int], AutoencoderNetwork]
QuantiserFactory = Callable[[int], Quantiser]
DiscriminatorFactory = Callable[[tuple[int, int, int]], nn.Module]


class VQVAE(ImageAutoencoder):
    """Vector-quantised autoencoder (van den Oord et al. 2017, https://arxiv.org/abs/1711.00937).

    Training minimises |x - decoder(z_q)|^2, averaged over pixels, plus the loss of the quantiser, where z_q are the
    codes of encoder(x). The model does not learn the joint distribution of codes: sampling draws every code
    independently, from its frequencies at its position, which gives poor images. A second stage learns the joint
    distribution of codes, through `encode`, `decode` and `num_codes`, or of continuous latents, through `latents`,
    `decode_latents` and `latent_shape`.

    Args:
        image_shape: (C, H, W) of one image; comes from the data.
        num_classes: Number of classes of the data; comes from the data.
        latent_dim: Width of the latents, between encoder, quantiser and decoder.
        network: Encoder and decoder.
        quantiser: Called with the width of the latents.
        optimizer: Optimizer of all parameters.
        warmup: Images over which the learning rate rises linearly from zero.
        compile: Compile the autoencoder with torch.compile.

    Raises:
        UserError: If latent_dim is below 1.
    """

    capabilities = replace(ImageAutoencoder.capabilities, float32_only=True)

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        num_classes: int = 0,
        latent_dim: int = 64,
        network: AutoencoderFactory = ConvAutoencoder,
        quantiser: QuantiserFactory = VectorQuantiser,
        optimizer: OptimizerFactory = lambda p: torch.optim.Adam(p, lr=1e-3),
        warmup: int = 0,
        compile: bool = False,
    ) -> None:
        super().__init__(image_shape, num_classes, warmup=warmup, compile=compile)
        if latent_dim < 1:
            raise UserError(f"model.latent_dim: {latent_dim} is not positive; give at least 1")
        self.autoencoder = QuantisedAutoencoder(network(self.image_shape, latent_dim), quantiser(latent_dim))
        self.optimizer = optimizer
        self._validated: Tensor | None = None

    @property
    def generator(self) -> nn.Module:
        return self.autoencoder

    # --- interface for a second stage ---

    @property
    def num_codes(self) -> int:
        """Number K of codes."""
        return self.autoencoder.quantiser.num_codes

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape (code_dim, h, w) of the latents that the quantiser compares with its codes."""
        return (self.autoencoder.quantiser.code_dim, *self.autoencoder.network.size)

    def encode(self, images: Tensor) -> Tensor:
        """Return the indices (N, h, w) of the codes of images (N, C, H, W), int64."""
        return self.autoencoder.encode(images)

    def decode(self, indices: Tensor) -> Tensor:
        """Return the images of indices (N, h, w)."""
        return self.autoencoder.decode(indices)

    def latents(self, images: Tensor) -> Tensor:
        """Return the latents (N, *latent_shape) of images before quantisation."""
        return self.autoencoder.latents(images)

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Quantise latents (N, *latent_shape) and return their images."""
        return self.autoencoder.decode_latents(latents)

    def reconstruct(self, images: Tensor) -> Tensor:
        """Return the images of the codes of images (N, C, H, W)."""
        return self.decode(self.encode(images))

    # --- training ---

    @property
    def num_initial(self) -> int:
        return max(super().num_initial, self._num_to_start)

    @property
    def _num_to_start(self) -> int:
        """Number of images whose latents hold as many vectors as the quantiser needs to start."""
        _, height, width = self.latent_shape
        return -(-self.autoencoder.quantiser.num_initial // (height * width))

    @torch.no_grad()
    def initialise(self, images: Tensor) -> None:
        """Initialise the quantiser by the latents of the untrained encoder."""
        num = min(len(images), self._num_to_start)
        if not num:
            return
        chosen = images[torch.arange(num) * len(images) // num]
        z = torch.cat([self.autoencoder.network.encoder(part) for part in chosen.split(64)])
        self.autoencoder.quantiser.start(z)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        images = batch.images
        reconstructions, quantised = self.autoencoder(images)
        error = functional.mse_loss(reconstructions, images)
        loss: Tensor = error + quantised.loss
        self.log_codes(reconstructions, images, quantised)
        self.log_training(loss=loss.detach())
        return loss

    def log_codes(self, reconstructions: Tensor, images: Tensor, quantised: Quantised) -> None:
        """Log the terms of a training step that VQVAE and VQGAN share."""
        error = functional.mse_loss(reconstructions.detach(), images)
        values = quantised.stats | {"quantiser_loss": quantised.loss.detach(), "reconstruction_error": error}
        self.log_training(psnr=10 * torch.log10(4 / error), **values)

    def on_validation_epoch_start(self) -> None:
        self._validated = torch.zeros(self.num_codes, device=self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        indices = self.encode(batch.images)
        reconstructions = self.decode(indices)
        if not batch.stand_in and self._validated is not None:
            self._validated += torch.bincount(indices.flatten(), minlength=self.num_codes)
        self.log_validation(
            batch,
            reconstruction_error=functional.mse_loss(reconstructions, batch.images),
            psnr=psnr(reconstructions, batch.images).mean(),
            ssim=ssim(reconstructions, batch.images).mean(),
        )

    def on_validation_epoch_end(self) -> None:
        """Log usage and perplexity of the codebook over all validation images."""
        assert self._validated is not None
        counts = self.trainer.strategy.reduce(self._validated, reduce_op="sum")
        share = counts / counts.sum()
        values = {"val/codebook_usage": usage(share), "val/codebook_perplexity": perplexity(share)}
        self.log_dict(values, sync_dist=True)
        self.log("step", float(self.images_seen))

    # --- sampling and pictures ---

    def draw(self, noise: Noise, labels: Tensor | None, sampler: Sampler | None) -> Tensor:
        uniform = noise.uniform(self.autoencoder.network.size, torch.float64).to(self.device)
        self.nfe = 1.0
        return self.decode(self.autoencoder.place(uniform))

    def diagnostics(self, noise: Noise) -> dict[str, float]:
        """Return how the latest training images used the codebook, by frequencies averaged over steps.

        The averages never reach 0, so `codes_in_use` differs from `usage`: it is the share of codes whose frequency is
        above a hundredth of that of equal use, 1 / K.
        """
        share = self.autoencoder.overall()
        in_use = (share > 0.01 / self.num_codes).float().mean()
        return {"codes_in_use": float(in_use), "codebook_perplexity": float(perplexity(share))}

    def further_scores(self, data: ImageDataModule, net: FeatureNet) -> dict[str, float]:
        """Return scores of the reconstructions of `reconstructed_split`, and how its images use the codebook."""
        counts = torch.zeros(self.num_codes, device=self.device)

        def reconstruct(images: Tensor) -> Tensor:
            indices = self.encode(images)
            counts.add_(torch.bincount(indices.flatten(), minlength=self.num_codes))
            return self.decode(indices)

        scores = reconstruction_scores(reconstruct, data, net, self.device)
        share = counts / counts.sum()
        return scores | {"codebook_usage": float(usage(share)), "codebook_perplexity": float(perplexity(share))}


class LessMomentumAdam(torch.optim.Adam):
    """Adam with beta_1 = 0.5 and beta_2 = 0.9, the setting of VQGAN.

    Args:
        params: Parameters to optimise.
        lr: Learning rate.
        betas: Decay rates of the averages of gradient and squared gradient.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float = 5e-4, betas: tuple[float, float] = (0.5, 0.9)
    ) -> None:
        super().__init__(params, lr=lr, betas=betas)


class VQGAN(TwoNetworks, VQVAE):
    """VQVAE that is also trained against a patch discriminator (Esser et al. 2021, https://arxiv.org/abs/2012.09841).

    nll    = |x - x_hat| + perceptual_weight d(x, x_hat)                                 averaged over pixels
    loss   = nll + loss of the quantiser + discriminator_weight lambda g,    g = -E D(x_hat)
    lambda = |grad nll| / (|grad g| + 1e-4), at most max_weight; gradients of the decoder's last layer
    loss of D = (E max(0, 1 - D(x)) + E max(0, 1 + D(x_hat))) / 2

    Every batch is a step of the autoencoder and, once the discriminator has started, also one of the discriminator. The
    title of the model names the perceptual distance d.

    Args:
        image_shape: (C, H, W) of one image; comes from the data.
        perceptual: lpips; features, of a classifier of the data; none; or auto, the first of these that is available.
        perceptual_weight: Weight of the perceptual distance.
        discriminator: Called with images, returns the logits (N, h, w) of their patches.
        discriminator_weight: Weight of the adversarial loss g.
        max_weight: Upper limit of lambda. If the discriminator cannot tell images from reconstructions, its gradient is
            close to zero, and an unlimited lambda would amplify it.
        discriminator_start: Images after which the discriminator starts training.
        discriminator_warmup: Images for which the discriminator trains before the autoencoder uses it.
        optimizer: Optimizer of the autoencoder's parameters.
        discriminator_optimizer: Optimizer of the discriminator's parameters.
        gradient_clip: Largest norm of the gradient of each network; null disables clipping.

    Raises:
        UserError: If a number is out of range.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        perceptual: PerceptualKind = "auto",
        perceptual_weight: float = 1.0,
        discriminator: DiscriminatorFactory = PatchDiscriminator,
        discriminator_weight: float = 0.8,
        max_weight: float = 1e4,
        discriminator_start: int = 100_000,
        discriminator_warmup: int = 10_000,
        optimizer: OptimizerFactory = LessMomentumAdam,
        discriminator_optimizer: OptimizerFactory = LessMomentumAdam,
        gradient_clip: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(image_shape=image_shape, optimizer=optimizer, **kwargs)
        self.use_two_optimizers(gradient_clip)
        self.perceptual_weight = perceptual_weight
        self.discriminator_weight = discriminator_weight
        self.max_weight = max_weight
        self.discriminator_start = discriminator_start
        self.discriminator_warmup = discriminator_warmup
        self.discriminator_optimizer = discriminator_optimizer
        self._check_settings()
        self.discriminator = discriminator(self.image_shape)
        self.perceptual = perceptual_loss(perceptual, self.image_shape)
        if self.perceptual is not None:
            self.title += f", {self.perceptual.name}"

    def _check_settings(self) -> None:
        for name in ("discriminator_start", "discriminator_warmup"):
            if (value := getattr(self, name)) < 0:
                raise UserError(f"model.{name}: {value} is not a number of images; give 0 or more")
        for name in ("perceptual_weight", "discriminator_weight"):
            if not 0 <= (weight := getattr(self, name)) < math.inf:
                raise UserError(f"model.{name}: {weight} is not a weight; give 0 or a positive number")
        if not self.max_weight > 0:
            raise UserError(
                f"model.max_weight: {self.max_weight} is not a positive limit; give a positive number, or remove the "
                "key for 1e4"
            )

    @cached_property
    def _perceptual(self) -> list[PerceptualLoss]:
        """Perceptual loss, if any, in a list to keep it out of the model's submodules; needed only for training."""
        return [] if self.perceptual is None else [self.perceptual.build()]

    def check_training(self) -> None:
        """Raise a UserError if the weights of the perceptual loss are missing."""
        self._perceptual  # noqa: B018

    def configure_optimizers(self) -> Any:
        schedule = self.warmup_schedule(self.optimizer(self.autoencoder.parameters()))
        return [schedule, {"optimizer": self.discriminator_optimizer(self.discriminator.parameters())}]

    @property
    def phase_starts(self) -> tuple[int, ...]:
        starts = {0, self.discriminator_start, self.discriminator_start + self.discriminator_warmup}
        return tuple(sorted(starts))

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        optimizer, discriminator_optimizer = cast(list[Optimizer], self.optimizers())
        discriminator_trains = self.images_seen > self.discriminator_start
        adversarial = discriminator_trains and (self.images_seen > self.discriminator_start + self.discriminator_warmup)
        reconstructed: list[Tensor] = []
        own, *others = self.differentiate(self.losses(batch, adversarial, reconstructed), self.autoencoder)
        loss, gradients = own
        for g, by_g in others:
            weight = adaptive_weight(gradients[self.last], by_g[self.last], self.max_weight)
            scale = self.discriminator_weight * weight
            loss = loss + scale * g
            gradients = [one + scale * other for one, other in zip(gradients, by_g, strict=True)]
            self.log_training(generator_loss=g, adaptive_weight=weight)
        self.descend(optimizer, self.autoencoder, gradients)
        cast(LRScheduler, self.lr_schedulers()).step()
        self.log_training(loss=loss)
        if discriminator_trains:
            (descent,) = self.differentiate(self.discriminator_losses(batch, reconstructed), self.discriminator)
            self.descend(discriminator_optimizer, self.discriminator, descent.gradients)
            self.log_training(discriminator_loss=descent.loss)

    @property
    def last(self) -> int:
        """Index, among the autoencoder's parameters, of the weight of the decoder's last layer."""
        weight = self.autoencoder.network.last_layer.weight
        return next(i for i, parameter in enumerate(self.autoencoder.parameters()) if parameter is weight)

    def losses(self, batch: Batch, adversarial: bool, reconstructed: list[Tensor]) -> Iterator[tuple[Tensor, ...]]:
        """Yield nll + loss of the quantiser and, if requested, g, of each micro-batch.

        Args:
            batch: Batch to split.
            adversarial: Also yield the adversarial loss g.
            reconstructed: List to which the reconstructions are appended, for the discriminator.
        """
        for (images,) in self.micro_batches(batch.images):
            reconstructions, quantised = self.autoencoder(images)
            nll = self.nll(reconstructions, images)
            reconstructed.append(reconstructions.detach())
            self.log_codes(reconstructions, images, quantised)
            self.log_training(nll=nll.detach())
            loss = nll + quantised.loss
            yield (loss, wasserstein_generator_loss(self.logits(reconstructions))) if adversarial else (loss,)

    def discriminator_losses(self, batch: Batch, reconstructed: list[Tensor]) -> Iterator[tuple[Tensor]]:
        """Yield the discriminator's loss of each micro-batch."""
        for (images,), reconstructions in zip(self.micro_batches(batch.images), reconstructed, strict=True):
            real, fake = self.logits(images), self.logits(reconstructions)
            self.log_training(logits_real=real.detach().mean(), logits_fake=fake.detach().mean())
            yield (hinge_discriminator_loss(real, fake) / 2,)

    def logits(self, images: Tensor) -> Tensor:
        """Return the logits of patches, in float32 at least: losses are not computed in half precision."""
        logits: Tensor = self.discriminator(images)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def nll(self, reconstructions: Tensor, images: Tensor) -> Tensor:
        """Return reconstruction error plus weighted perceptual distance, a scalar."""
        value = functional.l1_loss(reconstructions, images)
        for loss in self._perceptual:
            value = value + self.perceptual_weight * loss.to(images.device)(reconstructions, images)
        return value

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["title"] = self.title

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raise a UserError if the perceptual loss has changed: `auto` depends on the weights that are available."""
        super().on_load_checkpoint(checkpoint)
        if checkpoint["title"] != self.title:
            raise UserError(
                f"model.perceptual: the run was trained as {checkpoint['title']}, but this model is {self.title}, "
                "because the weights that auto finds have changed; restore them, or name a new run with --run.name"
            )


def adaptive_weight(by_nll: Tensor, by_g: Tensor, max_weight: float = 1e4) -> Tensor:
    """Return lambda = |grad nll| / (|grad g| + 1e-4), at most max_weight.

    Args:
        by_nll: Gradient of the reconstruction loss with respect to the weight of the last layer.
        by_g: Gradient of the adversarial loss of the autoencoder with respect to the same weight.
        max_weight: Upper limit.
    """
    weight: Tensor = (by_nll.norm() / (by_g.norm() + 1e-4)).clamp(max=max_weight)
    return weight
