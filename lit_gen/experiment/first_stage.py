"""The first of two stages: encodes images as codes or latents once, and decodes the samples of the second stage.

    images -- encode --> codes or latents -- train --> second stage -- sample --> codes or latents -- decode --> images

The second stage is trained on the codes or latents of all training images; the first stage is not changed. The run of
the second stage keeps a copy of the first, so it can be sampled and scored without the other run.

    RUN OF THE FIRST/encoded/KEY.npz       codes or latents of the images of a split
    RUN OF THE SECOND/first_stage/         config.yaml, run.json, weights.safetensors

Each channel is standardised to mean 0 and standard deviation 1/2 over the training images. That is about the standard
deviation of images in [-1, 1], which EDM assumes (as Karras et al. 2024, https://arxiv.org/abs/2312.02696).
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from filelock import FileLock
from lightning.pytorch.utilities.seed import isolate_rng
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from lit_gen.core.data_facts import DataFacts
from lit_gen.core.errors import UserError, belonging_to
from lit_gen.core.files import write_atomically
from lit_gen.core.pixels import to_float
from lit_gen.core.progress import image_progress
from lit_gen.data.encoded import Encoded, load_values, save_values
from lit_gen.data.module import ImageDataModule
from lit_gen.experiment.arguments import as_arguments
from lit_gen.experiment.files import opening
from lit_gen.families.autoencoder import ImageAutoencoder
from lit_gen.families.base import GenerativeModel
from lit_gen.runs.directory import Run, read_metadata
from lit_gen.runs.weights import parse_weights
from lit_gen.training.callbacks.ema import EMASettings, load_weights, named_weights

FOLDER = "first_stage"
WEIGHTS = "weights.safetensors"
COPY_AGAIN = "copy it again from the run of the first stage, or train again under another --run.name"
STD = 0.5
"""Standard deviation of standardised latents."""


class FirstStageExperiment(Protocol):
    """The objects that the first stage needs of its own experiment."""

    @property
    def model(self) -> GenerativeModel:
        """The model, with its initial weights."""

    @property
    def data(self) -> ImageDataModule:
        """Training, validation and test images."""

    @property
    def ema(self) -> EMASettings:
        """Averages of the weights that are kept."""


Build = Callable[[list[str], DataFacts | None], FirstStageExperiment]
"""Build an experiment from its arguments and the facts that a run recorded about its data."""


@dataclass(frozen=True)
class FirstStageSettings:
    """The VQVAE, VQGAN or KLAutoencoder whose codes or latents the model trains on; without one, it trains on images.

    Args:
        run: Its run, or the file of its experiment, which is then trained first. null: no first stage.
        weights: Its weights: ema, raw, or a width such as ema:0.1.
        batch_size: Images encoded at once.
        run_overrides: Settings of its experiment that differ from its file, `{budget.num_images: 1000}`; on the command
            line `--first_stage.run.budget.num_images 1000`.
    """

    run: str | None = None
    weights: str = "ema"
    batch_size: int = 256
    run_overrides: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(
                f"first_stage.batch_size: {self.batch_size} is not a positive number of images; give 1 or more"
            )
        parse_weights(self.weights, "first_stage.weights")


class FirstStage:
    """The first stage that the settings name, if they name one.

    Args:
        settings: Run, weights and batch size of the first stage.
        build: Function that builds its experiment.
    """

    def __init__(self, settings: FirstStageSettings, build: Build) -> None:
        self.run = settings.run
        self.run_overrides = settings.run_overrides or {}
        self.weights = settings.weights
        self.batch_size = settings.batch_size
        self._build = build
        # State, not settings: a first stage has to be trained before it is loaded. `load` sets the directory, and the
        # moments of a copy; `encode` sets the moments of the training images. Model and experiment share the object.
        self.directory: Path | None = None
        """Run, or copy of a run, that the weights were loaded from."""
        self.mean, self.std = torch.tensor(0.0), torch.tensor(STD)
        """Mean and standard deviation of each channel of the latents, (C, 1, 1)."""

    # --- known before it is trained ---

    @cached_property
    def _experiment(self) -> FirstStageExperiment:
        assert self.run is not None
        path = Path(self.run)
        config = path / "config.yaml" if path.is_dir() else path
        if not config.is_file():
            raise UserError(
                f"first_stage.run: {self.run} is neither a run directory nor the file of an experiment; check the path"
            )
        # the initial weights of the second stage are those without a first stage
        with isolate_rng(), opening(config, "first_stage.run"), belonging_to("first_stage.run"):
            facts = DataFacts.recorded(self.metadata) if path.is_dir() else None
            experiment = self._build(["--config", str(config), *as_arguments(self.run_overrides)], facts)
        if not isinstance(experiment.model, ImageAutoencoder):
            raise UserError(
                f"first_stage.run: {self.run} holds the model {type(experiment.model).__name__}, which has no "
                "codes or latents; name a VQVAE, VQGAN or KLAutoencoder"
            )
        return experiment

    @property
    def model(self) -> ImageAutoencoder:
        """The model, with the weights that `load` gives it."""
        model = self._experiment.model
        assert isinstance(model, ImageAutoencoder)
        return model

    @property
    def num_codes(self) -> int:
        """K; 0 without a first stage, or for one of latents alone."""
        return 0 if self.run is None else self.model.num_codes

    def shape(self, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Return the shape of latents (C, h, w) or codes (h, w) on which the second stage trains, or else of images."""
        return image_shape if self.run is None else self.model.latent_shape

    def check(self, data: ImageDataModule) -> None:
        """Raise a UserError unless the first stage can encode the training images of the data.

        It must be trained on the same images, keep the weights that are asked for, and the data must not flip images.
        """
        if data.flip:
            raise UserError("data.flip: encoded images cannot be flipped; set it to false, or flip in the first stage")
        other: ImageDataModule = self._experiment.data
        to_be_trained = Path(str(self.run)).is_file()
        if to_be_trained and parse_weights(self.weights, "first_stage.weights") and not self._experiment.ema.stds:
            raise UserError(
                f"first_stage.weights: {self.weights} is a power-function average; add "
                "--first_stage.run.ema.stds '[0.05, 0.1]' to keep them"
            )
        if to_be_trained and "data.num_val" not in self.run_overrides:
            other = ImageDataModule(other.source, num_val=data.num_val)  # with which it will be trained
        recorded = None if to_be_trained else Run(Path(str(self.run))).images_fingerprint
        if (recorded or other.fingerprint("train")) != data.fingerprint("train"):
            of = f"{other.name} of {'x'.join(map(str, other.image_shape))} with data.num_val {other.num_val}"
            raise UserError(
                f"first_stage.run: {self.run} has other training images ({of}) than this data; use the same source and "
                "data.num_val for both stages"
            )

    # --- known once it is trained ---

    def load(self, directory: Path, load_run: Callable[[Path, ImageAutoencoder, str], object]) -> None:
        """Load the weights from a copy that `save` made, or from a run.

        Args:
            directory: The copy or the run.
            load_run: Loads the weights of a run, of a given kind, into a model.

        Raises:
            UserError: If both are missing, the training is not finished, or the copy is damaged.
        """
        self.directory = directory
        if (directory / WEIGHTS).is_file():
            self._load_copy(directory / WEIGHTS)
        else:
            load_run(directory, self.model, self.weights)
        self.model.eval().requires_grad_(False)

    def _load_copy(self, path: Path) -> None:
        if not self.metadata:
            raise UserError(f"{path.with_name('run.json')}: the file is missing; {COPY_AGAIN}")
        remedy = "restore it, or train again under another --run.name"
        try:
            weights = load_file(path)
            self.mean, self.std = weights.pop("latents.mean"), weights.pop("latents.std")
            load_weights(self.model.generator, weights)
            if not self.mean.shape == self.std.shape in ((), (self.model.latent_shape[0], 1, 1)):
                raise KeyError(f"latents.mean and latents.std are {[*self.mean.shape]} and {[*self.std.shape]}")
        except SafetensorError as error:
            raise UserError(f"{path}: not a readable safetensors file ({error}); {remedy}") from None
        except KeyError as error:
            config = path.with_name("config.yaml")
            raise UserError(f"{path}: does not fit the model of {config} ({error.args[0]}); {remedy}") from None

    @property
    def metadata(self) -> dict[str, Any]:
        """Content of the run.json of its training; empty before it is trained."""
        path = (self.directory or Path(str(self.run))) / "run.json"
        try:
            return read_metadata(path, COPY_AGAIN)
        except FileNotFoundError:
            return {}

    @property
    def title(self) -> str:
        """Name of the first stage in results."""
        return self.model.title

    def describe(self) -> dict[str, Any]:
        """Return the facts that a result records about the first stage."""
        metadata = self.metadata
        kept = {name: metadata.get(name) for name in ("title", "identity", "images_seen", "training_seconds")}
        if "training_flops" in metadata:
            kept["training_flops"] = metadata["training_flops"]
        return kept | {"weights": self.weights, "num_parameters": self.num_parameters}

    @property
    def num_parameters(self) -> int:
        """Number of parameters of encoder, codebook and decoder."""
        return sum(parameter.numel() for parameter in self.model.generator.parameters())

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the weights. Repeating the run on another machine may give other weights."""
        digest = hashlib.sha256()
        for name, weight in sorted(named_weights(self.model.generator).items()):
            digest.update(name.encode() + weight.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def key(self, data: ImageDataModule, split: str, form: str, by: Literal["fingerprint", "recipe"]) -> str:
        """Return a hash of the images that are encoded and of the weights that encode them, or of their recipe."""
        who = self.fingerprint if by == "fingerprint" else self.metadata["recipe"]
        facts = [data.fingerprint(split), split, who, self.weights, form]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def encode(self, data: ImageDataModule, form: Literal["codes", "latents"]) -> dict[str, Encoded]:
        """Return the training and validation images as codes or as standardised latents, computed once and kept."""
        splits = ("train", "val") if data.num_val else ("train",)
        keys = {split: self.key(data, split, form, "fingerprint") for split in splits}
        values = {split: self._kept(data, split, form, key) for split, key in keys.items()}
        if form == "latents":
            self.mean, self.std = _moments(values["train"])
            values = {split: self._standardised(z) for split, z in values.items()}
        return {split: Encoded(part, data.labels(split), keys[split]) for split, part in values.items()}

    @torch.inference_mode()
    def decode(self, drawn: Tensor) -> Tensor:
        """Return the images (N, C, H, W) of codes (N, h, w) or standardised latents (N, C, h, w)."""
        assert self.directory is not None
        model = self.model.to(drawn.device)
        if not drawn.is_floating_point():
            return model.decode(drawn)
        return model.decode_latents(drawn.float() * (self.std / STD).to(drawn.device) + self.mean.to(drawn.device))

    def save(self, folder: Path) -> None:
        """Write a copy that can be loaded without its run, unless it exists."""
        assert self.directory is not None
        if (folder / WEIGHTS).is_file():
            return
        for name in ("config.yaml", "run.json"):
            write_atomically(folder / name, (self.directory / name).read_bytes())
        weights = {name: weight.detach().cpu().contiguous() for name, weight in self._weights().items()}
        write_atomically(folder / WEIGHTS, save(weights))

    def _weights(self) -> dict[str, Tensor]:
        return named_weights(self.model.generator) | {"latents.mean": self.mean, "latents.std": self.std}

    def _kept(self, data: ImageDataModule, split: str, form: str, key: str) -> np.ndarray:
        assert self.directory is not None
        path = self.directory / "encoded" / f"{form}-{key[:10]}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.stem}.lock")):
            if not path.is_file():
                save_values(self._encoded(data.images(split), form), path)
                print(f"{path}: {len(data.images(split)):,} images of {data.name}/{split} encoded", flush=True)
        return load_values(path)

    @torch.inference_mode()
    def _encoded(self, images: np.ndarray, form: str) -> np.ndarray:
        encode = self.model.encode if form == "codes" else self.model.latents
        parts = []
        with image_progress("encoding", len(images)) as progress:
            for first in range(0, len(images), self.batch_size):
                part = torch.from_numpy(np.array(images[first : first + self.batch_size])).to(self.model.device)
                parts.append(encode(to_float(part)).cpu().numpy())
                if progress is not None:
                    progress.update(first + len(part))
        return np.concatenate(parts).astype(np.int32 if form == "codes" else np.float32)

    def _standardised(self, latents: np.ndarray) -> np.ndarray:
        mean, scale = self.mean.numpy(), (STD / self.std).numpy()
        return (latents - mean) * scale


def _moments(latents: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return the mean and the standard deviation (C, 1, 1) of each channel of latents (N, C, h, w)."""
    mean, std = latents.mean((0, 2, 3), np.float64), latents.std((0, 2, 3), np.float64)
    return tuple(torch.from_numpy(v).float()[:, None, None] for v in (mean, np.maximum(std, 1e-6)))  # type: ignore[return-value]
