"""How an experiment is trained: its run, what it builds on, and Lightning's trainer."""

import math
import time
import warnings
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler, Timer

from lit_gen.core.errors import LostProcessError, UserError, belonging_to
from lit_gen.core.files import remove_temporaries
from lit_gen.core.processes import from_first
from lit_gen.data.module import ImageDataModule
from lit_gen.evaluation.device import device_name
from lit_gen.experiment.arguments import as_arguments
from lit_gen.experiment.files import opening
from lit_gen.experiment.first_stage import FOLDER, FirstStage
from lit_gen.experiment.identity import recipe_identity, training_config, training_identity
from lit_gen.experiment.loading import (
    load_first_stage,
    load_model,
    load_objects,
    load_weaker,
    open_finished,
    read_checkpoint,
)
from lit_gen.experiment.parser import ExperimentCLI
from lit_gen.experiment.reflow import Reflow
from lit_gen.families.base import GenerativeModel
from lit_gen.families.diffusion.models.flow_matching import FlowMatching
from lit_gen.families.diffusion.models.general import Diffusion
from lit_gen.runs import tracking
from lit_gen.runs.directory import Run
from lit_gen.training import processes
from lit_gen.training.callbacks.checkpoint import Checkpoint, check_world_size
from lit_gen.training.callbacks.ema import load_weights, named_weights
from lit_gen.training.callbacks.monitor import Monitor
from lit_gen.training.callbacks.progress import TrainingProgress
from lit_gen.training.callbacks.sample_grid import SampleGrid
from lit_gen.training.precision import check_precision, use_network_precision

KEYS_OF_THE_MACHINE = (
    "data.num_workers",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
)
COUNTED_IN_BATCHES = ("limit_train_batches", "val_check_interval", "fast_dev_run")
"""Settings of the trainer that count training batches, of which each is a step."""


def fit_run(cli: ExperimentCLI, objects: Namespace) -> Run:
    """Trains the model of an experiment in its run directory, and first its teacher or first stage if it needs one.

    A run that is finished is left as it is, and one that is not goes on from its last checkpoint.

    Raises:
        UserError: a setting does not suit the model, the data, the machine or what the model builds on.
    """
    config = cli.resolved()
    data: ImageDataModule = objects.data
    model: GenerativeModel = objects.model
    stage: FirstStage | None = objects.first_stage if model.first_stage is not None else None
    check_before_training(cli, objects)
    model.follow_classes(data)
    if stage is not None:
        _learn_encoded(cli, objects)
        config["first_stage"] |= {"run": FOLDER, "run_overrides": None}  # beside the configuration that is saved
        objects.budget.spent = _cost(stage.metadata)
    flow = 1 if objects.reflow.teacher is None else _learn_pairs(cli, objects)
    fingerprint = data.training_fingerprint
    of_recipe = fingerprint if stage is None else stage.key(data, "train", model.learns, "recipe")
    identity = training_identity(config, fingerprint)
    trainer = _trainer(cli, model)
    run = Run.of(objects.run, f"{data.name}_{model.title.lower()}", identity)
    with processes.turn(run, trainer) as unfinished:
        if unfinished:  # what is amiss now must leave no run behind
            objects.budget.setup(trainer, model, "fit")
            model.check_training()
        if unfinished and processes.is_first():
            run.create(
                _without_evaluation(config),
                identity=identity,
                recipe=recipe_identity(config, of_recipe),
                training=training_config(config),
                title=f"{model.title}, class-conditional" if model.num_classes else model.title,
                flow=flow,
                seed=config["seed_everything"],
                earlier_seconds=objects.budget.spent,
                data={"fingerprint": fingerprint} | data.describe().to_dict(),
            )
            if stage is not None:
                stage.save(run.directory / FOLDER)
            tracking.announce(objects.wandb)
        if unfinished:
            try:
                _train(trainer, objects, config, run)
            finally:
                objects.checkpoint.restore_threads()
        elif processes.is_first():
            print(f"{run.directory}: this training is finished", flush=True)
    return run


