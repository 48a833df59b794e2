"""Train an experiment in its run directory, after its teacher or first stage."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer

from lit_gen.core import scores
from lit_gen.core.errors import DivergedError, LostProcessError, UserError
from lit_gen.core.files import remove_temporaries
from lit_gen.core.processes import from_first
from lit_gen.evaluation.device import device_name
from lit_gen.evaluation.monitor import ScoreMonitor
from lit_gen.experiment import continuing
from lit_gen.experiment.checks import check_steps, check_training
from lit_gen.experiment.experiment import Experiment
from lit_gen.experiment.first_stage import FOLDER
from lit_gen.experiment.identity import recipe_identity, training_config, training_identity
from lit_gen.experiment.imported import imported_run
from lit_gen.experiment.loading import read_checkpoint
from lit_gen.experiment.parser import ExperimentCLI
from lit_gen.experiment.stages import Cost, learn_encoded, learn_pairs
from lit_gen.experiment.trainer import make_trainer, order_callbacks
from lit_gen.families.base import GenerativeModel
from lit_gen.families.clock import Clock, Division
from lit_gen.runs.directory import REFERENCE, Run
from lit_gen.runs.tracking import Tracker
from lit_gen.training import processes
from lit_gen.training.callbacks.budget import Budget
from lit_gen.training.callbacks.checkpoint import Checkpoint, threads_restored
from lit_gen.training.callbacks.cost import TrainingCost
from lit_gen.training.callbacks.ema import EMA
from lit_gen.training.callbacks.monitor import Monitor
from lit_gen.training.callbacks.progress import TrainingProgress
from lit_gen.training.callbacks.sample_grid import SampleGrid


def fit_run(cli: ExperimentCLI, experiment: Experiment) -> Run:
    """Train the model of an experiment in its run directory, and before it its teacher or first stage if needed.

    A finished run is left as it is, as is an imported one; an unfinished one is resumed from its last checkpoint.

    Raises:
        UserError: If a setting does not suit the model, the data, the machine or what the model builds on.
    """
    data, model, stage = experiment.data, experiment.model, experiment.stage
    config = cli.resolved()
    if (imported := imported_run(cli.words, config)) is not None:
        return imported
    check_training(experiment)
    if not experiment.monitor.every:
        for listener in scores.listeners:
            listener.expect([])
    model.follow_classes(data)
    flow, spent = 1, Cost()
    if stage is not None:
        spent = learn_encoded(cli, experiment, fit_run)
        # the run keeps a copy of the first stage in its own folder
        config["first_stage"] = config["first_stage"] | {"run": FOLDER, "run_overrides": None}
    elif experiment.reflow.teacher is not None:
        flow, spent = learn_pairs(cli, experiment, fit_run)
    fingerprint = data.training_fingerprint
    run = continuing.find_run(experiment.run, f"{data.name}_{model.title.lower()}", config, fingerprint)
    settings, kept = continuing.keep_shares(run, experiment.trainer, model)
    check_steps(settings, model)
    trainer = make_trainer(settings, model, cli.instantiate_trainer)
    model.clock = Clock(config["seed_everything"], kept=kept)
    with processes.turn(run, trainer) as unfinished:
        if unfinished:  # the last checks that can leave no run behind
            experiment.budget.check_left(spent.seconds)
            model.check_training()
        if unfinished and processes.is_first():
            run.create(_kept(config), **_facts(experiment, config, flow, spent))
            if stage is not None:
                stage.save(run.directory / FOLDER)
            experiment.tracking.announce(run.directory.parent)
        if unfinished:
            with threads_restored():
                _train(trainer, experiment, config, run, spent.seconds)
        elif processes.is_first():
            print(f"{run.directory}: this run is finished", flush=True)
    return run


def _kept(config: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration that a run keeps, without the settings of one evaluation."""
    return config | {"sampler": None, "evaluation": config["evaluation"] | {"other_data": False}}


def _facts(experiment: Experiment, config: dict[str, Any], flow: int, spent: Cost) -> dict[str, Any]:
    """Return the content of run.json for a new run."""
    data, model, stage = experiment.data, experiment.model, experiment.stage
    fingerprint = data.training_fingerprint
    earlier_flops = {} if spent.flops is None else {"earlier_flops": spent.flops}
    of_recipe = fingerprint if stage is None else stage.key(data, "train", model.capabilities.learns, "recipe")
    return {
        "identity": training_identity(config, fingerprint),
        "recipe": recipe_identity(config, of_recipe),
        "training": training_config(config),
        "title": f"{model.title}, class-conditional" if model.num_classes else model.title,
        "flow": flow,
        "seed": config["seed_everything"],
        "earlier_seconds": spent.seconds,
        **earlier_flops,
        "data": {"fingerprint": fingerprint} | data.describe().to_dict(),
    }


