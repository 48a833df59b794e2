"""Track runs in Weights & Biases, TensorBoard or MLflow; the file metrics.csv holds the curves whatever the choice."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from lit_gen.runs.directory import Run
from lit_gen.runs.tracking import wandb_runs, wandb_settings
from lit_gen.runs.tracking.csv_file import MetricsFile
from lit_gen.runs.tracking.evaluations import LoggedEvaluation, evaluation_name, over_repeats
from lit_gen.runs.tracking.tracker import Tracker
from lit_gen.runs.tracking.wandb_runs import Curves
from lit_gen.runs.tracking.wandb_settings import WandbSettings, check_account, under_an_agent

__all__ = [
    "Curves",
    "LoggedEvaluation",
    "MetricsFile",
    "Tracker",
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
    """

    wandb: WandbSettings

    def check(self) -> None:
        """Raise a UserError if a tracker cannot be used."""
        check_account(self.wandb)

    def announce(self) -> None:
        """Print in one line where each tracker logs."""
        wandb_settings.announce(self.wandb)

    def loggers(self, run: Run, config: dict[str, Any]) -> list[Logger]:
        """Return the loggers of a training run, which a resume continues: a CSV file and the trackers."""
        loggers: list[Logger] = [MetricsFile(run.directory / "metrics.csv")]
        if self.wandb.resolved_mode() != "disabled":
            loggers.append(Curves(self.wandb, run, config))
        return loggers

    def log(self, evaluation: LoggedEvaluation, reference: Sequence[Path] = ()) -> None:
        """Log an evaluation, with files of its reference statistics where the user has asked for them."""
        wandb_runs.log_evaluation(self.wandb, evaluation, reference)
