"""Batches of images in an order that is a pure function of (seed, epoch), and can start at any position.

The order of an epoch sorts the images by a hash of (seed, epoch, index). Global batch b holds the images
b B .. (b + 1) B - 1 of that order, and each rank takes its contiguous share. If gradients are accumulated, a global
batch is split into consecutive micro-batches, and each rank takes its share of each micro-batch. A resumed run
therefore needs only the position of the trainer, and all ranks together see the batches that one process would see.
Global random generators are neither read nor advanced.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from lit_gen.core.errors import UserError
from lit_gen.data.sources import ImageSet

ORDER, FLIP = 0, 1  # purposes of hash_bits, so that order and flips are independent


class Batch(NamedTuple):
    """Input of a training or validation step.

    Attributes:
        images: `(N, C, H, W)`; uint8 from the loader, float32 in [-1, 1] on the device. Points are always float32.
        labels: int64 `(N,)`, or None for data without labels.
        index: int64 `(N,)`, positions in the split.
        noise: `(N, C, H, W)`, the noise that each image was sampled from, if the training images are `Pairs`; or None.
        stand_in: Whether the share of this process is empty. The batch then holds one image of another process, which
            keeps the processes in step and is not counted.
    """

    images: torch.Tensor
    labels: torch.Tensor | None
    index: torch.Tensor  # type: ignore[assignment]  # tuple.index is a method, which no batch needs
    noise: torch.Tensor | None = None
    stand_in: bool = False


class BatchKey(NamedTuple):
    """Epoch and image indices of a batch, sent to the worker that gathers it."""

    epoch: int
    rows: np.ndarray
    stand_in: bool = False


def hash_bits(seed: int, epoch: int, purpose: int, index: np.ndarray) -> np.ndarray:
    """Return 64 random bits per index, `(N,)` uint64, the same on every machine.

    Each of the four numbers is added in turn and mixed by the finaliser of SplitMix64: Steele, Lea, Flood, "Fast
    Splittable Pseudorandom Number Generators", OOPSLA 2014.
    """
    bits = np.zeros(len(index), dtype=np.uint64)
    for word in (seed, epoch, purpose, index):
        bits = bits + np.asarray(word).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        bits = bits ^ (bits >> np.uint64(31))
    return bits


class BatchDataset(Dataset[Batch]):
    """Data set of whole batches, with optional flips.

    Image i of epoch e is flipped left to right if the top bit of hash_bits(seed, e, FLIP, i) is set.

    Args:
        data: All images.
        seed: Seed of the flips.
        flip: Flip half of the images.
        redraw: Function of (index, epoch) that returns images that change with the epoch, or None if they do not.
    """

    def __init__(
        self,
        data: ImageSet,
        seed: int = 0,
        flip: bool = False,
        redraw: Callable[[np.ndarray, int], np.ndarray | None] | None = None,
    ) -> None:
        self.images, self.labels = data
        self.seed = seed
        self.flip = flip
        self.redraw = redraw

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: BatchKey) -> Batch:
        epoch, index, stand_in = key
        redrawn = self.redraw(index, epoch) if self.redraw is not None else None
        images = np.asarray(self.images[index]) if redrawn is None else redrawn
        if self.flip:
            flipped = hash_bits(self.seed, epoch, FLIP, index) >> np.uint64(63) == 1
            images[flipped] = images[flipped, :, :, ::-1]
        labels = None if self.labels is None else torch.from_numpy(self.labels[index])
        return Batch(torch.from_numpy(images), labels, torch.from_numpy(index), stand_in=stand_in)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        if isinstance(self.images, np.memmap):  # otherwise pickled by value: each worker would copy the data set
            state["images"] = _MappedFile.of(self.images)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(self.images, _MappedFile):
            self.images = self.images.open()


class _MappedFile(NamedTuple):
    path: Path
    offset: int
    shape: tuple[int, ...]

    @classmethod
    def of(cls, array: np.memmap) -> "_MappedFile":
        whole = array
        while isinstance(whole.base, np.memmap):
            whole = whole.base
        return cls(Path(str(array.filename)), whole.offset + array.ctypes.data - whole.ctypes.data, array.shape)

    def open(self) -> np.memmap:
        return np.memmap(self.path, np.uint8, "c", self.offset, self.shape)


class BatchSampler(Sampler[BatchKey]):
    """Sampler of the batches of one epoch and one rank, from the current position on.

    Args:
        num_images: Size of the split.
        batch_size: Images in a global batch.
        shuffle: Order the images by hash instead of by index.
        drop_last: Drop the last, smaller batch. Otherwise the ranks share it as evenly as possible. A rank with an
            empty share gets the first image of the batch as a stand-in, so that all ranks have the same number of
            batches.
        seed: Seed of the order.
        rank: Rank of this process.
        num_ranks: Number of processes that share each batch.
        position: Function that returns (epoch, micro-batches of it already done) at the start of an epoch, or None if
            no trainer keeps a position. Then the epoch set by `set_epoch` starts at its first batch.
        num_micro_batches: Number of equal, consecutive micro-batches per global batch.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        shuffle: bool = True,
        drop_last: bool = True,
        seed: int = 0,
        rank: int = 0,
        num_ranks: int = 1,
        position: Callable[[], tuple[int, int] | None] | None = None,
        num_micro_batches: int = 1,
    ) -> None:
        self.num_images = num_images
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.num_ranks = num_ranks
        self.num_micro_batches = num_micro_batches
        self._position = position
        self._epoch = 0
        whole, rest = divmod(num_images, batch_size)
        self.num_global_batches = whole + (rest > 0 and not drop_last)

    def __len__(self) -> int:
        """Return the number of micro-batches of a whole epoch: Lightning counts up to it from a restored position."""
        return self.num_global_batches * self.num_micro_batches

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch to use if no trainer keeps the position."""
        self._epoch = epoch

    def position(self) -> tuple[int, int]:
        """Return (epoch, first micro-batch) of an iteration that starts now."""
        known = self._position() if self._position is not None else None
        return known if known is not None else (self._epoch, 0)

    def order(self, epoch: int) -> np.ndarray:
        """Return the order of all images in an epoch, `(num_images,)` int64."""
        index = np.arange(self.num_images)
        if not self.shuffle:
            return index
        return np.argsort(hash_bits(self.seed, epoch, ORDER, index), kind="stable")

    def __iter__(self) -> Iterator[BatchKey]:
        # reads the position here and not at the first batch, which workers fetch long before it is needed
        return self._batches(*self.position())

    def _batches(self, epoch: int, first: int) -> Iterator[BatchKey]:
        order = self.order(epoch)
        for place in range(first, len(self)):
            batch, part = divmod(place, self.num_micro_batches)
            whole = np.array_split(
                order[batch * self.batch_size : (batch + 1) * self.batch_size], self.num_micro_batches
            )[part]
            share = np.array_split(whole, self.num_ranks)[self.rank]
            yield BatchKey(epoch, share) if len(share) else BatchKey(epoch, whole[:1], stand_in=True)


class BatchLoader(DataLoader[Batch]):
    """Loader of whole batches, which saves the settings of its order in the checkpoint."""

    def __init__(self, dataset: BatchDataset, sampler: BatchSampler, num_workers: int, pin_memory: bool) -> None:
        super().__init__(
            dataset,
            sampler=sampler,
            batch_size=None,
            num_workers=num_workers,
            pin_memory=pin_memory,
            persistent_workers=num_workers > 0,
            generator=torch.Generator(),  # otherwise each epoch draws the seed of the workers from the global generator
        )

    def state_dict(self) -> dict[str, int]:
        """Return the settings that must be unchanged to resume a run."""
        sampler = self._order
        state = {"num_images": sampler.num_images, "batch_size": sampler.batch_size, "seed": sampler.seed}
        return state | {"accumulate_grad_batches": sampler.num_micro_batches}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Check the settings of a checkpoint, which may have been saved within an epoch.

        Raises:
            UserError: If the resumed run would see the images in another order.
        """
        state = {"accumulate_grad_batches": 1} | state  # missing in older checkpoints
        changed = [f"{key} {state[key]} -> {now}" for key, now in self.state_dict().items() if state[key] != now]
        if changed:
            raise UserError(
                f"data: the checkpoint was saved with another order of the images ({', '.join(changed)}); resume with "
                "the settings under data and trainer that it was saved with, or start a new run"
            )

    @property
    def _order(self) -> BatchSampler:
        assert isinstance(self.sampler, BatchSampler)
        return self.sampler
