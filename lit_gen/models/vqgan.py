"""Stage one of two-stage models: images as a small grid of codes (van den Oord et al. 2017; Esser et al. 2021)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lit_gen.data import Batch, ImageDataModule
from lit_gen.methods import Sampler
from lit_gen.metrics import FeatureNet, psnr, reconstruction_scores, ssim
from lit_gen.models.base import GenerativeModel, OptimizerFactory
from lit_gen.networks.quantisers import Quantised, Quantiser, VectorQuantiser, perplexity, usage
from lit_gen.networks.vqgan import ConvAutoencoder, QuantisedAutoencoder
from lit_gen.noise import Noise

NetworkFactory = Callable[[tuple[int, int, int], int], ConvAutoencoder]
QuantiserFactory = Callable[[int], Quantiser]


class VQVAE(GenerativeModel):
    """Vector-quantised autoencoder (van den Oord et al. 2017, https://arxiv.org/abs/1711.00937).

    Training minimises |x - decoder(z_q)|^2, averaged over pixels, + the loss of the quantiser, z_q being the codes of
    encoder(x). It learns no distribution of codes: images are drawn with every code from its frequencies at its place,
    independently of all others, which is a distribution, but a poor one. A second stage learns a better one, with
    `encode`, `decode`, `num_codes`, or of continuous latents with `latents`, `decode_latents`, `latent_shape`.

    Args:
        image_shape: (C, H, W) of one image; comes from the data.
        num_classes: Number of classes of the data; comes from the data.
        latent_dim: Width of the latents, between encoder, quantiser and decoder.
        network: Encoder and decoder.
        quantiser: Called with the width of the latents.
        optimizer: Optimizer of all parameters.
        warmup: Images over which the learning rate rises linearly from zero.
        compile: Compile the autoencoder with torch.compile.
    """

    pictures = ("reconstructions",)

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int = 0,
        latent_dim: int = 64,
        network: NetworkFactory = ConvAutoencoder,
        quantiser: QuantiserFactory = VectorQuantiser,
        optimizer: OptimizerFactory = lambda p: torch.optim.Adam(p, lr=1e-3),
        warmup: int = 0,
        compile: bool = False,
    ) -> None:
        super().__init__(image_shape, num_classes, warmup=warmup, compile=compile)
        self.autoencoder = QuantisedAutoencoder(network(self.image_shape, latent_dim), quantiser(latent_dim))
        self.optimizer = optimizer
        self._validated: Tensor | None = None

    @property
    def generator(self) -> nn.Module:
        return self.autoencoder

    # --- what a second stage needs ---

    @property
    def num_codes(self) -> int:
        """K."""
        return self.autoencoder.quantiser.num_codes

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(code_dim, h, w): what the quantiser compares with its codes, and how they are laid out."""
        return (self.autoencoder.quantiser.code_dim, *self.autoencoder.network.size)

    def encode(self, images: Tensor) -> Tensor:
        """The indices (N, h, w) of the codes of images (N, C, H, W), int64."""
        return self.autoencoder.encode(images)

    def decode(self, indices: Tensor) -> Tensor:
        """The images of indices (N, h, w)."""
        return self.autoencoder.decode(indices)

    def latents(self, images: Tensor) -> Tensor:
        """What the encoder gives of images before it is quantised, (N, *latent_shape)."""
        return self.autoencoder.latents(images)

    def decode_latents(self, latents: Tensor) -> Tensor:
        """The images of latents (N, *latent_shape), which are quantised first."""
        return self.autoencoder.decode_latents(latents)

    # --- training ---

    @torch.no_grad()
    def initialise(self, images: Tensor) -> None:
        """k-means of what the fresh encoder gives, from as many images as have 16 vectors for each code."""
        _, height, width = self.latent_shape
        num = min(len(images), -(-16 * self.num_codes // (height * width)))
        chosen = images[torch.arange(num) * len(images) // num]
        z = torch.cat([self.autoencoder.network.encoder(part) for part in chosen.split(64)])
        self.autoencoder.quantiser.start(z)

    def configure_optimizers(self) -> Any:
        return self.warmup_schedule(self.optimizer(self.autoencoder.parameters()))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        images = batch.images
        reconstructions, quantised = self.autoencoder(images)
        error = functional.mse_loss(reconstructions, images)
        loss = error + quantised.loss
        self.log_codes(reconstructions, images, quantised)
        self.log_training(loss=loss.detach())
        return loss

    def log_codes(self, reconstructions: Tensor, images: Tensor, quantised: Quantised) -> None:
        """Logs the terms of a training step that all of these families have."""
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
        """Logs how the validation images together use the codebook."""
        assert self._validated is not None
        counts = self.trainer.strategy.reduce(self._validated, reduce_op="sum")
        share = counts / counts.sum()
        self.log_dict({"val/codebook_usage": usage(share), "val/codebook_perplexity": perplexity(share)})
        self.log("step", float(self.images_seen))

    # --- drawing and looking ---

    def draw(self, noise: Noise, labels: Tensor | None, sampler: Sampler | None) -> Tensor:
        uniform = noise.uniform(self.autoencoder.network.size, torch.float64).to(self.device)
        self.nfe = 1.0
        return self.decode(self.autoencoder.place(uniform))

    def picture(self, name: str, images: Tensor, labels: Tensor | None, noise: Noise) -> Tensor:
        """Images above their reconstructions."""
        return torch.stack([images, self.decode(self.encode(images)).clamp(-1, 1)])

    def diagnostics(self, noise: Noise) -> dict[str, float]:
        """How the latest training images used the codebook."""
        share = self.autoencoder.overall()
        used = (share > 0.01 / self.num_codes).float().mean()  # a share that is averaged never falls to 0
        return {"codebook_usage": float(used), "codebook_perplexity": float(perplexity(share))}

    def further_scores(self, data: ImageDataModule, net: FeatureNet) -> dict[str, float]:
        """How well test images are reconstructed, and how they use the codebook."""
        counts = torch.zeros(self.num_codes, device=self.device)

        def reconstruct(images: Tensor) -> Tensor:
            indices = self.encode(images)
            counts.add_(torch.bincount(indices.flatten(), minlength=self.num_codes))
            return self.decode(indices)

        scores = reconstruction_scores(reconstruct, data, net, self.device)
        share = counts / counts.sum()
        return scores | {"codebook_usage": float(usage(share)), "codebook_perplexity": float(perplexity(share))}
