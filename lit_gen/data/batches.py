"""Batches of images in an order that is a pure function of (seed, epoch), entered at any position.

The order of an epoch sorts the images by a hash of (seed, epoch, index); global batch b is images b B .. (b + 1) B - 1
of that order, and each rank takes its contiguous share of it. Where an optimization step is computed in parts, a global
batch comes in as many, one after the other, and each rank takes its share of each. So a resumed run needs nothing but
the position of the trainer, and the ranks together see the batches that one process would see. Nothing here reads or
advances a global generator.
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
    """What a training or validation step receives.

    Attributes:
        images: `(N, C, H, W)`; uint8 on the way, float32 in [-1, 1] once on the device. Points are always float32.
        labels: int64 `(N,)`, or None for data without labels.
        index: int64 `(N,)`, positions in the split.
        noise: `(N, C, H, W)`, the noise that each image was drawn from where the training images are `Pairs`; or None.
        stand_in: The one image is not of this process's share, which is empty: it keeps processes in step and counts
            nothing.
    """

    images: torch.Tensor
    labels: torch.Tensor | None
    index: torch.Tensor  # type: ignore[assignment]  # tuple.index is a method, which no batch needs
    noise: torch.Tensor | None = None
    stand_in: bool = False


class BatchKey(NamedTuple):
    """Which images of which epoch; travels to the workers, which know neither."""

    epoch: int
    rows: np.ndarray
    stand_in: bool = False


def hash_bits(seed: int, epoch: int, purpose: int, index: np.ndarray) -> np.ndarray:
    """64 random bits for each index, `(N,)` uint64, the same on every machine.

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
    """Gathers whole batches by index, and flips images if asked.

    Image i of epoch e is flipped left to right if the top bit of hash_bits(seed, e, FLIP, i) is set.

    Args:
        data: All images.
        seed: Seed of the flips.
        flip: Flip half of the images.
        redraw: Gives images by (index, epoch) where they change from epoch to epoch, or None where they do not.
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
        if isinstance(self.images, np.memmap):  # pickled by value otherwise: workers would each copy the data set
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
    """The batches of one epoch and one rank, from the current position on.

    Args:
        num_images: Size of the split.
        batch_size: Images in a global batch.
        shuffle: Order by hash; otherwise by index.
        drop_last: Leave out the last, smaller batch. Without it the ranks share that batch as evenly as possible; one
            whose share is empty gets the batch's first image as a stand-in, so that all ranks have as many batches and
            none waits for another in vain.
        seed: Seed of the order.
        rank: This process.
        num_ranks: Number of processes that share each batch.
        position: Gives (epoch, batches already done in it) whenever an epoch begins, or None if nobody keeps a
            position: then epochs begin at their start, and `set_epoch` says which. Each part counts as one.
        parts: Into how many equal parts each global batch is split, in order.
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
        parts: int = 1,
    ) -> None:
        self.num_images = num_images
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.num_ranks = num_ranks
        self.parts = parts
        self._position = position
        self._epoch = 0
        whole, rest = divmod(num_images, batch_size)
        self.num_global_batches = whole + (rest > 0 and not drop_last)

    def __len__(self) -> int:
        """Parts in a whole epoch, wherever this one begins: Lightning counts from the restored position up to it."""
        return self.num_global_batches * self.parts

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch where no trainer keeps the position."""
        self._epoch = epoch

    def position(self) -> tuple[int, int]:
        """(epoch, first batch) of an iteration that would begin now."""
        known = self._position() if self._position is not None else None
        return known if known is not None else (self._epoch, 0)

    def order(self, epoch: int) -> np.ndarray:
        """The order of all images in an epoch, `(num_images,)` int64."""
        index = np.arange(self.num_images)
        if not self.shuffle:
            return index
        return np.argsort(hash_bits(self.seed, epoch, ORDER, index), kind="stable")

    def __iter__(self) -> Iterator[BatchKey]:
        # the position is read here and not at the first batch, which workers fetch long before it is asked for
        return self._batches(*self.position())

    def _batches(self, epoch: int, first: int) -> Iterator[BatchKey]:
        order = self.order(epoch)
        for place in range(first, len(self)):
            batch, part = divmod(place, self.parts)
            whole = np.array_split(order[batch * self.batch_size : (batch + 1) * self.batch_size], self.parts)[part]
            share = np.array_split(whole, self.num_ranks)[self.rank]
            yield BatchKey(epoch, share) if len(share) else BatchKey(epoch, whole[:1], stand_in=True)


class BatchLoader(DataLoader[Batch]):
    """A loader of whole batches that tells the checkpoint what its order depends on."""

    def __init__(self, dataset: BatchDataset, sampler: BatchSampler, num_workers: int, pin_memory: bool) -> None:
        super().__init__(
            dataset,
            sampler=sampler,
            batch_size=None,
            num_workers=num_workers,
            pin_memory=pin_memory,
            persistent_workers=num_workers > 0,
            generator=torch.Generator(),  # else each epoch draws the workers' seed from the global one
        )

    def state_dict(self) -> dict[str, int]:
        """What must be unchanged for a run to go on."""
        sampler = self._order
        state = {"num_images": sampler.num_images, "batch_size": sampler.batch_size, "seed": sampler.seed}
        return state | {"accumulate_grad_batches": sampler.parts}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Checks it; Lightning calls this for a checkpoint that may lie within an epoch.

        Raises:
            UserError: The run would go on with another order of the images.
        """
        state = {"accumulate_grad_batches": 1} | state  # older checkpoints do not name it
        changed = [f"{key} {state[key]} -> {now}" for key, now in self.state_dict().items() if state[key] != now]
        if changed:
            raise UserError(
                f"the data of the checkpoint came in another order ({', '.join(changed)}): resume with the settings "
                "under data and trainer that it was saved with, or start a new run"
            )

    @property
    def _order(self) -> BatchSampler:
        assert isinstance(self.sampler, BatchSampler)
        return self.sampler
