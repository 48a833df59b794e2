"""Track runs in Weights & Biases, TensorBoard or MLflow; the file metrics.csv holds the curves whatever the choice."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from lit_gen.runs.directory import Run
from lit_gen.runs.tracking import wandb_runs, wandb_settings
from lit_gen.runs.tracking.csv_file import MetricsFile
from lit_gen.runs.tracking.evaluations import LoggedEvaluation, evaluation_name, over_repeats
from lit_gen.runs.tracking.names import TrackerName, check_installed
from lit_gen.runs.tracking.tracker import Tracker
from lit_gen.runs.tracking.wandb_runs import Curves
from lit_gen.runs.tracking.wandb_settings import WandbSettings, check_account, under_an_agent

__all__ = [
    "Curves",
    "LoggedEvaluation",
    "MetricsFile",
    "Tracker",
    "TrackerName",
    "Tracking",
    "WandbSettings",
    "evaluation_name",
    "over_repeats",
    "under_an_agent",
]


@dataclass(frozen=True)
class Tracking:
    """The trackers of an experiment.

    Attributes:
        wandb: Settings of Weights & Biases.
        names: The trackers.
    """

    wandb: WandbSettings
    names: Sequence[TrackerName] = ("wandb",)

    @classmethod
    def of(cls, names: TrackerName | list[TrackerName], wandb: WandbSettings) -> "Tracking":
        """Return the trackers of the keys `tracker` and `wandb`."""
        return cls(wandb, (names,) if isinstance(names, str) else tuple(dict.fromkeys(names)))

    def check(self) -> None:
        """Raise a UserError if a tracker cannot be used."""
        check_installed(self.names)
        if "wandb" in self.names:
            check_account(self.wandb)

    def announce(self, root: Path) -> None:
        """Print in one line where each tracker logs the runs of a folder."""
        if "wandb" in self.names:
            wandb_settings.announce(self.wandb)
        if "tensorboard" in self.names:
            print(f"TensorBoard: tensorboard --logdir {root}", flush=True)
        if "mlflow" in self.names:
            print(f"MLflow: {os.environ.get('MLFLOW_TRACKING_URI') or root / 'mlruns'}", flush=True)

    def loggers(self, run: Run, config: dict[str, Any], resumed_at: int | None = None) -> list[Logger]:
        """Return the loggers of a training run: a CSV file and the trackers.

        Args:
            run: The run.
            config: Its resolved configuration.
            resumed_at: Number of images of the checkpoint that the run is resumed from, if it is.
        """
        curves = MetricsFile(run.directory / "metrics.csv")
        if resumed_at is not None:
            curves.resume(resumed_at)
        loggers: list[Logger] = [curves]
        if "wandb" in self.names and self.wandb.resolved_mode() != "disabled":
            loggers.append(Curves(self.wandb, run, config))
        if "tensorboard" in self.names:
            from lit_gen.runs.tracking.tensorboard import TensorBoard

            loggers.append(TensorBoard(run, config, resumed_at))
        if "mlflow" in self.names:
            from lit_gen.runs.tracking.mlflow import MLflow

            loggers.append(MLflow(run, config))
        return loggers

    def log(self, evaluation: LoggedEvaluation, reference: Sequence[Path] = ()) -> None:
        """Log an evaluation, with files of its reference statistics where the user has asked for them."""
        if "wandb" in self.names:
            wandb_runs.log_evaluation(self.wandb, evaluation, reference)
        if "tensorboard" in self.names:
            from lit_gen.runs.tracking import tensorboard

            tensorboard.log_evaluation(evaluation)
        if "mlflow" in self.names:
            from lit_gen.runs.tracking import mlflow

            mlflow.log_evaluation(evaluation)
