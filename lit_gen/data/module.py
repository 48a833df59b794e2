"""The data module: batches of any image source in a reproducible order."""

import copy
from typing import Any, Literal, Self, get_args

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
"""Maximum length of the name of a data set or a class."""


class ImageDataModule(LightningDataModule):
    """Data module that serves any data set as `Batch(images, labels, index)`, float32 in [-1, 1] on the device.

    The test split is that of the data set. The validation split consists of the last `num_val` training images, the
    same for every seed. The order of training is a function of (seed, epoch), and a resumed run continues at the batch
    of its checkpoint. The trainer needs `use_distributed_sampler=False`, so that this holds and every validation image
    counts exactly once.

    Shape, classes, images and fingerprints are available without a trainer; files are read when first needed.

    Args:
        source: The data set.
        batch_size: Global batch size: images per optimizer step over all processes and micro-batches. With
            `trainer.accumulate_grad_batches` k, a micro-batch has batch_size / k images.
        num_workers: Number of worker processes per training process. 0 is fastest for data in memory; a folder that
            does not fit into memory benefits from some.
        flip: Flip half of the training images left to right, chosen again in each epoch.
        num_val: Number of training images held out for validation. 0: no validation split, train on all.
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
                raise UserError(f"data.{key}: {value} is too small; give at least {least}")
        self.source = source
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.flip = flip
        self.num_val = num_val
        self.seed = seed
        self._facts: DataFacts | None = None
        self._trained_on: dict[str, Pairs] | dict[str, Encoded] = {}
        self._parts: dict[str, ImageSet] = {}
        self._fingerprints: dict[str, str] = {}

    @property
    def facts(self) -> DataFacts | None:
        """Facts that a run recorded about its data; they replace the source, whose files may be gone."""
        return self._facts

    def with_facts(self, facts: DataFacts | None) -> Self:
        """Return this data module with the facts that a run recorded about its data; None: those of the source."""
        # not an argument of the constructor, whose arguments are keys of a configuration
        other = copy.copy(self)
        other._facts = facts
        return other

    @property
    def name(self) -> str:  # type: ignore[override]
        """Printable name of the data set, for example "digits"."""
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
        """Printable names of the classes; None if unknown."""
        if self.facts is not None:
            return self.facts.class_names
        names = self.source.class_names
        return None if names is None else tuple(map(_name, names))

    @property
    def num_levels(self) -> int | None:
        """Number of distinct pixel values; None for points."""
        return self.source.num_levels if self.source.quantised else None

    def describe(self) -> DataFacts:
        """Return the facts about the data that a run records; reads the training images."""
        return DataFacts(
            name=self.name,
            images_fingerprint=self.fingerprint("train"),
            image_shape=self.image_shape,
            num_classes=self.num_classes,
            class_counts=self.class_counts("train"),
            class_names=self.class_names,
        )

    def class_counts(self, split: str) -> tuple[int, ...] | None:
        """Return the number of images per class of a split; None without labels. Raises as `images` does."""
        if self.facts is not None and split == "train":
            return self.facts.class_counts
        labels = self.labels(split)
        return None if labels is None else tuple(np.bincount(labels, minlength=self.num_classes).tolist())

    def images(self, split: str) -> np.ndarray:
        """Return all images of a split, uint8 `(N, C, H, W)` or float32 points; memory-mapped for a folder.

        Raises:
            UserError: If there is no such split, or its files are missing or invalid.
        """
        return self._load(split).images

    def labels(self, split: str) -> np.ndarray | None:
        """Return all labels of a split, int64 `(N,)`, or None; raises as `images` does."""
        return self._load(split).labels

    def examples(self, split: str, num: int) -> Batch:
        """Return a batch of evenly spaced images of a split, which may be sorted by class."""
        images, labels = self._load(split)
        index = np.arange(min(num, len(images))) * len(images) // min(num, len(images))
        chosen = torch.from_numpy(np.array(images[index]))
        return Batch(
            to_float(chosen), None if labels is None else torch.from_numpy(labels[index]), torch.from_numpy(index)
        )

    def fingerprint(self, split: str) -> str:
        """Return the SHA-256 (hex) of shape, data type, bytes and labels of a split; raises as `images` does."""
        if split not in self._fingerprints:
            part, start, stop = self._rows(split)
            self._fingerprints[split] = self.source.fingerprint(self._parts[part], part, start, stop)
        return self._fingerprints[split]

    def train_on(self, pairs: Pairs) -> None:
        """Train on pairs of noise and image, and validate on the last `num_val` pairs; the splits do not change.

        Raises:
            UserError: If the pairs have another shape or are too few, or if images are flipped.
        """
        if pairs.images.shape[1:] != self.image_shape:
            ours, theirs = ("x".join(map(str, shape)) for shape in (self.image_shape, pairs.images.shape[1:]))
            raise UserError(
                f"reflow.teacher: it samples {theirs} images, but {self.name} has {ours} images; choose another teacher"
            )
        num_train = self.check_pairs(len(pairs.images))
        self._trained_on = {"train": pairs.slice(0, num_train), "val": pairs.slice(num_train, len(pairs.images))}

    def check_pairs(self, num_pairs: int) -> int:
        """Return the number of pairs to train on.

        Raises:
            UserError: If all pairs are held out for validation, or if images are flipped.
        """
        if self.flip:
            raise UserError("data.flip: a flipped image does not match its noise; set --data.flip false")
        if num_pairs <= self.num_val:
            raise UserError(
                f"data.num_val: {self.num_val} pairs for validation leave none of {num_pairs} to train on; raise "
                "--reflow.num_pairs"
            )
        return num_pairs - self.num_val

    def train_on_encoded(self, encoded: dict[str, Encoded]) -> None:
        """Train and validate on the codes or latents of a first stage; the splits do not change."""
        self._trained_on = encoded

    @property
    def training_fingerprint(self) -> str:
        """Fingerprint of the training data: the training split, or the pairs or codes that replace it."""
        return self._trained_on["train"].fingerprint() if self._trained_on else self.fingerprint("train")

    def prepare_data(self) -> None:
        """Download files or build caches; Lightning calls this on one process per node."""
        self.source.prepare()

    def train_dataloader(self) -> BatchLoader:
        """Return the training batches of exactly `batch_size` images over all processes; a smaller last one is dropped.

        If the trainer accumulates gradients over k batches, each is split into k equal, consecutive micro-batches.

        Raises:
            UserError: If the batch size exceeds the data, or is not divisible by the numbers of processes and
                micro-batches.
        """
        self.check_batches(len(self._served("train").images), self._num_micro_batches(), self._ranks()[1])
        return self._loader("train", training=True)

    def check_batches(self, num_images: int, parts: int, num_ranks: int) -> None:
        """Raise a UserError unless the images fill a batch that can be split equally.

        Args:
            num_images: Number of images, pairs or codes to train on.
            parts: Number of micro-batches per batch.
            num_ranks: Number of processes that share each micro-batch.
        """
        if self.batch_size > num_images:
            raise UserError(
                f"data.batch_size: {self.batch_size} exceeds the {num_images} training images of {self.name}; give at "
                f"most {num_images}"
            )
        whole = f"data.batch_size: {self.batch_size} images over all processes"
        if self.batch_size % num_ranks:
            raise UserError(f"{whole} do not divide among {num_ranks}; give a multiple of {num_ranks}")
        if self.batch_size % (num_ranks * parts):
            raise UserError(
                f"{whole} do not divide among {num_ranks} with trainer.accumulate_grad_batches = {parts}; give a "
                f"multiple of {num_ranks * parts}"
            )

    def val_dataloader(self) -> BatchLoader | list[BatchLoader]:
        """Return batches that hold each validation image once, not counting stand-ins; [] if there is no such split."""
        return self._loader("val", training=False) if self.num_val else []

    def test_dataloader(self) -> BatchLoader:
        """Return batches that hold each test image once over all processes, not counting stand-ins."""
        return self._loader("test", training=False)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Convert 8-bit images u to float32 u / 127.5 - 1, and add the noise of pairs."""
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
            num_micro_batches=self._num_micro_batches() if training else 1,
        )
        redraw = self.source.redraw if training and not self._trained_on else None
        dataset = BatchDataset(data, self.seed, self.flip and training, redraw)
        return BatchLoader(dataset, sampler, self.num_workers, pin_memory=self._on_cuda())

    def _position(self) -> tuple[int, int] | None:
        """Return the epoch and batch at which the trainer starts or resumes.

        Lightning restores its counters before it requests the first iterator, but neither skips batches nor sets the
        epoch before workers start to fetch. `processed` is the counter that is correct in every kind of checkpoint:
        `completed` lags by one in those saved at the end of a training step.
        """
        if self.trainer is None or not self.trainer.training:
            return None
        epochs: Any = self.trainer.fit_loop.epoch_progress
        batches: Any = self.trainer.fit_loop.epoch_loop.batch_progress
        if batches.is_last_batch:  # the data of the epoch is used up, even if the epoch has not been closed
            return epochs.current.ready, 0
        return epochs.current.processed, batches.current.processed

    def _ranks(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        if self.trainer.world_size > 1 and self.trainer._accelerator_connector.use_distributed_sampler:
            raise UserError(
                "trainer.use_distributed_sampler: true is not supported, since the data module shares batches; set it "
                "to false"
            )
        return self.trainer.global_rank, self.trainer.world_size

    def _num_micro_batches(self) -> int:
        """Return the number of micro-batches per optimizer step."""
        return 1 if self.trainer is None else self.trainer.accumulate_grad_batches

    def _on_cuda(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"

    def _served(self, split: str) -> ImageSet:
        """Return the data of the batches of a split: its images, or the pairs or codes that replace them."""
        return self._trained_on[split].image_set if split in self._trained_on else self._load(split)

    def _load(self, split: str) -> ImageSet:
        part, start, stop = self._rows(split)
        return self._parts[part].slice(start, stop)

    def _rows(self, split: str) -> tuple[Literal["train", "test"], int, int]:
        """Return the part of the source, and the range of its images, that form a split."""
        if split not in get_args(Split):
            raise UserError(f"unknown split '{split}'; choose one of {', '.join(get_args(Split))}")
        if split == "val" and self.num_val == 0:
            raise UserError(
                "data.num_val: there is no validation split; give the number of training images to hold out"
            )
        part: Literal["train", "test"] = "test" if split == "test" else "train"
        if part not in self._parts:
            self._parts[part] = self.source.load(part)
        num_images = len(self._parts[part].images)
        if part == "test":
            return part, 0, num_images
        num_train = num_images - self.num_val
        if num_train <= 0:
            raise UserError(
                f"data.num_val: {self.num_val} leaves none of the {num_images} training images of {self.name}; give "
                "less"
            )
        labels = self._parts[part].labels
        if self.num_val and labels is not None and labels[0] < labels[-1] and bool((np.diff(labels) >= 0).all()):
            raise UserError(
                f"data.num_val: the training images of {self.name} are sorted by class, so the last {self.num_val} do "
                "not represent all classes; shuffle the file"
            )
        return (part, 0, num_train) if split == "train" else (part, num_train, num_images)


def _name(text: str) -> str:
    """Return a name in the form that the files of a run allow."""
    return shorten(printable(text), MAX_NAME)
