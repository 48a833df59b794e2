"""The verbs that need a configuration: fit, run, evaluate, sample.

Data flows one way: config -> data -> model -> samples -> metrics -> result file.
"""

import argparse
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.fabric import Fabric
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import _get_rank
from lightning.pytorch import Trainer

from lit_gen import tracking
from lit_gen.callbacks import Monitor, TrainingProgress
from lit_gen.callbacks.checkpoint import Checkpoint
from lit_gen.callbacks.ema import load_weights
from lit_gen.callbacks.progress import image_progress
from lit_gen.callbacks.sample_grid import SampleGrid
from lit_gen.config import ExperimentCLI, recipe_identity, training_config, training_identity
from lit_gen.data import ImageDataModule
from lit_gen.diffusion.denoisers import GaussianMixtureDenoiser
from lit_gen.errors import UserError
from lit_gen.evaluation import device_name, ranks
from lit_gen.images import check_ending, save_images
from lit_gen.metrics import quantise
from lit_gen.models.base import GenerativeModel
from lit_gen.noise import Noise
from lit_gen.runs import Run

KEYS_OF_AN_EVALUATION = ("sampler", "evaluation", "wandb")


def fit(arguments: list[str]) -> Run:
    """Trains a model in its run directory, from the last checkpoint if there is one.

    A run that is finished is left as it is. Returns the run.
    """
    cli = ExperimentCLI(arguments)
    return _fit(cli, cli.objects())


def run(arguments: list[str]) -> Path:
    """Fits, unless a finished run of the same training exists, then evaluates. Returns the result's path."""
    cli = ExperimentCLI(arguments)
    objects = cli.objects()
    _check_sampler(objects)
    objects.evaluation.check(objects.data)
    trained = _fit(cli, objects)
    _launch(cli)
    return _evaluate(trained, cli, objects)


def evaluate(arguments: list[str]) -> Path:
    """Scores a run with a sampler and a protocol. Returns the result's path."""
    if arguments and arguments[0] in ("-h", "--help"):
        print(
            "usage: lit-gen evaluate RUN [--sampler Heun --sampler.steps 18] [--evaluation.num_samples 10000 ...]\n"
            "lit-gen fit --help lists the keys of sampler, evaluation and wandb"
        )
        raise SystemExit(0)
    run, cli = _reopen(arguments, "evaluate")
    objects = cli.objects()
    _check_sampler(objects)
    _launch(cli)
    return _evaluate(run, cli, objects)


def sample(arguments: list[str]) -> None:
    """Draws images from a run into a grid, an archive or a folder."""
    parser = argparse.ArgumentParser(prog="lit-gen sample", add_help=False)
    parser.add_argument("-n", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("samples.png"))
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--weights", choices=("ema", "raw"), default="ema")
    if arguments and arguments[0] in ("-h", "--help"):
        print(
            "usage: lit-gen sample RUN [-n 64] [--seed 0] [--first 0] [--out samples.png | FOLDER | FILE.npz]\n"
            "                          [--weights ema|raw] [--batch-size 256] [--sampler Heun --sampler.steps 18 ...]"
        )
        return
    own, rest = parser.parse_known_args(arguments)
    for name, value in {"-n": own.n, "--batch-size": own.batch_size}.items():
        if value < 1:
            raise UserError(f"{name}: {value} is not a positive number of images")
    check_ending(own.out)
    run, cli = _reopen(rest, "sample")
    objects = cli.objects()
    _check_sampler(objects)
    model = load_model(run, objects.model, own.weights).to(_device(cli))
    parts = []
    with image_progress("sampling", own.n) as progress:
        for first in range(0, own.n, own.batch_size):
            indices = range(own.first + first, own.first + min(first + own.batch_size, own.n))
            parts.append(quantise(model.sample(Noise(own.seed, indices, model.device), sampler=objects.sampler)).cpu())
            if progress is not None:
                progress.update(first + len(indices))
    labels = torch.arange(own.first, own.first + own.n) % model.num_classes if model.num_classes else None
    save_images(torch.cat(parts), labels, own.out)
    settings = f"seed {own.seed}, {own.weights} weights, {model.nfe:g} network evaluations"
    print(f"{own.n} images of {run.directory} ({settings}) -> {own.out}")


