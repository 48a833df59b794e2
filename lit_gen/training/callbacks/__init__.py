"""Callbacks of the Trainer, the same for every family."""

from lit_gen.training.callbacks.budget import Budget
from lit_gen.training.callbacks.checkpoint import Checkpoint
from lit_gen.training.callbacks.ema import EMA
from lit_gen.training.callbacks.monitor import Monitor
from lit_gen.training.callbacks.progress import TrainingProgress
from lit_gen.training.callbacks.sample_grid import SampleGrid

__all__ = ["EMA", "Budget", "Checkpoint", "Monitor", "SampleGrid", "TrainingProgress"]
