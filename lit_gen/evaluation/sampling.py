"""The images of an evaluation, batch by batch: sampled and quantised, or given; and their scoring.

A GPU computes the features of a batch while the CPU prepares the next one: nothing is copied to the CPU and no number
is read before the last batch. The clock of sampling is then that of the GPU.
"""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_gen.core.noise import Noise
from lit_gen.core.pixels import check_finite
from lit_gen.core.processes import gather, ranks
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


@dataclass(frozen=True)
class SampledBatch:
    """Samples of one batch.

    Attributes:
        images: (N, C, H, W), as data are stored.
        index: Their indices, (N,) on the CPU.
        labels: Their classes, (N,) on the CPU, if the model has some.
        num_bad: Number of values that were not finite before the quantisation, a scalar on the device.
    """

    images: Tensor
    index: Tensor
    labels: Tensor | None
    num_bad: Tensor


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
    def batch(self, numbers: range) -> SampledBatch:
        """Return the images of a batch."""

    def score(self, scoring: Scoring, description: str | None, repeat: tuple[int, int] = (1, 1)) -> Samples:
        """Score all images; collective: every process takes its share of the batches.

        Args:
            scoring: Updated with the images of this process.
            description: Name of the evaluation, for the progress; None shows no progress.
            repeat: Number of the evaluation among repeats, from 1, and their number; the progress is that of all.

        Raises:
            NotFiniteError: If a pixel is not finite; raised on every process.
        """
        kept: dict[int, Tensor] = {}
        clock, evaluations = _Clock(self.device), 0.0
        bad: list[Tensor] = []
        num_pixels = 0
        at_once = ranks()[1] == 1 and self.device.type == "cpu"
        with shared_batches(description, self.num_samples, self.batch_size, repeat) as batches:
            for batch in batches:
                with clock.running():
                    drawn = self.batch(batch)
                if at_once:
                    check_finite(int(drawn.num_bad), drawn.images.numel())
                bad.append(drawn.num_bad)
                num_pixels += drawn.images.numel()
                evaluations += len(drawn.images) * self.nfe
                scoring.update(drawn.images, drawn.index, drawn.labels)
                if batch.start < self.num_kept:
                    kept[batch.start] = drawn.images[: self.num_kept - batch.start]
        kept = {first: images.cpu() for first, images in kept.items()}
        shares = gather((kept, clock.seconds(), evaluations, int(torch.stack(bad).sum()) if bad else 0, num_pixels))
        check_finite(sum(share[3] for share in shares), sum(share[4] for share in shares))
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
        stored: Quantises images in [-1, 1], or returns points, as data are stored, without a check of their values.
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

    def batch(self, numbers: range) -> SampledBatch:
        """Sample and quantise the images of a batch."""
        index = torch.arange(numbers.start, numbers.stop)
        labels = self.labels(index)
        samples = self.model.sample(Noise(self.seed, index, self.model.device), labels, self.sampler)
        return SampledBatch(self.stored(samples), index, labels, (~torch.isfinite(samples)).sum())

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

    def batch(self, numbers: range) -> SampledBatch:
        index = torch.arange(numbers.start, numbers.stop)
        images = self.images[numbers.start : numbers.stop].to(self.device)
        return SampledBatch(images, index, self.labels(index), torch.zeros((), dtype=torch.int64))


class _Clock:
    """Time that a device computes in blocks, without waiting for it in between.

    Args:
        device: The device.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the time of the block."""
        if self._on_gpu:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            self._events.append((begin, end))
        else:
            start = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - start

    def seconds(self) -> float:
        """Return the time of all blocks; wait for the device."""
        if self._on_gpu:
            torch.cuda.synchronize()
        return self._seconds + sum(begin.elapsed_time(end) for begin, end in self._events) / 1000
