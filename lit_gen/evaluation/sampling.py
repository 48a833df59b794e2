"""The images of an evaluation, batch by batch: sampled and quantised, or given; and their scoring."""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_gen.core.noise import Noise
from lit_gen.core.processes import gather
from lit_gen.data.class_order import classes_of
from lit_gen.evaluation.scoring import Scoring
from lit_gen.evaluation.shares import in_order, shared_batches
from lit_gen.families.base import GenerativeModel
from lit_gen.families.settings import Sampler


@dataclass(frozen=True)
class Samples:
    """Samples of all processes.

    Attributes:
        kept: The first images (N, C, H, W), as data are stored.
        seconds: Time that the slowest process took to sample.
        nfe: Mean number of network evaluations per image.
        flops_per_image: Floating-point operations per image, if they could be counted.
    """

    kept: Tensor
    seconds: float
    nfe: float
    flops_per_image: int | None = None


class ImageBatches(ABC):
    """The images of an evaluation.

    Attributes:
        num_samples: Number of images.
        batch_size: Images per batch.
        num_kept: Number of images that are kept.
    """

    num_samples: int
    batch_size: int
    num_kept: int

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Device of the images."""

    @property
    @abstractmethod
    def nfe(self) -> float:
        """Network evaluations per image of the latest batch; NaN if unknown."""

    @abstractmethod
    def labels(self, index: Tensor) -> Tensor | None:
        """Return the classes of the images with the given indices, (N,) on the CPU; None without classes."""

    @abstractmethod
    def batch(self, index: range) -> tuple[Tensor, Tensor, Tensor | None, float]:
        """Return a batch as the data stores it.

        Returns:
            The images (N, C, H, W), their indices (N,) on the device, their classes (N,) if there are some, and the
            seconds that sampling took.
        """

    def score(self, scoring: Scoring, description: str, repeat: tuple[int, int] = (1, 1)) -> Samples:
        """Score all images; collective: every process takes its share of the batches.

        Args:
            scoring: Updated with the images of this process.
            description: Name of the evaluation, for the progress.
            repeat: Number of the evaluation among repeats, from 1, and their number; the progress is that of all.
        """
        kept: dict[int, Tensor] = {}
        seconds = evaluations = 0.0
        with shared_batches(description, self.num_samples, self.batch_size, repeat) as batches:
            for batch in batches:
                images, index, labels, took = self.batch(batch)
                seconds += took
                evaluations += len(images) * self.nfe
                scoring.update(images, index, labels)
                if batch.start < self.num_kept:
                    kept[batch.start] = images[: self.num_kept - batch.start].cpu()
        shares = gather((kept, seconds, evaluations))
        return Samples(
            in_order(share[0] for share in shares),
            max(share[1] for share in shares),
            sum(share[2] for share in shares) / self.num_samples,
        )


@dataclass(frozen=True)
class Sampling(ImageBatches):
    """Which images an evaluation samples, and how.

    Attributes:
        model: The model.
        sampler: Its sampler; None for the one way of a model that has no other.
        stored: Quantises images in [-1, 1], or returns points, as data are stored.
        num_samples: Number of images.
        batch_size: Images per batch.
        num_kept: Number of images that are kept.
        seed: Seed of the noise.
        class_counts: Counts whose shares the classes of the images follow; None for a model without classes.
    """

    model: GenerativeModel
    sampler: Sampler | None
    stored: Callable[[Tensor], Tensor]
    num_samples: int
    batch_size: int
    num_kept: int
    seed: int
    class_counts: tuple[int, ...] | None

    def labels(self, index: Tensor) -> Tensor | None:
        """Return the classes of the samples with the given indices, (N,) on the CPU; None for a model without them."""
        if self.class_counts is None:
            return None
        return torch.from_numpy(classes_of(index.cpu().numpy(), self.class_counts))

    def batch(self, index: range) -> tuple[Tensor, Tensor, Tensor | None, float]:
        """Sample and quantise the images of a batch.

        Returns:
            The images (N, C, H, W), their indices (N,) on the device, their classes (N,) if the model has some, and the
            seconds that sampling took.
        """
        noise = Noise(self.seed, index, self.model.device)
        labels = self.labels(noise.index)
        begin = time.perf_counter()
        images = self.stored(self.model.sample(noise, labels, self.sampler))
        if images.is_cuda:
            torch.cuda.synchronize()
        return images, noise.index, labels, time.perf_counter() - begin

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def nfe(self) -> float:
        return self.model.nfe


class GivenImages(ImageBatches):
    """Images that exist already.

    Args:
        images: The images (N, C, H, W), as data are stored.
        classes: Their classes (N,), if they have some.
        batch_size: Images per batch.
        num_kept: Number of images that are kept.
        device: Device that they are scored on.
    """

    def __init__(
        self, images: Tensor, classes: Tensor | None, batch_size: int, num_kept: int, device: torch.device
    ) -> None:
        self.images = images
        self.classes = classes
        self.num_samples = len(images)
        self.batch_size = batch_size
        self.num_kept = num_kept
        self._device = device

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def nfe(self) -> float:
        return math.nan

    def labels(self, index: Tensor) -> Tensor | None:
        return None if self.classes is None else self.classes[index.cpu()]

    def batch(self, index: range) -> tuple[Tensor, Tensor, Tensor | None, float]:
        rows = torch.tensor(index)
        return self.images[rows].to(self.device), rows.to(self.device), self.labels(rows), 0.0
