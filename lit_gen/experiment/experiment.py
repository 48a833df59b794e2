"""Everything that an experiment is made of, with its types."""

from dataclasses import dataclass, fields

from jsonargparse import Namespace

from lit_gen.data.module import ImageDataModule
from lit_gen.evaluation.protocol import Evaluation
from lit_gen.experiment.first_stage import FirstStage
from lit_gen.experiment.reflow import Reflow
from lit_gen.families.base import GenerativeModel
from lit_gen.families.settings import Sampler
from lit_gen.runs.directory import RunSettings
from lit_gen.runs.tracking import WandbSettings
from lit_gen.training.callbacks.budget import BudgetSettings
from lit_gen.training.callbacks.checkpoint import CheckpointSettings
from lit_gen.training.callbacks.ema import EMASettings
from lit_gen.training.callbacks.sample_grid import SampleGridSettings


@dataclass(frozen=True)
class Experiment:
    """The objects of one configuration, in the order in which data flows through them.

    Attributes:
        data: Training, validation and test images.
        first_stage: What encodes them, if the configuration names a first stage.
        reflow: Pairs in place of the images, if the configuration names a teacher.
        model: The model, with its initial weights.
        budget: Length of the training run.
        checkpoint: When a checkpoint is saved.
        ema: Which averages of the weights are kept.
        grid: When a grid of samples is saved.
        sampler: How images are sampled; None for the model's own sampler.
        evaluation: Protocol of the evaluation.
        run: Place of the run directory.
        wandb: What W&B is told.
        trainer: Settings of the Trainer.
    """

    data: ImageDataModule
    first_stage: FirstStage
    reflow: Reflow
    model: GenerativeModel
    budget: BudgetSettings
    checkpoint: CheckpointSettings
    ema: EMASettings
    grid: SampleGridSettings
    sampler: Sampler | None
    evaluation: Evaluation
    run: RunSettings
    wandb: WandbSettings
    trainer: Namespace

    @classmethod
    def of(cls, built: Namespace, trainer: Namespace) -> "Experiment":
        """Return the experiment of the objects that a parser has built by key."""
        own = {field.name for field in fields(cls)} - {"trainer"}
        return cls(**{name: built[name] for name in own}, trainer=trainer)

    @property
    def stage(self) -> FirstStage | None:
        """The first stage, or None if the model learns images."""
        return self.first_stage if self.first_stage.run is not None else None
