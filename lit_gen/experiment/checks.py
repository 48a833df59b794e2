"""Checks before a run directory is made.

All checks, in order; each needs what the ones before it have established:

1. `parser.ExperimentCLI`: keys, types and classes of the configuration, and keys that other objects set.
2. The constructors: each class checks its own values.
3. `check_evaluation`, if the command evaluates, so that a mistake is reported before minutes of training, not after.
4. `check_training`: the model, the data, the settings of the Trainer and the evaluations during training suit each
   other.
5. `stages`: the teacher or the first stage is finished, and suits the model and the data.
6. `trainer.make_trainer`: what Lightning checks, and the precision and callbacks of the Trainer.
7. `fit.fit_run`, under the lock of the run: the time that the budget leaves, and what only training needs.
"""

import math

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Timer

from lit_gen.core.errors import UserError
from lit_gen.core.trainer_settings import TrainerSettings
from lit_gen.experiment.experiment import Experiment
from lit_gen.experiment.loading import load_weaker
from lit_gen.families.base import GenerativeModel
from lit_gen.families.diffusion.samplers.base import DiffusionSampler
from lit_gen.families.settings import Sampler
from lit_gen.runs.weights import parse_weights
from lit_gen.training import processes
from lit_gen.training.precision import check_precision

COUNTED_IN_BATCHES = ("limit_train_batches", "val_check_interval", "fast_dev_run")
"""Settings of the Trainer that count training batches, each of which is one step."""


def check_evaluation(experiment: Experiment) -> None:
    """Raise a UserError if the model that is to be trained cannot be evaluated as the configuration asks."""
    model, evaluation = experiment.model, experiment.evaluation
    check_scored(experiment, processes.device(experiment.trainer))
    if parse_weights(evaluation.weights, "evaluation.weights") and not experiment.ema.stds:
        raise UserError(
            f"evaluation.weights: {evaluation.weights} needs power-function averages, and none is kept; add "
            "--ema.stds '[0.05, 0.1]'"
        )
    if evaluation.weights == "best" and not experiment.monitor.every:
        raise UserError(
            "evaluation.weights: best needs evaluations during training, and there are none; add --monitor.every 100000"
        )
    model.check_data(experiment.data)
    if experiment.stage is not None:
        experiment.stage.check(experiment.data)
    evaluation.check(experiment.data, conditional=model.num_classes > 0)


def check_scored(experiment: Experiment, device: torch.device) -> Sampler | None:
    """Return the sampler, as `check_sampler` does.

    Raises:
        UserError: If it does not suit the model, or its samples or the likelihood cannot be scored.
    """
    sampler = check_sampler(experiment, device)
    if experiment.evaluation.likelihood:
        experiment.evaluation.likelihood_protocol(experiment.model, experiment.data)
    experiment.model.check_scored(sampler, experiment.data)
    return sampler


def check_sampler(experiment: Experiment, device: torch.device) -> Sampler | None:
    """Return the sampler of an experiment, as `ready_sampler` does."""
    return ready_sampler(experiment.model, experiment.sampler, device)


def ready_sampler(model: GenerativeModel, sampler: Sampler | None, device: torch.device) -> Sampler | None:
    """Return the sampler, with the weaker model of an autoguidance.

    Raises:
        UserError: Unless it suits the model.
    """
    model.rehearse(sampler)
    guidance = sampler.guidance if isinstance(sampler, DiffusionSampler) else None
    if guidance is None or guidance.run is None or guidance.weaker is not None:
        return sampler
    assert isinstance(sampler, DiffusionSampler)
    return sampler.guided(load_weaker(guidance, model, device))


