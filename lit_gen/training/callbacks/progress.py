"""Progress of a training run."""

from typing import Any

from lightning.pytorch import Callback, Trainer

from lit_gen.core.progress import ImageProgress
from lit_gen.families.base import GenerativeModel


class TrainingProgress(Callback):
    """Progress bar: images seen, images per second and remaining time.

    Args:
        total: Images of the whole run.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._progress: ImageProgress | None = None

    def on_train_start(self, trainer: Trainer, pl_module: GenerativeModel) -> None:
        if trainer.is_global_zero:
            self._progress = ImageProgress("training", self.total, pl_module.images_seen)
            self._progress.update(pl_module.images_seen)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: GenerativeModel, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._progress is not None and pl_module.whole_step:
            self._progress.update(pl_module.images_seen)

    def teardown(self, trainer: Trainer, pl_module: GenerativeModel, stage: str) -> None:
        if self._progress is not None:
            self._progress.close()
            self._progress = None
