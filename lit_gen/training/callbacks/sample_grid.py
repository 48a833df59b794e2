"""Sample grids and other plots during training."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer

from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.data.module import ImageDataModule
from lit_gen.families.base import GenerativeModel
from lit_gen.pictures.grids import save_picture, save_tiles
from lit_gen.runs.tracking import Tracker
from lit_gen.training.callbacks.ema import EMA

NUM_SHOWN = 16
"""Number of images of the data in a plot."""


@dataclass(frozen=True)
class SampleGridSettings:
    """Sample grids and pictures at regular numbers of training images.

    Args:
        every: Training images between two grids; 0 saves only the last grid.
        num_samples: Number of samples in a grid.
        seed: Seed of the noise.
    """

    every: int = 200_000
    num_samples: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in {"every": self.every, "num_samples": self.num_samples, "seed": self.seed}.items():
            if value < 0:
                raise UserError(f"grid.{name}: {value} is negative; give 0 or more")


class SampleGrid(Callback):
    """Callback that saves sample grids, and the `pictures` of the family, at regular numbers of training images.

    Every grid has the same seed and indices, the averaged weights and the model's default sampler, so it does not
    depend on the settings of an evaluation.

    Args:
        settings: Images between two grids, and their samples.
        folder: Folder of the grids.
    """

    def __init__(self, settings: SampleGridSettings, folder: Path) -> None:
        self.every = settings.every
        self.num_samples = settings.num_samples
        self.seed = settings.seed
        self.folder = folder
        self._drawn_at = 0

    def on_train_start(self, trainer: Trainer, pl_module: GenerativeModel) -> None:
        self._drawn_at = pl_module.images_seen

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: GenerativeModel, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        due = self.every and pl_module.images_seen // self.every > self._drawn_at // self.every
        if due and pl_module.whole_step:
            self.draw(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: GenerativeModel) -> None:
        if pl_module.images_seen != self._drawn_at:
            self.draw(trainer, pl_module)

    def draw(self, trainer: Trainer, pl_module: GenerativeModel) -> None:
        """Save one grid on the first process; no operation in it is collective."""
        self._drawn_at = pl_module.images_seen
        if not trainer.is_global_zero or not self.num_samples:
            return
        source = trainer.datamodule.source  # type: ignore[attr-defined]
        noise = Noise(self.seed, range(self.num_samples), pl_module.device)
        ema = next(callback for callback in trainer.callbacks if isinstance(callback, EMA))  # type: ignore[attr-defined]
        with ema.averaged(pl_module.generator):
            images = source.stored(pl_module.sample(noise)).cpu()
            numbers = pl_module.diagnostics(Noise(self.seed, noise.index))
            shown = self._pictures(trainer, pl_module)
        path = save_picture(images, source, self.folder / f"images-{pl_module.images_seen:09d}.png")
        for logger in trainer.loggers:
            if numbers:
                logger.log_metrics({f"samples/{name}": value for name, value in numbers.items()}, pl_module.images_seen)
            if isinstance(logger, Tracker):
                for name, picture in {"samples": path, **shown}.items():
                    logger.log_picture(name, picture, pl_module.images_seen)

    def _pictures(self, trainer: Trainer, model: GenerativeModel) -> dict[str, Path]:
        """Save the plots of the family, by name, of test images or, without a test part, of training images."""
        data: ImageDataModule = trainer.datamodule  # type: ignore[attr-defined]
        files: dict[str, Path] = {}
        for name in model.capabilities.pictures:
            tiles = model.show(name, data, NUM_SHOWN, self.seed)
            files[name] = save_tiles(tiles, self.folder / f"{name}-{model.images_seen:09d}.png")
        return files
