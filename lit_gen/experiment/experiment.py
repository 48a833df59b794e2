"""The objects of an experiment, with their types."""

from dataclasses import dataclass, fields, replace

from jsonargparse import Namespace

from lit_gen.core.trainer_settings import TrainerSettings
from lit_gen.data.module import ImageDataModule
from lit_gen.evaluation.monitor import MonitorSettings
from lit_gen.evaluation.protocol import Evaluation
from lit_gen.experiment.first_stage import FirstStage
from lit_gen.experiment.reflow import Reflow
from lit_gen.families.base import GenerativeModel
from lit_gen.families.settings import Sampler
from lit_gen.runs.directory import Run, RunSettings
from lit_gen.runs.tracking import TrackerName, Tracking, WandbSettings
from lit_gen.training.callbacks.budget import BudgetSettings
from lit_gen.training.callbacks.checkpoint import CheckpointSettings
from lit_gen.training.callbacks.ema import EMASettings
from lit_gen.training.callbacks.sample_grid import SampleGridSettings


@dataclass(frozen=True)
class Experiment:
    """The objects of one configuration, in the order in which data flows through them.

    Attributes:
        data: Training, validation and test images.
        first_stage: First stage that encodes the images, if the configuration names one.
        reflow: Settings of the pairs that replace the images, if the configuration names a teacher.
        model: The model, with its initial weights.
        budget: Length of the training run.
        checkpoint: Interval between checkpoints.
        ema: Averages of the weights.
        grid: Interval between grids of samples, and their size.
        monitor: Evaluations during training.
        sampler: The sampler; None for the default sampler of the model.
        evaluation: Protocol of the evaluation.
        run: Location of the run directory.
        tracker: Where curves, pictures and scores are logged.
        wandb: Settings of Weights & Biases.
        trainer: Settings of the Trainer that lit_gen reads itself.
    """

    data: ImageDataModule
    first_stage: FirstStage
    reflow: Reflow
    model: GenerativeModel
    budget: BudgetSettings
    checkpoint: CheckpointSettings
    ema: EMASettings
    grid: SampleGridSettings
    monitor: MonitorSettings
    sampler: Sampler | None
    evaluation: Evaluation
    run: RunSettings
    tracker: TrackerName | list[TrackerName]
    wandb: WandbSettings
    trainer: TrainerSettings

    @classmethod
    def of(cls, built: Namespace, trainer: TrainerSettings) -> "Experiment":
        """Return the experiment of the objects that a parser has built."""
        own = {field.name for field in fields(cls)} - {"trainer"}
        return cls(**{name: built[name] for name in own}, trainer=trainer)

    @property
    def stage(self) -> FirstStage | None:
        """The first stage, or None if the model trains on images."""
        return self.first_stage if self.first_stage.run is not None else None

    @property
    def tracking(self) -> Tracking:
        """The trackers of the training and of the evaluations."""
        return Tracking.of(self.tracker, self.wandb)

    def with_accepted_data(self, run: Run) -> "Experiment":
        """Return the experiment of an evaluation of a run, with other data than that of the run if they are accepted.

        Raises:
            UserError: If `evaluation.compare_data` raises one.
        """
        other = self.evaluation.compare_data(run, self.model, self.data)
        return self if other is None else replace(self, data=self.data.with_facts(None))
