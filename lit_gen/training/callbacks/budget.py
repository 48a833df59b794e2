"""The length of a training, in images and in seconds."""

import time
from typing import Any

from lightning.pytorch import Callback, Trainer

from lit_gen.core.errors import UserError
from lit_gen.families.base import GenerativeModel

BATCHES_BETWEEN_AGREEMENTS = 10


class Budget(Callback):
    """Stops the training once it has seen a number of images, or has taken a time, whichever comes first.

    Args:
        num_images: Images to train on, counted over all processes; an image counts each time that it is seen.
        seconds: Time to train, over all parts of a training that was resumed, and with that of the first stage or
            teacher which it builds on, so that families compare at equal cost. How many images are seen in it depends
            on the machine, and the same training is not repeated bit by bit. null: as long as the images take.
    """

    def __init__(self, num_images: int = 1_000_000, seconds: float | None = None) -> None:
        if num_images < 1:
            raise UserError(f"budget.num_images: {num_images} is not a positive number of images")
        if seconds is not None and not seconds > 0:
            raise UserError(f"budget.seconds: {seconds:g} is not a positive time; null sets no limit")
        self.num_images = num_images
        self.seconds = seconds
        self.spent = 0.0
        """Seconds that the trainings which this one builds on have taken."""
        self._before = 0.0
        self._begin: float | None = None

    @property
    def elapsed(self) -> float:
        """Seconds since the training began, interruptions left out."""
        return self._before + (0.0 if self._begin is None else time.perf_counter() - self._begin)

    def state_dict(self) -> dict[str, Any]:
        return {"elapsed": self.elapsed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._before = float(state_dict["elapsed"])

    def setup(self, trainer: Trainer, pl_module: GenerativeModel, stage: str) -> None:
        if self.seconds is not None and self.spent >= self.seconds:
            raise UserError(
                f"budget.seconds: {self.seconds:g} s are less than the {self.spent:.0f} s that the training it builds "
                "on has taken; give it more"
            )

    def on_fit_start(self, trainer: Trainer, pl_module: GenerativeModel) -> None:
        self._begin = time.perf_counter()
        trainer.should_stop = bool(pl_module.images_seen >= self.num_images)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: GenerativeModel, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if pl_module.images_seen >= self.num_images or self._is_late(trainer, pl_module):
            trainer.should_stop = True

    def _is_late(self, trainer: Trainer, pl_module: GenerativeModel) -> bool:
        if self.seconds is None:
            return False
        if trainer.world_size > 1 and pl_module.clock.batches_seen % BATCHES_BETWEEN_AGREEMENTS:
            return False  # clocks differ, and to ask one another after each batch would cost time
        late = self.spent + self.elapsed >= self.seconds
        return bool(trainer.strategy.reduce_boolean_decision(late, all=False))
