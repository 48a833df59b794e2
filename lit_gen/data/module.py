"""The one data module: any source of images, in batches, in a reproducible order."""

from typing import Any, Literal, get_args

import numpy as np
import torch
from lightning.pytorch import LightningDataModule

from lit_gen.core.data_facts import DataFacts
from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.core.pixels import to_float
from lit_gen.core.text import printable, shorten
from lit_gen.data.batches import Batch, BatchDataset, BatchLoader, BatchSampler
from lit_gen.data.encoded import Encoded
from lit_gen.data.pairs import Pairs
from lit_gen.data.sources import ImageSet, ImageSource

Split = Literal["train", "val", "test"]

MAX_NAME = 200
"""Letters of the name of a data set or a class."""


class ImageDataModule(LightningDataModule):
    """Serves a data set's images as `Batch(images, labels, index)`, float32 in [-1, 1] on the device.

    The test split is the data set's own. The validation split is the last `num_val` training images, the same for every
    seed. The order of training is a function of (seed, epoch), and a resumed run goes on at the batch where its
    checkpoint was saved. For that, and for every image of a validation counting exactly once, the trainer needs
    `use_distributed_sampler=False`.

    Shape, classes, images and fingerprints are available without a trainer; files are read when first needed.

    Args:
        source: The data set.
        batch_size: Images per optimization step, over all processes together, in however many parts a step is computed:
            with `trainer.accumulate_grad_batches` k, a training batch is one k-th of them.
        num_workers: Processes that gather batches, per training process. In memory 0 is fastest; images of a folder
            that does not fit into memory gain from some.
        flip: Flip half of the training images left to right, anew in each epoch.
        num_val: Number of training images set aside for validation. 0: no validation split, train on all.
        seed: Seed of the order and the flips.
    """

    def __init__(
        self,
        source: ImageSource,
        batch_size: int = 128,
        num_workers: int = 0,
        flip: bool = False,
        num_val: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        counts = {"batch_size": (batch_size, 1), "num_workers": (num_workers, 0), "num_val": (num_val, 0)}
        for key, (value, least) in counts.items():
            if value < least:
                raise UserError(f"data.{key} is {value}: expected at least {least}")
        self.source = source
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.flip = flip
        self.num_val = num_val
        self.seed = seed
        self.facts: DataFacts | None = None
        """The facts that a run recorded about its data, used in place of the source, whose files may be gone."""
        self._trained_on: dict[str, Pairs] | dict[str, Encoded] = {}
        self._parts: dict[str, ImageSet] = {}
        self._fingerprints: dict[str, str] = {}

    @property
    def name(self) -> str:  # type: ignore[override]
        """The data set's name, for example "digits", in printable letters."""
        return _name(self.source.name) if self.facts is None else self.facts.name

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(C, H, W)`."""
        return self.source.image_shape if self.facts is None else self.facts.image_shape

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 for data without labels."""
        return self.source.num_classes if self.facts is None else self.facts.num_classes

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes in printable letters, if they are known."""
        if self.facts is not None:
            return self.facts.class_names
        names = self.source.class_names
        return None if names is None else tuple(map(_name, names))

    @property
    def num_levels(self) -> int | None:
        """Number of different values of a pixel; None for points."""
        return self.source.num_levels if self.source.quantised else None

    def describe(self) -> DataFacts:
        """Return the facts that a run of this data records; reads the training images."""
        return DataFacts(
            name=self.name,
            images_fingerprint=self.fingerprint("train"),
            image_shape=self.image_shape,
            num_classes=self.num_classes,
            class_counts=self.class_counts("train"),
            class_names=self.class_names,
        )

    def class_counts(self, split: str) -> tuple[int, ...] | None:
        """Number of images of each class in a split; None for data without labels. Raises as `images` does."""
        if self.facts is not None and split == "train":
            return self.facts.class_counts
        labels = self.labels(split)
        return None if labels is None else tuple(np.bincount(labels, minlength=self.num_classes).tolist())

    def images(self, split: str) -> np.ndarray:
        """All images of a split, uint8 `(N, C, H, W)` or float32 points; for a folder they are mapped from disk.

        Raises:
            UserError: There is no such split, or its files are missing or bad.
        """
        return self._load(split).images

    def labels(self, split: str) -> np.ndarray | None:
        """All labels of a split, int64 `(N,)`, or None; raises as `images` does."""
        return self._load(split).labels

    def examples(self, split: str, num: int) -> Batch:
        """Evenly spaced images of a split, as batches hold them; a split may be sorted by class."""
        images, labels = self._load(split)
        index = np.arange(min(num, len(images))) * len(images) // min(num, len(images))
        chosen = torch.from_numpy(np.array(images[index]))
        return Batch(
            to_float(chosen), None if labels is None else torch.from_numpy(labels[index]), torch.from_numpy(index)
        )

    def fingerprint(self, split: str) -> str:
        """Sha256 (hex) over shape, type, bytes and labels of a split; raises as `images` does."""
        if split not in self._fingerprints:
            part, start, stop = self._rows(split)
            self._fingerprints[split] = self.source.fingerprint(self._parts[part], part, start, stop)
        return self._fingerprints[split]

    def train_on(self, pairs: Pairs) -> None:
        """Trains on pairs of noise and image, and validates on the last `num_val` of them; all splits stay as they are.

        Raises:
            UserError: The pairs are of another shape, too few, or would be torn apart by flips.
        """
        if pairs.images.shape[1:] != self.image_shape:
            ours, theirs = ("x".join(map(str, shape)) for shape in (self.image_shape, pairs.images.shape[1:]))
            raise UserError(f"reflow.teacher draws {theirs} images, but those of {self.name} are {ours}")
        num_train = self.check_pairs(len(pairs.images))
        self._trained_on = {"train": pairs.slice(0, num_train), "val": pairs.slice(num_train, len(pairs.images))}

    def check_pairs(self, num_pairs: int) -> int:
        """Return how many of the pairs are trained on.

        Raises:
            UserError: All of them are set aside for validation, or they would be torn apart by flips.
        """
        if self.flip:
            raise UserError("data.flip: a flipped image no longer belongs to its noise; set --data.flip false")
        if num_pairs <= self.num_val:
            raise UserError(
                f"data.num_val is {self.num_val}, but there are only {num_pairs} pairs: draw more with "
                "--reflow.num_pairs"
            )
        return num_pairs - self.num_val

    def train_on_encoded(self, encoded: dict[str, Encoded]) -> None:
        """Trains and validates on what a first stage makes of the images; all splits stay as they are."""
        self._trained_on = encoded

    @property
    def training_fingerprint(self) -> str:
        """That of what is trained on: the training split, or what stands in its place."""
        return self._trained_on["train"].fingerprint() if self._trained_on else self.fingerprint("train")

    def prepare_data(self) -> None:
        """Downloads, or builds caches; Lightning calls it on one process per node."""
        self.source.prepare()

    def train_dataloader(self) -> BatchLoader:
        """Batches of exactly `batch_size` images over all processes; the rest of an epoch's images is left out.

        Where the trainer accumulates gradients over k batches, each comes in k equal parts, one after the other.

        Raises:
            UserError: The batch size exceeds the data or is not divisible by the number of processes and parts.
        """
        self.check_batches(len(self._served("train").images), self._num_parts(), self._ranks()[1])
        return self._loader("train", training=True)

    def check_batches(self, num_images: int, parts: int, num_ranks: int) -> None:
        """Raise a UserError unless batches can be made of the images, and split equally.

        Args:
            num_images: Number of images, or of what stands in their place, to train on.
            parts: Number of micro-batches that a batch is split into.
            num_ranks: Number of processes that share each of them.
        """
        if self.batch_size > num_images:
            raise UserError(
                f"data.batch_size is {self.batch_size}, but {self.name} has {num_images} training images; choose at "
                f"most {num_images}"
            )
        whole = f"data.batch_size is {self.batch_size} over all processes, which"
        if self.batch_size % num_ranks:
            raise UserError(f"{whole} {num_ranks} processes cannot share equally: choose a multiple of {num_ranks}")
        if self.batch_size % (num_ranks * parts):
            raise UserError(
                f"{whole} trainer.accumulate_grad_batches = {parts} cannot split equally among {num_ranks}: choose a "
                f"multiple of {num_ranks * parts}"
            )

    def val_dataloader(self) -> BatchLoader | list[BatchLoader]:
        """Every validation image once over all processes, stand-ins aside; no loader without a validation split."""
        return self._loader("val", training=False) if self.num_val else []

    def test_dataloader(self) -> BatchLoader:
        """Every test image once over all processes, stand-ins aside."""
        return self._loader("test", training=False)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Converts 8-bit images: u -> float32 u / 127.5 - 1; all else stays as it is. Pairs get their noise."""
        if self._trained_on and self.trainer is not None and not self.trainer.testing:
            pairs = self._trained_on["train" if self.trainer.training else "val"]
        else:
            pairs = None
        if isinstance(pairs, Pairs):
            index = torch.from_numpy(pairs.index)[batch.index.cpu()].to(batch.images.device)
            batch = batch._replace(noise=Noise(pairs.seed, index).normal(self.image_shape))
        return batch._replace(images=to_float(batch.images))

    def _loader(self, split: str, training: bool) -> BatchLoader:
        rank, num_ranks = self._ranks()
        data = self._served(split)
        sampler = BatchSampler(
            len(data.images),
            self.batch_size,
            shuffle=training,
            drop_last=training,
            seed=self.seed,
            rank=rank,
            num_ranks=num_ranks,
            position=self._position if training else None,
            parts=self._num_parts() if training else 1,
        )
        redraw = self.source.redraw if training and not self._trained_on else None
        dataset = BatchDataset(data, self.seed, self.flip and training, redraw)
        return BatchLoader(dataset, sampler, self.num_workers, pin_memory=self._on_cuda())

    def _position(self) -> tuple[int, int] | None:
        """Epoch and batch at which the trainer, fresh or restored from a checkpoint, goes on.

        Lightning restores its counters before it asks for the first iterator, but neither skips batches nor announces
        the epoch before workers begin to fetch. `processed` is the counter that every kind of checkpoint holds right:
        `completed` lags by one in those saved at the end of a training step.
        """
        if self.trainer is None or not self.trainer.training:
            return None
        epochs: Any = self.trainer.fit_loop.epoch_progress
        batches: Any = self.trainer.fit_loop.epoch_loop.batch_progress
        if batches.is_last_batch:  # the epoch's data is used up, whether or not the epoch has been closed
            return epochs.current.ready, 0
        return epochs.current.processed, batches.current.processed

    def _ranks(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        if self.trainer.world_size > 1 and self.trainer._accelerator_connector.use_distributed_sampler:
            raise UserError("trainer.use_distributed_sampler must be false: the data module shares batches by itself")
        return self.trainer.global_rank, self.trainer.world_size

    def _num_parts(self) -> int:
        """Training batches in an optimization step."""
        return 1 if self.trainer is None else self.trainer.accumulate_grad_batches

    def _on_cuda(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"

    def _served(self, split: str) -> ImageSet:
        """What batches of a split are made of: its images, or what stands in their place."""
        return self._trained_on[split].image_set if split in self._trained_on else self._load(split)

    def _load(self, split: str) -> ImageSet:
        part, start, stop = self._rows(split)
        return self._parts[part].slice(start, stop)

    def _rows(self, split: str) -> tuple[Literal["train", "test"], int, int]:
        """Which part of the source, and which of its images, a split is."""
        if split not in get_args(Split):
            raise UserError(f"unknown split '{split}': choose one of {', '.join(get_args(Split))}")
        if split == "val" and self.num_val == 0:
            raise UserError("there is no validation split: set --data.num_val to the number of images to set aside")
        part: Literal["train", "test"] = "test" if split == "test" else "train"
        if part not in self._parts:
            self._parts[part] = self.source.load(part)
        num_images = len(self._parts[part].images)
        if part == "test":
            return part, 0, num_images
        num_train = num_images - self.num_val
        if num_train <= 0:
            raise UserError(f"data.num_val is {self.num_val}, but {self.name} has only {num_images} training images")
        labels = self._parts[part].labels
        if self.num_val and labels is not None and labels[0] < labels[-1] and bool((np.diff(labels) >= 0).all()):
            raise UserError(
                f"the training images of {self.name} are sorted by class, so the last data.num_val = {self.num_val} of "
                "them are no fair sample: shuffle the file"
            )
        return (part, 0, num_train) if split == "train" else (part, num_train, num_images)


def _name(text: str) -> str:
    """Return a name that every file of a run can hold."""
    return shorten(printable(text), MAX_NAME)
