"""A trained model in Python: sample images of a run, and compute likelihoods.

model = load("runs/digits_edm-1a2b3c4d5e")
images = model.sample(64, seed=0, sampler=Heun(steps=18))
"""

from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.core.pixels import to_float
from lit_gen.core.progress import image_progress
from lit_gen.core.seeds import check_seed
from lit_gen.data.module import ImageDataModule
from lit_gen.experiment.checks import ready_sampler
from lit_gen.experiment.experiment import Experiment
from lit_gen.experiment.loading import load_model, load_objects
from lit_gen.experiment.preparation import prepare_sampler
from lit_gen.families.base import GenerativeModel
from lit_gen.families.settings import LikelihoodMethod, Sampler
from lit_gen.runs.directory import Run
from lit_gen.runs.exported import Exported


def load(run: str | Path, weights: str = "ema") -> "TrainedModel":
    """Load the model of a run directory, or of a folder that `lit-gen export` wrote, on the CPU.

    Args:
        run: The run directory, finished or not, or the exported folder, which has one set of weights.
        weights: The averaged weights (`ema`), those of the last step (`raw`), or a power-function average such as
            `ema:0.1`.

    Raises:
        UserError: If it is not a run, its checkpoint is damaged, or it does not have this average.
    """
    if Exported.is_one(run):
        own = Exported.open(run).facts["weights"]
        if weights not in ("ema", own):
            raise UserError(f"weights: {weights} are not the exported weights, {own}; load the run instead")
        opened, weights = Run(Path(run)), own
    else:
        opened = Run.open(run)
    return TrainedModel(opened, load_objects(opened), weights)