def _train(trainer: Trainer, experiment: Experiment, config: dict[str, Any], run: Run, spent: float) -> None:
    """Train in a run directory, from its last checkpoint if there is one, and record the end in run.json."""
    data, model = experiment.data, experiment.model
    if trainer.is_global_zero:
        for folder in (run.directory, run.checkpoint.parent, run.snapshots, run.samples):
            remove_temporaries(folder)
    resume = _images_before(trainer, run, config, model)
    if resume is None:
        model.initialise(data.examples("train", model.num_initial).images)
    trainer.loggers = experiment.tracking.loggers(run, config, resume)
    if resume is not None and trainer.is_global_zero:
        print(f"{run.directory}: resuming after {resume:,} images", flush=True)
    cost = TrainingCost()
    with _recorded(trainer, run, lambda: cost.flops(model.images_seen)) as record_cost, _explained(trainer):
        checkpoint = Checkpoint(experiment.checkpoint, run.checkpoint, record_cost)
        _add_callbacks(trainer, experiment, run, checkpoint, cost, spent)
        with (
            checkpoint.saved_when_interrupted(trainer),
            processes.losses_reported(trainer.global_rank, trainer.world_size),
        ):
            last = None if resume is None else run.checkpoint
            trainer.fit(model, datamodule=data, ckpt_path=last, weights_only=True)
        if not from_first(model.images_seen > 0 and run.checkpoint.is_file()):
            raise UserError("trainer: the run ended before its first step; check its callbacks and limits")
    if trainer.is_global_zero:
        device = device_name(trainer.strategy.root_device, trainer.world_size)
        run.update(status="finished", images_seen=model.images_seen, device=device)
        print(f"{run.directory}: trained on {model.images_seen:,} images", flush=True)
    trainer.strategy.barrier("finished")


def _add_callbacks(
    trainer: Trainer, experiment: Experiment, run: Run, checkpoint: Checkpoint, cost: TrainingCost, spent: float
) -> None:
    """Add the callbacks of every training run to those of the user."""
    first: list[Callback] = [Monitor(), TrainingProgress(experiment.budget.num_images)]
    last: list[Callback] = [
        Budget(experiment.budget, spent),
        cost,
        checkpoint,
        EMA(experiment.ema, run.snapshots),
        SampleGrid(experiment.grid, run.samples),
    ]
    if experiment.monitor.every:
        cache, path = run.directory.parent / REFERENCE, run.best_checkpoint
        settings = (experiment.monitor, experiment.evaluation)
        last.append(
            ScoreMonitor(
                *settings,
                checkpoint,
                path,
                cache,
                saved=lambda best: run.update(best=best),
                axes=lambda images: {} if (flops := cost.flops(images)) is None else {"train/flops": flops},
            )
        )
    order_callbacks(trainer, first, last)


def _images_before(trainer: Trainer, run: Run, config: dict[str, Any], model: GenerativeModel) -> int | None:
    """Return the number of images in the last checkpoint, or None if there is no checkpoint to resume from."""
    if not run.checkpoint.is_file():
        return None
    checkpoint = read_checkpoint(run)
    images: int = checkpoint["images_seen"]
    before = checkpoint.get("world_size", trainer.world_size)
    if before != trainer.world_size and trainer.is_global_zero:
        today = Division(trainer.world_size, model.accumulate)
        continuing.record(run, config, model.clock.kept, images, before, today)
    return images


@contextmanager
def _recorded(trainer: Trainer, run: Run, flops: Callable[[], float | None]) -> Iterator[Callable[[], None]]:
    """Record the cost of the training at the end of the block, and close the loggers; yield what records it earlier."""
    begin = time.perf_counter()
    before = run.metadata.get("training_seconds", 0.0)

    def record_cost() -> None:
        counted = flops()
        more = {} if counted is None else {"training_flops": counted}
        run.update(training_seconds=before + time.perf_counter() - begin, **more)

    trackers = [logger for logger in trainer.loggers if isinstance(logger, Tracker)]
    failed = True
    try:
        yield record_cost
        failed = False
    except DivergedError as error:
        if trainer.is_global_zero:
            for tracker in trackers:
                tracker.alert("training diverged", f"{run.directory.name}: {error}")
        raise
    finally:
        if trainer.is_global_zero:
            with suppress(UserError) if failed else nullcontext():  # a full disk was reported already
                record_cost()
            for tracker in trackers:
                tracker.finish(failed)


@contextmanager
def _explained(trainer: Trainer) -> Iterator[None]:
    """Turn what Lightning raises in the block into one line, and end the other processes if one is lost."""
    try:
        yield
    except LostProcessError:
        processes.end_others(trainer)
        raise
    except SystemExit as error:
        if not error.code:  # another process than the first, stopped with it
            raise
        raise KeyboardInterrupt from None  # Lightning turns Ctrl-C into an exit
    except MisconfigurationException as error:
        raise UserError(f"trainer: {' '.join(str(error).split())}; correct its settings") from None
    except RuntimeError as error:  # of Lightning's EarlyStopping; any other is a fault of the code
        if not str(error).startswith("Early stopping conditioned on metric"):
            raise
        reason = " ".join(str(error).split())
        raise UserError(f"trainer.callbacks: {reason}; let EarlyStopping monitor a metric that is logged") from None