def check_training(experiment: Experiment) -> None:
    """Raise a UserError if the model cannot be trained with these settings on this data.

    Checks what the model builds on; the account of W&B; that the model suits the data; its optimizers; the settings of
    the Trainer; the validation images and the batches; the settings of the Trainer that count batches; and the
    evaluations during training.
    """
    data, model, settings = experiment.data, experiment.model, experiment.trainer
    if experiment.stage is not None and experiment.reflow.teacher is not None:
        raise UserError("reflow.teacher: flows of latents cannot be trained on pairs; remove it, or remove first_stage")
    experiment.tracking.check()
    model.check_data(data)
    model.check_optimizers()
    _check_lengths(settings, model)
    model.check_trainer(settings)
    check_steps(settings, model)
    _check_times(settings)
    check_precision(settings.precision)
    num_images = len(data.images("train"))
    if experiment.reflow.teacher is not None:
        num_images = data.check_pairs(experiment.reflow.num_pairs)
    data.check_batches(num_images, settings.accumulate_grad_batches, processes.number(settings))
    _check_counts(settings, num_images // data.batch_size, -(-data.num_val // data.batch_size))
    if experiment.monitor.every:
        experiment.monitor.check(experiment.evaluation, model, data)


def _check_lengths(settings: TrainerSettings, model: GenerativeModel) -> None:
    """Raise a UserError if the settings leave nothing to train on."""
    for key in ("max_epochs", "max_steps", "limit_train_batches"):
        if getattr(settings, key) == 0:
            raise UserError(
                f"trainer.{key}: 0 trains on nothing; remove it and set --budget.num_images, the length of the run"
            )
    if settings.overfit_batches:
        raise UserError(
            f"trainer.overfit_batches: {settings.overfit_batches} would replace the order of the batches, which an "
            "exact resume needs; remove it, and use a small data set or a small --budget.num_images"
        )
    if not model.automatic_optimization and settings.max_steps not in (None, -1):
        raise UserError(
            f"trainer.max_steps: {settings.max_steps} would count the steps of both networks of {model.title}; "
            "remove it and set --budget.num_images"
        )


def check_steps(settings: TrainerSettings, model: GenerativeModel) -> None:
    """Raise a UserError if the settings do not split an optimizer step into whole micro-batches."""
    parts = settings.accumulate_grad_batches
    if parts < 1:
        raise UserError(f"trainer.accumulate_grad_batches: {parts} is not a number of micro-batches; give 1 or more")
    for key in COUNTED_IN_BATCHES if parts > 1 and model.automatic_optimization else ():
        count = getattr(settings, key)
        if not isinstance(count, int) and count not in (None, 0.0, 1.0):
            raise UserError(
                f"trainer.{key}: {count} may end within a step of {parts} micro-batches; give a number of steps"
            )


def _check_times(settings: TrainerSettings) -> None:
    """Raise a UserError if the settings leave no time to train, or validate after no epochs."""
    try:
        left = Timer(settings.max_time).time_remaining()
    except (MisconfigurationException, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"trainer.max_time: {reason}; give DD:HH:MM:SS, such as 00:01:30:00") from None
    if left is not None and left <= 0:
        raise UserError(
            f"trainer.max_time: {settings.max_time} trains on nothing; give more, or remove it and set "
            "--budget.num_images, the length of the run"
        )
    every = settings.check_val_every_n_epoch
    if every is not None and every < 1:
        raise UserError(
            f"trainer.check_val_every_n_epoch: {every} is not a number of epochs; give at least 1, or null to count "
            "batches (--trainer.limit_val_batches 0 disables validation)"
        )


def _check_counts(settings: TrainerSettings, num_batches: int, num_val_batches: int) -> None:
    """Raise a UserError if a setting leaves no batch, or comes after the last batch of an epoch."""
    for key, number in {"limit_train_batches": num_batches, "limit_val_batches": num_val_batches}.items():
        share = getattr(settings, key)
        if isinstance(share, float) and number and 0 < share * number < 1:
            least = math.ceil(1e6 / number) / 1e6
            raise UserError(
                f"trainer.{key}: {share:g} of {number} batches is less than one; give at least {least:g}, or a number "
                "of batches"
            )
    limit, every = settings.limit_train_batches, settings.val_check_interval
    if limit is not None:
        num_batches = int(limit * num_batches) if isinstance(limit, float) else min(limit, num_batches)
    per_epoch = isinstance(every, int) and settings.check_val_every_n_epoch is not None
    if per_epoch and every > num_batches:
        raise UserError(
            f"trainer.val_check_interval: {every} is more than the {num_batches} batches of an epoch; give at most "
            "that, or count over epochs with --trainer.check_val_every_n_epoch null"
        )