class TrainedModel:
    """The model of a run, ready to sample.

    Image i of a seed is the same for any n, batch size and first index, and the same as in `lit-gen sample` and in
    evaluations of the run.

    Args:
        run: The run.
        experiment: The objects of its configuration; the last checkpoint is loaded into the model among them.
        weights: The weights, as in `load`.

    Attributes:
        module: The LightningModule.
        data: The data module of the run; its files are read only if the model or a sampler needs them.
    """

    def __init__(self, run: Run, experiment: Experiment, weights: str = "ema") -> None:
        self.run = run
        self.experiment = experiment
        self.weights = weights
        self.module: GenerativeModel = load_model(run, experiment.model, weights)
        self.data: ImageDataModule = experiment.data
        if self.data.facts is None and self.module.num_classes:  # a run of an older version: the data knows the classes
            experiment.evaluation.compare_data(run, self.module, self.data)
        self.module.follow_classes(self.data)
        self._prepared: tuple[Sampler | None, Sampler | None] | None = None

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.image_shape))
        return f"<{self.module.title} of {self.run.directory}: {shape} images, {self.weights} weights, {self.device}>"

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.module.device

    def to(self, device: torch.device | str) -> Self:
        """Move the model to a device, and return it.

        Raises:
            UserError: If the device is MPS, which has no float64.
        """
        if torch.device(device).type == "mps":
            raise UserError("device: mps has no float64, but noise, times and samplers need it; use cpu or cuda")
        self.module.to(device)
        self._prepared = None  # a weaker model of a guidance would stay where it is
        return self

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(C, H, W)` of its images."""
        return self.data.image_shape

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes of a class-conditional model; empty for any other."""
        numbers = tuple(map(str, range(self.module.num_classes)))
        return (self.data.class_names or numbers) if numbers else ()

    @property
    def nfe(self) -> float:
        """Number of network evaluations per image of the latest batch that was sampled or scored."""
        return self.module.nfe

    def sample(
        self,
        n: int,
        seed: int = 0,
        sampler: Sampler | None = None,
        label: int | str | None = None,
        first: int = 0,
        batch_size: int = 256,
        dtype: Literal["uint8", "float"] = "uint8",
    ) -> Tensor:
        """Sample images first .. first + n - 1 of a seed.

        Args:
            n: Number of images.
            seed: Seed of the noise.
            sampler: The sampler, such as `Heun(steps=18)`; if not given that of the run, which imported runs have,
                or else that of the family.
            label: A class of a class-conditional model, by its name or number, for all images. If not given, the
                classes have the frequencies of the training images.
            first: Index of the first image.
            batch_size: Number of images that are sampled at once.
            dtype: uint8 for images as the data stores them (points stay float32), or float for float32 in about
                [-1, 1], not clamped.

        Returns:
            Images (n, C, H, W) on the CPU.

        Raises:
            UserError: If an argument is out of range, or the model does not support the sampler or has no such class.
        """
        for name, value in {"n": n, "batch_size": batch_size}.items():
            if value < 1:
                raise UserError(f"{name}: {value} is not a positive number of images; give 1 or more")
        if first < 0:
            raise UserError(f"first: {first} is not an index; give 0 or more")
        if dtype not in ("uint8", "float"):
            raise UserError(f"dtype: {dtype!r} is not a form of images; choose uint8 or float")
        check_seed(seed, "seed")
        ready = self.prepare(sampler)
        labels = self.labels(range(first, first + n), label)
        return self.draw(range(first, first + n), seed, ready, labels, batch_size, dtype)

    def labels(self, index: range, label: int | str | None = None, key: str = "label") -> Tensor | None:
        """Return the classes (N,) of the images with the given indices; None for a model without classes.

        Args:
            index: Indices of the images.
            label: One class for all of them, by its name or number.
            key: Name of the class in an error message.

        Raises:
            UserError: If the model has no such class.
        """
        if label is None:
            return self.module.drawn_classes(torch.tensor(index))
        return torch.full((len(index),), class_number(label, self.module, self.data.class_names, key))

    def prepare(self, sampler: Sampler | None) -> Sampler | None:
        """Return a sampler, or else that of the run, with all that it needs.

        It may need the weaker model of its guidance, or a fit to training images.

        Raises:
            UserError: If the model does not support the sampler, or what it needs is missing.
        """
        sampler = sampler or self.experiment.sampler
        if self._prepared is None or self._prepared[0] is not sampler:
            ready = ready_sampler(self.module, sampler, self.device)
            if ready is not None and ready.learns_from_data:
                self.experiment.evaluation.compare_data(self.run, self.module, self.data)
            prepare_sampler(self.module, ready, self.data, self.run, self.weights)
            self._prepared = sampler, ready
        return self._prepared[1]

    def draw(
        self,
        index: range,
        seed: int,
        sampler: Sampler | None,
        labels: Tensor | None,
        batch_size: int,
        dtype: Literal["uint8", "float"],
    ) -> Tensor:
        """Sample the images with the given indices batch by batch, on the CPU.

        Args:
            index: Indices of the images.
            seed: Seed of the noise.
            sampler: What `prepare` returned.
            labels: What `labels` returned.
            batch_size: Number of images that are sampled at once.
            dtype: As in `sample`.
        """
        parts = []
        with image_progress("sampling", len(index)) as progress:
            for start in range(0, len(index), batch_size):
                rows = slice(start, start + batch_size)
                classes = None if labels is None else labels[rows]
                images = self.module.sample(Noise(seed, index[rows], self.device), classes, sampler)
                parts.append((self.data.source.stored(images) if dtype == "uint8" else images).cpu())
                if progress is not None:
                    progress.update(start + len(parts[-1]))
        return torch.cat(parts)

    def log_likelihood(
        self,
        images: Tensor | np.ndarray,
        labels: Tensor | np.ndarray | None = None,
        seed: int = 0,
        method: LikelihoodMethod | None = None,
        batch_size: int = 256,
    ) -> Tensor:
        """Return log P of 8-bit images in nats, (N,) float64 on the CPU: exact, an estimate or a bound.

        Bits per dimension are -log P / (C H W ln 2). For the test images in their order, they are those of
        `lit-gen evaluate --evaluation.likelihood all`.

        Args:
            images: (N, C, H, W), uint8 u or float u / 127.5 - 1.
            labels: Classes (N,), required by a class-conditional model.
            seed: Seed of the noise; image i has the random numbers of index i.
            method: The method of a diffusion model or a VAE; the family's own if not given.
            batch_size: Number of images that are computed at once.

        Raises:
            UserError: If the images have another shape, labels are missing, or the model has no likelihood.
        """
        pixels = torch.as_tensor(images)
        if tuple(pixels.shape[1:]) != self.image_shape or not len(pixels):
            expected = ", ".join(map(str, self.image_shape))
            raise UserError(f"images: their shape is {tuple(pixels.shape)}; give images (N, {expected})")
        if labels is not None and len(labels) != len(pixels):
            raise UserError(f"labels: {len(labels)} labels for {len(pixels)} images; give one per image")
        check_seed(seed, "seed")
        if batch_size < 1:
            raise UserError(f"batch_size: {batch_size} is not a positive number of images; give 1 or more")
        parts = []
        for start in range(0, len(pixels), batch_size):
            batch = to_float(pixels[start : start + batch_size].to(self.device)).float()
            given = None if labels is None else torch.as_tensor(labels[start : start + batch_size])
            noise = Noise(seed, range(start, start + len(batch)), self.device)
            parts.append(self.module.log_likelihood(batch, noise, given, method).cpu())
        return torch.cat(parts)


def class_number(label: int | str, model: GenerativeModel, names: tuple[str, ...] | None, key: str = "label") -> int:
    """Return the class of a name or number; a text is a number unless names are numbers themselves.

    Args:
        label: The name or the number.
        model: The model.
        names: Names of the classes, if they are known.
        key: Name of the argument in an error message.

    Raises:
        UserError: If the model has no classes, or not this class.
    """
    if not model.num_classes:
        raise UserError(f"{key}: {model.title} was not trained with model.class_conditional=true; remove {key}")
    text = str(label)
    if isinstance(label, str) and names is not None and text in names:
        return names.index(text)
    numbered = not isinstance(label, str) or names is None or not any(name.isdecimal() for name in names)
    if numbered and text.isdecimal() and int(text) < model.num_classes:
        return int(text)
    choices = f"0 to {model.num_classes - 1}" if names is None else ", ".join(names[:20])
    more = "" if names is None or len(names) <= 20 else f" and {len(names) - 20} more"
    raise UserError(f"{key}: {text} is not a class; choose one of {choices}{more}")
