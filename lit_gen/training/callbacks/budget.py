"""Length of a training run, in images and in seconds."""

import time
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Callback, Trainer

from lit_gen.core.errors import UserError
from lit_gen.families.base import GenerativeModel
from lit_gen.training.processes import BATCHES_BETWEEN_AGREEMENTS


@dataclass(frozen=True)
class BudgetSettings:
    """End of training, after a number of images or a time, whichever comes first.

    Args:
        num_images: Images to train on, over all processes; an image counts each time it is seen.
        seconds: Training time, summed over interruptions and including that of the first stage or teacher, so that
            families compare at equal cost. The number of images seen then depends on the machine, and the run is not
            repeated bit by bit. null: no time limit.
    """

    num_images: int = 1_000_000
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.num_images < 1:
            raise UserError(f"budget.num_images: {self.num_images} is not a positive number of images; give at least 1")
        if self.seconds is not None and not self.seconds > 0:
            raise UserError(
                f"budget.seconds: {self.seconds:g} is not a positive time; give more than 0, or null for no limit"
            )

    def check_left(self, spent: float) -> None:
        """Raise a UserError if the runs that this one builds on took all the time, in seconds."""
        if self.seconds is not None and spent >= self.seconds:
            raise UserError(
                f"budget.seconds: {self.seconds:g} s are less than the {spent:.0f} s that the first stage or teacher "
                "took; give more"
            )


class Budget(Callback):
    """Callback that stops training at the end of its budget.

    Args:
        settings: Number of images and time.
        spent: Training time in seconds of the runs that this one builds on.
    """

    def __init__(self, settings: BudgetSettings, spent: float = 0.0) -> None:
        self.num_images = settings.num_images
        self.seconds = settings.seconds
        self.spent = spent
        self._before = 0.0
        self._begin: float | None = None

    @property
    def elapsed(self) -> float:
        """Training time in seconds, without interruptions."""
        return self._before + (0.0 if self._begin is None else time.perf_counter() - self._begin)

    def state_dict(self) -> dict[str, Any]:
        return {"elapsed": self.elapsed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._before = float(state_dict["elapsed"])

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
            return False  # clocks differ, and an agreement after every batch would be slow
        late = self.spent + self.elapsed >= self.seconds
        return bool(trainer.strategy.reduce_boolean_decision(late, all=False))
