"""What happens around a training step, the same for every family."""

from lit_gen.callbacks.budget import Budget
from lit_gen.callbacks.checkpoint import Checkpoint
from lit_gen.callbacks.ema import EMA
from lit_gen.callbacks.monitor import Monitor
from lit_gen.callbacks.progress import TrainingProgress
from lit_gen.callbacks.sample_grid import SampleGrid

__all__ = ["EMA", "Budget", "Checkpoint", "Monitor", "SampleGrid", "TrainingProgress"]
