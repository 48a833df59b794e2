"""Pictures that a family makes of given images, such as reconstructions and completions."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from lit_gen.core.errors import NoTestImagesError
from lit_gen.core.modes import evaluating
from lit_gen.core.noise import Noise
from lit_gen.data.batches import Batch
from lit_gen.data.module import ImageDataModule
from lit_gen.families.capabilities import Capabilities
from lit_gen.families.settings import Sampler


class MakesPictures(nn.Module, ABC):
    """The half of `GenerativeModel` that makes pictures of images of the data.

    A family names its pictures in `capabilities.pictures` and makes them in `picture`.
    """

    capabilities: Capabilities

    @abstractmethod
    def check_sampler(self, sampler: Sampler | None) -> None:
        """Raise a UserError unless the model accepts the sampler."""

    @abstractmethod
    def conditioning(self, batch: Batch) -> Tensor | None:
        """Return the labels of a batch if the model is class-conditional."""

    def picture(
        self, name: str, images: Tensor, labels: Tensor | None, noise: Noise, sampler: Sampler | None = None
    ) -> Tensor:
        """Return one of the pictures of the family, made of the given images.

        Args:
            name: Name of the picture.
            images: (N, C, H, W) in [-1, 1].
            labels: (N,) classes for a conditional model.
            noise: Random numbers keyed by the index of the image.
            sampler: Sampler of a sampled picture; the default of the model if not given.

        Returns:
            Tiles (rows, columns, C, H, W) in [-1, 1].
        """
        raise NotImplementedError

    @torch.inference_mode()
    def show(self, name: str, data: ImageDataModule, num: int, seed: int, sampler: Sampler | None = None) -> Tensor:
        """Return a picture of evenly spaced test images, or of training images if the data has no test split.

        Args:
            name: Name of the picture.
            data: The data.
            num: Number of images.
            seed: Seed of the noise.
            sampler: Sampler of a sampled picture; the default of the model if not given.

        Returns:
            Tiles (rows, columns, C, H, W) in [-1, 1].

        Raises:
            UserError: If the family has no such picture, or a sampler is given for a picture that is not sampled.
        """
        self.capabilities.check_picture(type(self).__name__, name, sampler)
        self.check_sampler(sampler)
        try:
            batch = data.examples("test", num)
        except NoTestImagesError:
            batch = data.examples("train", num)
        device = next(self.parameters()).device
        images, labels = batch.images.to(device), self.conditioning(batch)
        labels = labels.to(device) if labels is not None else None
        with evaluating(self):
            return self.picture(name, images, labels, Noise(seed, batch.index, device), sampler)
