"""Lightning's Trainer for a training run: its settings, its steps, the order of its callbacks."""

import logging
import warnings
from collections.abc import Callable
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, GradientAccumulationScheduler

from lit_gen.core.errors import UserError
from lit_gen.core.trainer_settings import TrainerSettings
from lit_gen.evaluation.monitor import ScoreMonitor
from lit_gen.experiment.checks import COUNTED_IN_BATCHES
from lit_gen.families.base import GenerativeModel
from lit_gen.training import processes
from lit_gen.training.callbacks.checkpoint import Checkpoint
from lit_gen.training.callbacks.sample_grid import SampleGrid
from lit_gen.training.precision import use_network_precision

EXPECTED = (
    ".*does not have many workers.*",
    ".*resuming from a checkpoint that ended before the epoch.*",
    ".*The number of training batches.*",
    ".*Total length of .* across ranks is zero.*",
    ".*isinstance\\(treespec, LeafSpec\\).*",
    ".*It is recommended to use `self.log\\('step'.*sync_dist=True.*",  # the step is the same in all processes
)
"""Warnings of Lightning about intended behaviour."""


def make_trainer(settings: TrainerSettings, model: GenerativeModel, instantiate: Callable[..., Trainer]) -> Trainer:
    """Return the Trainer of a model.

    Args:
        settings: Settings of the Trainer.
        model: The model, which is given the number of micro-batches.
        instantiate: Function that builds a Trainer from the settings, with the given changes.

    Raises:
        UserError: If the machine or a package does not suit the settings.
    """
    quieten()
    steps = _split_steps(model, settings)
    try:
        accelerator = processes.accelerator(settings.accelerator)
        trainer = instantiate(logger=False, enable_progress_bar=False, accelerator=accelerator, **steps)
        use_network_precision(trainer, model)
    except (MisconfigurationException, ValueError, RuntimeError, ImportError) as error:
        raise UserError(f"trainer: {' '.join(str(error).split())}; correct its settings") from None
    if any(isinstance(callback, GradientAccumulationScheduler) for callback in trainer.callbacks):  # type: ignore[attr-defined]
        raise UserError(
            "trainer.callbacks: GradientAccumulationScheduler would change the number of micro-batches; remove it and "
            "set trainer.accumulate_grad_batches"
        )
    return trainer


def quieten() -> None:
    """Hide Lightning's notices, and its warnings about intended behaviour."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in EXPECTED:
        warnings.filterwarnings("ignore", message)


def _split_steps(model: GenerativeModel, settings: TrainerSettings) -> dict[str, Any]:
    """Split each optimizer step into `trainer.accumulate_grad_batches` micro-batches.

    A batch of Lightning's is then one micro-batch, so a setting that counts batches is multiplied. A model with manual
    optimization splits its batches itself, and Lightning is told of whole batches.

    Returns:
        Settings that Lightning is given in place of the user's.
    """
    parts = settings.accumulate_grad_batches
    model.split_steps(parts)
    if not model.automatic_optimization:
        return {"accumulate_grad_batches": 1}
    counts = {key: getattr(settings, key) for key in COUNTED_IN_BATCHES} if parts > 1 else {}
    batches = {key: count * parts for key, count in counts.items() if isinstance(count, int)}
    return {"accumulate_grad_batches": parts} | batches


def order_callbacks(trainer: Trainer, first: list[Callback], last: list[Callback]) -> None:
    """Add callbacks before and after those of a Trainer, and put all of them in order.

    The average is updated before a grid, a score or a checkpoint reads it, and numbers are checked before they are
    saved. The checkpoint comes last: at the end of the run it records that the last grid was saved.
    """
    callbacks = first + trainer.callbacks + last  # type: ignore[attr-defined]
    kinds = (Checkpoint, ScoreMonitor, SampleGrid)
    trainer.callbacks = sorted(callbacks, key=lambda callback: [isinstance(callback, kind) for kind in kinds])  # type: ignore[attr-defined]
