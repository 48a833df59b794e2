"""A model that a second stage can be trained on: images become latents on a grid, and latents images."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from lit_gen.core.noise import Noise
from lit_gen.data.module import ImageDataModule
from lit_gen.families.base import GenerativeModel
from lit_gen.families.capabilities import Capabilities
from lit_gen.families.settings import Sampler
from lit_gen.metrics.feature_nets import FeatureNet
from lit_gen.metrics.reconstruction import reconstructed_split, reconstruction_scores


class ImageAutoencoder(GenerativeModel):
    """Base class of first stages. Its samples are poor: the second stage learns to draw latents or codes."""

    capabilities = Capabilities(pictures=("reconstructions",))

    @property
    def num_codes(self) -> int:
        """Number K of codes; 0 for an autoencoder of latents alone."""
        return 0

    @property
    @abstractmethod
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape (c, h, w) of the latents."""

    @abstractmethod
    def latents(self, images: Tensor) -> Tensor:
        """Return the latents (N, *latent_shape) of images (N, C, H, W)."""

    @abstractmethod
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Return the images of latents (N, *latent_shape)."""

    def encode(self, images: Tensor) -> Tensor:
        """Return the indices (N, h, w) of the codes of images, int64, if there are codes."""
        raise NotImplementedError

    def decode(self, indices: Tensor) -> Tensor:
        """Return the images of indices (N, h, w), if there are codes."""
        raise NotImplementedError

    def reconstruct(self, images: Tensor) -> Tensor:
        """Return the reconstructions of images (N, C, H, W)."""
        return self.decode_latents(self.latents(images))

    def picture(
        self, name: str, images: Tensor, labels: Tensor | None, noise: Noise, sampler: Sampler | None = None
    ) -> Tensor:
        """Return images above their reconstructions."""
        return torch.stack([images, self.reconstruct(images).clamp(-1, 1)])

    def further_scores(self, data: ImageDataModule, net: FeatureNet) -> dict[str, float]:
        """Return scores of the reconstructions of `reconstructed_split`."""
        return reconstruction_scores(self.reconstruct, data, net, self.device)

    def further_protocol(self, data: ImageDataModule) -> dict[str, Any]:
        split = reconstructed_split(data)
        facts = {"split": split, "data_fingerprint": data.fingerprint(split), "num_images": len(data.images(split))}
        return {"reconstruction": {"protocol": facts}}
