"""The length of a training, in images."""

from typing import Any

from lightning.pytorch import Callback, Trainer

from lit_gen.errors import UserError
from lit_gen.models.base import GenerativeModel


class Budget(Callback):
    """Stops the training once it has seen a number of images, counted over all processes.

    Args:
        num_images: Images to train on; an image counts each time that it is seen.
    """

    def __init__(self, num_images: int = 1_000_000) -> None:
        if num_images < 1:
            raise UserError(f"budget.num_images: {num_images} is not a positive number of images")
        self.num_images = num_images

    def on_fit_start(self, trainer: Trainer, pl_module: GenerativeModel) -> None:
        trainer.should_stop = bool(pl_module.images_seen >= self.num_images)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: GenerativeModel, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if pl_module.images_seen >= self.num_images:
            trainer.should_stop = True
