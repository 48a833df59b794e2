"""Callbacks of the Trainer, the same for every family; each takes its settings, and the paths of its run."""

from lit_gen.training.callbacks.budget import Budget, BudgetSettings
from lit_gen.training.callbacks.checkpoint import Checkpoint, CheckpointSettings
from lit_gen.training.callbacks.ema import EMA, EMASettings
from lit_gen.training.callbacks.monitor import Monitor
from lit_gen.training.callbacks.progress import TrainingProgress
from lit_gen.training.callbacks.sample_grid import SampleGrid, SampleGridSettings

__all__ = [
    "EMA",
    "Budget",
    "BudgetSettings",
    "Checkpoint",
    "CheckpointSettings",
    "EMASettings",
    "Monitor",
    "SampleGrid",
    "SampleGridSettings",
    "TrainingProgress",
]