def read_checkpoint(run: Run) -> dict[str, Any]:
    """A run's last checkpoint.

    Raises:
        UserError: the file is damaged.
    """
    try:
        checkpoint: dict[str, Any] = torch.load(run.checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises any of half a dozen
        reason = str(error).splitlines()[0]
        raise UserError(f"{run.checkpoint}: not a readable checkpoint ({reason}); delete it and train again") from None
    return checkpoint


def load_model(run: Run, model: GenerativeModel, weights: str) -> GenerativeModel:
    """Loads a run's last checkpoint into a model, ready to be sampled.

    Raises:
        UserError: the checkpoint is damaged, or was made by another network.
    """
    checkpoint = read_checkpoint(run)
    try:
        model.load_state_dict(checkpoint["state_dict"])
        if weights == "ema":
            load_weights(model.generator, checkpoint["ema"]["weights"])
    except (RuntimeError, KeyError) as error:
        raise UserError(
            f"{run.checkpoint}: does not fit the model of {run.config} ({' '.join(str(error).split())[:200]}); "
            "restore the run's own config.yaml, or train again"
        ) from None
    model.images_seen = checkpoint["images_seen"]
    return model.eval()


def _fit(cli: ExperimentCLI, objects: Namespace) -> Run:
    config = cli.resolved()
    data: ImageDataModule = objects.data
    model: GenerativeModel = objects.model
    identity = training_identity(config, data.fingerprint("train"))
    trainer = _trainer(cli)
    run = Run.of(objects.run, f"{data.name}_{type(model).__name__.lower()}", identity)
    if _is_first_process():
        with run.lock():
            if run.finished:
                print(f"{run.directory}: this training is finished", flush=True)
                return run
            run.create(
                config | {"sampler": None},  # of an evaluation: a run must not depend on which of them came first
                identity=identity,
                recipe=recipe_identity(config, data.fingerprint("train")),
                training=training_config(config),
                seed=config["seed_everything"],
                data={"name": data.name, "fingerprint": data.fingerprint("train")},
            )
            tracking.announce(objects.wandb)
            _train(trainer, objects, config, run)
    elif not run.finished:
        _train(trainer, objects, config, run)
    return run


def _trainer(cli: ExperimentCLI) -> Trainer:
    try:
        return cli.instantiate_trainer(logger=False, enable_progress_bar=False)
    except (MisconfigurationException, ValueError, RuntimeError, ImportError) as error:
        raise UserError(f"trainer: {' '.join(str(error).split())}") from None


@contextmanager
def _saved_when_interrupted(checkpoint: Checkpoint, trainer: Trainer) -> Iterator[None]:
    """Ctrl-C saves a checkpoint after the batch in progress; a second one stops at once.

    Several processes do not get the signal at the same batch, so they stop at once and go on from the last checkpoint.
    """
    if trainer.world_size > 1 or threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        if checkpoint.interrupted:
            raise KeyboardInterrupt
        checkpoint.interrupted = True
        print("stopping after this batch; its checkpoint is saved", file=sys.stderr, flush=True)

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _train(trainer: Trainer, objects: Namespace, config: dict[str, Any], run: Run) -> None:
    _quieten()
    data, model = objects.data, objects.model
    model.training_seed = config["seed_everything"]
    objects.checkpoint.path = run.checkpoint
    objects.grid.folder = run.samples
    trainer.loggers = tracking.training_loggers(objects.wandb, run, config)
    _order_callbacks(trainer, [Monitor(), TrainingProgress(objects.budget.num_images)])
    resume = run.checkpoint.is_file()
    if resume:
        images = read_checkpoint(run)["images_seen"]
        for logger in trainer.loggers:
            if isinstance(logger, tracking.MetricsFile):
                logger.resume(images)
        if trainer.is_global_zero:
            print(f"{run.directory}: resuming after {images:,} images", flush=True)
    begin = time.perf_counter()
    before = run.metadata.get("training_seconds", 0.0)
    try:
        with _saved_when_interrupted(objects.checkpoint, trainer):
            trainer.fit(model, datamodule=data, ckpt_path=run.checkpoint if resume else None, weights_only=True)
    except SystemExit:  # what Lightning makes of Ctrl-C
        raise KeyboardInterrupt from None
    except MisconfigurationException as error:
        raise UserError(f"trainer: {' '.join(str(error).split())}") from None
    finally:
        if trainer.is_global_zero:
            run.update(training_seconds=before + time.perf_counter() - begin)
            tracking.finish()
    if trainer.is_global_zero:
        run.update(
            status="finished",
            images_seen=model.images_seen,
            device=device_name(trainer.strategy.root_device, trainer.world_size),
        )
        print(f"{run.directory}: trained on {model.images_seen:,} images", flush=True)
    trainer.strategy.barrier("finished")


def _order_callbacks(trainer: Trainer, added: list[Any]) -> None:
    """The average is updated before a checkpoint or a grid reads it, and numbers are checked before they are saved."""
    callbacks = added + trainer.callbacks  # type: ignore[attr-defined]
    trainer.callbacks = sorted(callbacks, key=lambda callback: isinstance(callback, (SampleGrid, Checkpoint)))  # type: ignore[attr-defined]


def _evaluate(run: Run, cli: ExperimentCLI, objects: Namespace) -> Path:
    model = load_model(run, objects.model, objects.evaluation.weights).to(_device(cli))
    cache = run.directory.parent / ".reference"
    result, path, computed = objects.evaluation(model, objects.data, objects.sampler, run, cache)
    if ranks()[0] == 0:
        if computed:
            tracking.log_evaluation(objects.wandb, run, result, path.with_name("samples.png"), cli.resolved())
        _print_result(result, path, computed)
    return path


def _print_result(result: dict[str, Any], path: Path, computed: bool) -> None:
    protocol, sampler = result["protocol"], result["sampler"]
    how = "one pass" if sampler is None else f"{sampler['name']}, {sampler['grid']['name']} grid"
    values = ", ".join(f"{name} {value:.4g}" for name, value in result["metrics"].items() if not name.endswith("_std"))
    print(
        f"{result['model']} ({how}, NFE {result['nfe']:g}, {result['weights']} weights, seed {result['seed']}): "
        f"{values}\n"
        f"  {protocol['num_samples']} samples against {protocol['num_real']} images of {protocol['data']}/"
        f"{protocol['split']}, {protocol['feature_net']} features\n"
        f"  {path}{'' if computed else ' (computed before)'}",
        flush=True,
    )


def _reopen(arguments: list[str], verb: str) -> tuple[Run, ExperimentCLI]:
    """The run that the first argument names, with its configuration and the changes that the others ask for."""
    if not arguments or arguments[0].startswith("-"):
        raise UserError(f"usage: lit-gen {verb} RUN [--sampler Heun --sampler.steps 18 ...]; RUN is a run directory")
    run = Run.open(arguments[0])
    own = ["--config", str(run.config)]
    saved = ExperimentCLI(own).resolved()
    cli = ExperimentCLI([*own, *arguments[1:]])
    asked = cli.resolved()
    changed = [
        f"{section}.{key}"
        for section in ("model", "data", "budget", "ema", "trainer")
        for key in asked[section]
        if asked[section][key] != saved[section].get(key)
        and f"{section}.{key}" not in ("data.num_workers", "trainer.accelerator", "trainer.devices", "trainer.strategy")
    ]
    if changed:
        raise UserError(
            f"{', '.join(changed)}: belongs to the training of {run.directory}, which is done; lit-gen {verb} takes "
            f"{', '.join(KEYS_OF_AN_EVALUATION)} (use lit-gen run to train with other settings)"
        )
    return run, cli


def _check_sampler(objects: Namespace) -> None:
    """Says that a sampler does not suit the model before minutes of training, not after."""
    if objects.sampler is not None and not objects.model.takes_sampler:
        raise UserError(
            f"sampler: {type(objects.model).__name__} draws an image in one evaluation and takes no sampler; "
            "leave --sampler out"
        )
    if objects.sampler is not None:
        exact = GaussianMixtureDenoiser(torch.zeros(1, 1), torch.ones(1))
        objects.sampler.sample(exact, objects.model.schedule, Noise(0, range(1)), (1,))


def _launch(cli: ExperimentCLI) -> None:
    """Starts the processes of a distributed evaluation, one for each device, unless a training has done so."""
    trainer = cli.config.trainer
    if trainer.devices in ("auto", 1, "1") or ranks()[1] > 1:
        return
    Fabric(accelerator=trainer.accelerator, devices=trainer.devices, strategy=trainer.strategy).launch()


def _device(cli: ExperimentCLI) -> torch.device:
    if cli.config.trainer.accelerator == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def _is_first_process() -> bool:
    """Whether this process started the others, or stands alone."""
    return (_get_rank() or 0) == 0


def _quieten() -> None:
    """Keeps Lightning's notices about what is decided here on purpose out of the output."""
    import logging

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*resuming from a checkpoint that ended before the epoch.*",
        ".*The number of training batches.*",
        ".*Total length of .* across ranks is zero.*",
        ".*isinstance\\(treespec, LeafSpec\\).*",
    ):
        warnings.filterwarnings("ignore", message)