def _without_evaluation(config: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration that a run keeps: it must not depend on which of its evaluations came first."""
    return config | {"sampler": None, "evaluation": config["evaluation"] | {"other_data": False}}


def _learn_pairs(cli: ExperimentCLI, objects: Namespace) -> int:
    """Puts the pairs of `reflow.teacher` in the place of the training images, and its weights into the model.

    Returns:
        Which flow it becomes: the second for a teacher that was trained on data, unless it is distilled, which makes
        it the teacher's own in one step.

    Raises:
        UserError: the teacher or the model is no flow, or they do not fit; or the teacher was distilled itself.
    """
    settings: Reflow = objects.reflow
    model: GenerativeModel = objects.model
    if not isinstance(model, FlowMatching):
        raise UserError(f"reflow: {type(model).__name__} cannot learn from pairs; use --model RectifiedFlow")
    assert settings.teacher is not None
    run = _named_run(cli, "reflow.teacher", settings.teacher)
    teacher: GenerativeModel = load_objects(run).model
    if not isinstance(teacher, Diffusion):
        raise UserError(
            f"reflow.teacher: {run.directory} holds a {type(teacher).__name__}, which has no paths to learn"
        )
    if isinstance(teacher, FlowMatching) and teacher.distilled:
        raise UserError(
            f"reflow.teacher: {run.directory} was distilled to one step and has no paths to learn; name the run that "
            "it was distilled from"
        )
    device = processes.device(cli.config.trainer)
    load_model(run, teacher, settings.weights).to(device)
    if teacher.num_classes in (0, objects.data.num_classes):
        teacher.follow_classes(objects.data)
    if settings.sampler.guidance is not None and settings.sampler.guidance.run is not None:
        load_weaker(settings.sampler.guidance, teacher, device)
    objects.data.train_on(settings.draw(run, teacher, objects.data.source.quantised))
    if settings.start:
        try:
            load_weights(model.generator, {name: w.cpu() for name, w in named_weights(teacher.generator).items()})
        except (KeyError, RuntimeError) as error:
            raise UserError(
                f"reflow.start: the network of {run.directory} is not that of the model ({error}); use the same "
                "network, or --reflow.start false"
            ) from None
    objects.budget.spent = _cost(run.metadata)
    number: int = run.metadata.get("flow", 1) + (not model.distilled)
    which, how = f"{number}-" if number > 1 else "", ", distilled" if model.distilled else ""
    model.title = f"{which}{type(model).__name__}{how}"
    return number


def _cost(metadata: dict[str, Any]) -> float:
    """Seconds that a training took, with those of the trainings that it builds on."""
    return float(metadata.get("training_seconds", 0.0)) + float(metadata.get("earlier_seconds", 0.0))


def _learn_encoded(cli: ExperimentCLI, objects: Namespace) -> None:
    """Puts what the first stage makes of the training images in their place; the first stage is trained if needed.

    Raises:
        UserError: the first stage is not of this data, or not finished.
    """
    stage: FirstStage = objects.first_stage
    assert stage.run is not None
    stage.check(objects.data)
    if Path(stage.run).is_dir():
        load_first_stage(stage, Path(stage.run))
    else:
        load_first_stage(stage, _named_run(cli, "first_stage.run", stage.run, "data.num_val").directory)
    stage.model.to(processes.device(cli.config.trainer))
    objects.data.train_on_encoded(stage.encode(objects.data, objects.model.learns))


def _named_run(cli: ExperimentCLI, key: str, name: str, *more: str) -> Run:
    """A finished run that a key names. If it names an experiment, that is trained first.

    It is trained on the same machine and with the same seed, and with the values of more keys of this configuration,
    unless its overrides say otherwise. Its budget is its own.
    """
    path = Path(name)
    if path.is_dir():
        return open_finished(path, key)
    if not path.is_file():
        raise UserError(f"{key}: {name} is neither a run directory nor the file of an experiment")
    config = cli.resolved()
    of_all = {"seed_everything": config["seed_everything"], "run.root": config["run"]["root"]}
    of_all |= {f"wandb.{key}": value for key, value in config["wandb"].items() if value is not None}
    for other in (*(key for key in KEYS_OF_THE_MACHINE if key.startswith("trainer")), *more):
        section, _, setting = other.partition(".")
        of_all[other] = config[section][setting]
    with opening(path, key):
        with belonging_to(key):
            words = as_arguments(of_all | (cli.config[f"{key}_overrides"] or {}))
            first = ExperimentCLI(["--config", name, *words])
            objects = first.objects()
        if processes.is_first():
            print(
                f"first {name}: {_length(first)} (--{key}.budget.num_images), "
                f"then what follows it: {_length(cli)} (--budget.num_images)",
                flush=True,
            )
        return fit_run(first, objects)


def _length(cli: ExperimentCLI) -> str:
    """The budget of a training."""
    budget = cli.config.budget
    return f"{budget.num_images:,} images" + (f" or {budget.seconds:g} s" if budget.seconds is not None else "")


def check_before_training(cli: ExperimentCLI, objects: Namespace) -> None:
    """Check all that can be known before a run directory is made, or a teacher or first stage is trained.

    In this order: what the model builds on; the account of W&B; that the model suits the data; its optimizers; the
    settings of the trainer; the validation images and the batches; the settings of the trainer that count batches. What
    the constructors of model, data and callbacks check was checked before, and what a Trainer checks comes with it,
    still before the directory.

    Raises:
        UserError: A training could not take place.
    """
    data: ImageDataModule = objects.data
    model: GenerativeModel = objects.model
    settings = cli.config.trainer
    if model.first_stage is not None and objects.reflow.teacher is not None:
        raise UserError("reflow.teacher: flows of latents are not trained on pairs; leave it or first_stage out")
    tracking.check_account(objects.wandb)
    model.check_data(data)
    model.check_optimizers()
    _check_trainer(settings, model)
    _check_times(settings)
    check_precision(settings.precision)
    num_images = len(data.images("train"))
    if objects.reflow.teacher is not None:
        num_images = data.check_pairs(objects.reflow.num_pairs)
    parts = settings.accumulate_grad_batches
    data.check_batches(num_images, parts, processes.number(settings))
    _check_counts(settings, num_images // data.batch_size, -(-data.num_val // data.batch_size))


def _check_counts(settings: Namespace, num_batches: int, num_val_batches: int) -> None:
    """Raise a UserError if a setting of the trainer leaves no batch, or comes after the last batch of an epoch."""
    used = {"limit_train_batches": num_batches, "limit_val_batches": num_val_batches}
    for key, number in used.items():
        share = settings[key]
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


def _check_trainer(settings: Namespace, model: GenerativeModel) -> None:
    """Nothing, if a training can take place.

    Raises:
        UserError: the trainer's settings leave nothing to train on, or do not split an optimization step.
    """
    for key in ("max_epochs", "max_steps", "limit_train_batches"):
        if settings[key] == 0:
            raise UserError(
                f"trainer.{key}: 0 trains on nothing; leave it out (--budget.num_images is the length of a training)"
            )
    if settings.overfit_batches:
        raise UserError(
            f"trainer.overfit_batches: {settings.overfit_batches} would replace the order of the batches, on which an "
            "exact resume rests; leave it out, and give a small data set or a small --budget.num_images"
        )
    if not model.automatic_optimization and settings.max_steps not in (None, -1):
        raise UserError(
            f"trainer.max_steps: {settings.max_steps} would count the steps of both networks of {model.title}; "
            "leave it out and set --budget.num_images"
        )
    model.check_trainer(settings)
    parts = settings.accumulate_grad_batches
    if parts < 1:
        raise UserError(f"trainer.accumulate_grad_batches: {parts} is not a number of micro-batches; give 1 or more")
    for key in COUNTED_IN_BATCHES if parts > 1 and model.automatic_optimization else ():
        if not isinstance(settings[key], int) and settings[key] not in (None, 0.0, 1.0):
            raise UserError(
                f"trainer.{key}: {settings[key]} may lie within a step of {parts} parts; give a number of steps"
            )


def _check_times(settings: Namespace) -> None:
    """Raise a UserError if the trainer's settings leave no time to train, or validate after no epochs."""
    try:
        left = Timer(settings.max_time).time_remaining()
    except (MisconfigurationException, TypeError) as error:
        raise UserError(f"trainer.max_time: {' '.join(str(error).split())}") from None
    if left is not None and left <= 0:
        raise UserError(
            f"trainer.max_time: {settings.max_time} trains on nothing; give more, or leave it out "
            "(--budget.num_images is the length of a training)"
        )
    every = settings.check_val_every_n_epoch
    if every is not None and every < 1:
        raise UserError(
            f"trainer.check_val_every_n_epoch: {every} is not a number of epochs; give at least 1, or null to count "
            "batches (--trainer.limit_val_batches 0 leaves validation out)"
        )


def _trainer(cli: ExperimentCLI, model: GenerativeModel) -> Trainer:
    quieten()
    settings = cli.config.trainer
    of_parts = _split_steps(model, settings)
    try:
        trainer = cli.instantiate_trainer(
            logger=False,
            enable_progress_bar=False,
            accelerator=processes.accelerator(settings.accelerator),
            **of_parts,
        )
        use_network_precision(trainer, model)
    except (MisconfigurationException, ValueError, RuntimeError, ImportError) as error:
        raise UserError(f"trainer: {' '.join(str(error).split())}") from None
    if any(isinstance(callback, GradientAccumulationScheduler) for callback in trainer.callbacks):  # type: ignore[attr-defined]
        raise UserError(
            "trainer.callbacks: GradientAccumulationScheduler would change the parts of a step; leave it out and set "
            "trainer.accumulate_grad_batches"
        )
    return trainer


def _split_steps(model: GenerativeModel, settings: Namespace) -> dict[str, Any]:
    """Has each optimization step computed in `trainer.accumulate_grad_batches` parts.

    A batch of Lightning's is then one part, so what the settings say of batches, it is told of parts. A model with
    manual optimization splits its batches by itself, and Lightning hears of no parts.

    Returns:
        What Lightning is told in the place of the settings.
    """
    parts = settings.accumulate_grad_batches
    model.split_steps(parts)
    if not model.automatic_optimization:
        return {"accumulate_grad_batches": 1}
    if parts == 1:
        return {}
    return {key: settings[key] * parts for key in COUNTED_IN_BATCHES if isinstance(settings[key], int)}


def _train(trainer: Trainer, objects: Namespace, config: dict[str, Any], run: Run) -> None:
    data, model = objects.data, objects.model
    model.training_seed = config["seed_everything"]
    objects.checkpoint.path = run.checkpoint
    objects.grid.folder = run.samples
    objects.ema.folder = run.snapshots
    _order_callbacks(trainer, [Monitor(), TrainingProgress(objects.budget.num_images)])
    if trainer.is_global_zero:
        for folder in (run.directory, run.checkpoint.parent, run.snapshots, run.samples):
            remove_temporaries(folder)
    resume = run.checkpoint.is_file()
    if resume:
        checkpoint = read_checkpoint(run)
        check_world_size(checkpoint, trainer)
        images = checkpoint["images_seen"]
        del checkpoint  # as large as the model
    else:
        model.initialise(data.examples("train", model.num_initial).images)
    trainer.loggers = tracking.training_loggers(objects.wandb, run, config)
    if resume:
        for logger in trainer.loggers:
            if isinstance(logger, tracking.MetricsFile):
                logger.resume(images)
        if trainer.is_global_zero:
            print(f"{run.directory}: resuming after {images:,} images", flush=True)
    begin = time.perf_counter()
    before = run.metadata.get("training_seconds", 0.0)

    def note_cost() -> None:
        run.update(training_seconds=before + time.perf_counter() - begin)

    objects.checkpoint.saved = note_cost
    failed = True
    try:
        with (
            objects.checkpoint.saved_when_interrupted(trainer),
            processes.losses_reported(trainer.global_rank, trainer.world_size),
        ):
            trainer.fit(model, datamodule=data, ckpt_path=run.checkpoint if resume else None, weights_only=True)
        if not from_first(model.images_seen > 0 and run.checkpoint.is_file()):
            raise UserError("trainer: the training ended before its first step; see its callbacks and limits")
        failed = False
    except LostProcessError:
        processes.end_others(trainer)
        raise
    except SystemExit as error:
        if not error.code:  # a process beside the first, stopped with it
            raise
        raise KeyboardInterrupt from None  # what Lightning makes of Ctrl-C
    except MisconfigurationException as error:
        raise UserError(f"trainer: {' '.join(str(error).split())}") from None
    except RuntimeError as error:  # of Lightning's EarlyStopping; any other is a fault of the code
        if not str(error).startswith("Early stopping conditioned on metric"):
            raise
        raise UserError(f"trainer.callbacks: {' '.join(str(error).split())}") from None
    finally:
        if trainer.is_global_zero:
            with suppress(UserError) if failed else nullcontext():  # a full disk was reported already
                note_cost()
            tracking.finish(failed)
    if trainer.is_global_zero:
        run.update(
            status="finished",
            images_seen=model.images_seen,
            device=device_name(trainer.strategy.root_device, trainer.world_size),
        )
        print(f"{run.directory}: trained on {model.images_seen:,} images", flush=True)
    trainer.strategy.barrier("finished")


def _order_callbacks(trainer: Trainer, added: list[Any]) -> None:
    """The average is updated before a grid or a checkpoint reads it, and numbers are checked before they are saved.

    The checkpoint comes last: at the end of the training it says that the last grid was drawn.
    """
    callbacks = added + trainer.callbacks  # type: ignore[attr-defined]
    kinds = (Checkpoint, SampleGrid)
    trainer.callbacks = sorted(callbacks, key=lambda callback: [isinstance(callback, kind) for kind in kinds])  # type: ignore[attr-defined]


def quieten() -> None:
    """Keeps Lightning's notices about what is decided here on purpose out of the output."""
    import logging

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*resuming from a checkpoint that ended before the epoch.*",
        ".*The number of training batches.*",
        ".*Total length of .* across ranks is zero.*",
        ".*isinstance\\(treespec, LeafSpec\\).*",
        ".*It is recommended to use `self.log\\('step'.*sync_dist=True.*",  # it is the same in all processes
    ):
        warnings.filterwarnings("ignore", message)
