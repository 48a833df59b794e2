"""The verbs that need a configuration: fit, run, evaluate, sample.

Data flows one way: config -> data -> model -> samples -> metrics -> result file.
"""

import argparse
import itertools
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer

from lit_gen import processes, tracking
from lit_gen.averages import Width, parse_weights, reconstruct
from lit_gen.callbacks import Monitor, TrainingProgress
from lit_gen.callbacks.checkpoint import Checkpoint, check_world_size
from lit_gen.callbacks.ema import load_weights, named_weights
from lit_gen.callbacks.progress import image_progress
from lit_gen.callbacks.sample_grid import SampleGrid
from lit_gen.config import (
    ExperimentCLI,
    as_arguments,
    belonging_to,
    recipe_identity,
    training_config,
    training_identity,
)
from lit_gen.data import ImageDataModule, ImageSource
from lit_gen.diffusion.samplers import DiffusionSampler
from lit_gen.ema import gamma_of
from lit_gen.errors import UserError
from lit_gen.evaluation import device_name
from lit_gen.first_stage import FOLDER, FirstStage
from lit_gen.images import check_ending, save_images, save_tiles
from lit_gen.loading import load_model, load_weaker, open_finished, read_checkpoint
from lit_gen.metrics import as_stored
from lit_gen.models.base import GenerativeModel
from lit_gen.models.diffusion import Diffusion
from lit_gen.models.flow_matching import FlowMatching
from lit_gen.noise import Noise
from lit_gen.precision import use_network_precision
from lit_gen.reflow import Reflow
from lit_gen.report.leaderboard import describe_likelihood
from lit_gen.report.trajectories import Trajectories, check_path
from lit_gen.runs import Run

KEYS_OF_AN_EVALUATION = ("sampler", "evaluation", "wandb")
NUM_INITIAL = 512
"""Training images by which a model may set its initial values."""
KEYS_OF_THE_MACHINE = (
    "data.num_workers",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
)


def fit(arguments: list[str]) -> Run:
    """Trains a model in its run directory, from the last checkpoint if there is one.

    A run that is finished is left as it is. Returns the run.
    """
    cli = ExperimentCLI(arguments)
    return _fit(cli, cli.objects())


def run(arguments: list[str]) -> Path:
    """Fits, unless a finished run of the same training exists, then evaluates. Returns the result's path."""
    cli = ExperimentCLI(arguments)
    return _evaluate(_fit(cli, _checked(cli)), cli)


def _checked(cli: ExperimentCLI) -> Namespace:
    """The objects of an experiment; says that its evaluation cannot be made before minutes of training, not after."""
    objects = cli.objects()
    _check_sampler(objects, processes.device(cli.config.trainer))
    if parse_weights(objects.evaluation.weights, "evaluation.weights") and not objects.ema.gammas:
        raise UserError(
            f"evaluation.weights: {objects.evaluation.weights} is made of power-function averages; add "
            "--ema.stds '[0.05, 0.1]' to keep them"
        )
    objects.model.check_data(objects.data)
    if objects.first_stage.run is not None:
        objects.first_stage.check(objects.data)
    objects.evaluation.check(objects.data)
    return objects


def evaluate(arguments: list[str]) -> Path:
    """Scores a run with a sampler and a protocol. Returns the result's path."""
    if arguments and arguments[0] in ("-h", "--help"):
        print(
            "usage: lit-gen evaluate RUN [--sampler Heun --sampler.steps 18] [--evaluation.num_samples 10000 ...]\n"
            "lit-gen fit --help lists the keys of sampler, evaluation and wandb"
        )
        raise SystemExit(0)
    return _evaluate(*_reopen(arguments, "evaluate"))


def sample(arguments: list[str]) -> None:
    """Draws images from a run into a grid, an archive or a folder."""
    parser = argparse.ArgumentParser(prog="lit-gen sample", add_help=False)
    parser.add_argument("-n", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("samples.png"))
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--weights", default="ema")
    parser.add_argument("--trajectory", type=Path)
    parser.add_argument("--picture")
    if arguments and arguments[0] in ("-h", "--help"):
        print(
            "usage: lit-gen sample RUN [-n 64] [--seed 0] [--first 0] [--out samples.png | FOLDER | FILE.npz]\n"
            "                          [--weights ema|raw|ema:0.1] [--batch-size 256] [--trajectory FILE.png]\n"
            "                          [--picture reconstructions|interpolations|completions|...]\n"
            "                          [--sampler Heun --sampler.steps 18 ...]"
        )
        return
    own, rest = parser.parse_known_args(arguments)
    for name, value in {"-n": own.n, "--batch-size": own.batch_size}.items():
        if value < 1:
            raise UserError(f"{name}: {value} is not a positive number of images")
    check_ending(own.out)
    if own.trajectory is not None:
        check_path(own.trajectory)
        if own.picture is not None:
            raise UserError("--trajectory: belongs to images that are drawn, not to a --picture; give one of the two")
    parse_weights(own.weights, "--weights")
    run, cli = _reopen(rest, "sample")
    objects = cli.objects()
    _check_sampler(objects, processes.device(cli.config.trainer))
    model = load_model(run, objects.model, own.weights).to(processes.device(cli.config.trainer))
    source: ImageSource = objects.data.source
    if own.picture is not None:
        _show(model, objects, own)
        return
    if objects.sampler is not None:
        objects.sampler.prepare(model, objects.data)
    sampler, trajectories = objects.sampler or model.default_sampler(), None
    if own.trajectory is not None:
        if not isinstance(sampler, DiffusionSampler):
            raise UserError(f"--trajectory: {type(model).__name__} carries no noise to images in steps; leave it out")
        if model.first_stage is not None:
            raise UserError(f"--trajectory: {model.title} carries noise to latents, which are no images; leave it out")
        trajectories = Trajectories(sampler, 8 if source.quantised else 40)
        sampler = trajectories.sampler
    parts = []
    with image_progress("sampling", own.n) as progress:
        for first in range(0, own.n, own.batch_size):
            indices = range(own.first + first, own.first + min(first + own.batch_size, own.n))
            samples = model.sample(Noise(own.seed, indices, model.device), sampler=sampler)
            parts.append(as_stored(samples, source).cpu())
            if progress is not None:
                progress.update(first + len(indices))
    labels = torch.arange(own.first, own.first + own.n) % model.num_classes if model.num_classes else None
    save_images(torch.cat(parts), labels, source, own.out, own.first)
    settings = f"seed {own.seed}, {own.weights} weights, {model.nfe:g} network evaluations"
    print(f"{own.n} images of {run.directory} ({settings}) -> {own.out}")
    if trajectories is not None:
        levels = ", ".join(f"{level:.3g}" for level in trajectories.save(own.trajectory, source))
        print(f"trajectories of the first, at the noise levels sigma / alpha = {levels} -> {own.trajectory}")


def _show(model: GenerativeModel, objects: Namespace, own: argparse.Namespace) -> None:
    """Saves one of the pictures that a family makes of images of the data."""
    if own.out.suffix != ".png":
        raise UserError(f"--out: {own.out} must end in .png for --picture")
    save_tiles(model.show(own.picture, objects.data, own.n, own.seed, objects.sampler), own.out)
    print(f"{own.picture} of {own.n} images of {objects.data.name} -> {own.out}")


def reflow(arguments: list[str]) -> Run:
    """Trains a run's model once more, on pairs that the run draws. Returns the new run."""
    if not arguments or arguments[0].startswith("-"):
        print(
            "usage: lit-gen reflow RUN [--distill] [--reflow.num_pairs 50000] [--reflow.sampler Heun ...]\n"
            "                          [--budget.num_images ...]\n"
            "RUN is a finished run of a RectifiedFlow. --distill learns to draw in one step. lit-gen fit --help lists "
            "the keys of reflow"
        )
        raise SystemExit(0 if arguments and arguments[0] in ("-h", "--help") else 2)
    run, rest = one_run(arguments, "reflow")
    if "--distill" in rest:
        words = (word for word in rest if word != "--distill")
        rest = ["--model.density", "noise", "--evaluation.likelihood", "0", *words]
    teacher = ["--reflow.teacher", str(run.directory), "--reflow.teacher_overrides", "null"]
    cli = ExperimentCLI(["--config", str(run.config), *teacher, *rest])
    return _fit(cli, cli.objects())


def ema(directory: Path, std: float, images: int | None = None) -> Path:
    """Makes the power-function average of a width from the snapshots of a run. Returns its file."""
    gamma_of(std, "--std")
    run, width = Run.open(directory), Width(std, images)
    path, facts = reconstruct(run, width)
    print(
        f"{path}: std {std:g} after {int(facts['images']):,} images, from {facts['snapshots']} snapshots "
        f"(profile error {float(facts['profile_error']):.2%})\n"
        f"  lit-gen evaluate {run.directory} --evaluation.weights {width}\n"
        f"  lit-gen sample {run.directory} --weights {width}"
    )
    return path


def _fit(cli: ExperimentCLI, objects: Namespace) -> Run:
    config = cli.resolved()
    data: ImageDataModule = objects.data
    model: GenerativeModel = objects.model
    stage: FirstStage | None = model.first_stage
    if stage is not None and objects.reflow.teacher is not None:
        raise UserError("reflow.teacher: flows of latents are not trained on pairs; leave it or first_stage out")
    model.check_data(data)
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
        if unfinished and processes.is_first():
            run.create(
                config | {"sampler": None},  # of an evaluation: a run must not depend on which of them came first
                identity=identity,
                recipe=recipe_identity(config, of_recipe),
                training=training_config(config),
                title=model.title,
                flow=flow,
                seed=config["seed_everything"],
                earlier_seconds=objects.budget.spent,
                data={"name": data.name, "fingerprint": fingerprint},
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
    teacher: GenerativeModel = ExperimentCLI(["--config", str(run.config)]).objects().model
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
        stage.load(Path(stage.run))
    else:
        stage.load(_named_run(cli, "first_stage.run", stage.run, "data.num_val").directory)
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
    return _fit(first, objects)


def _length(cli: ExperimentCLI) -> str:
    """The budget of a training."""
    budget = cli.config.budget
    return f"{budget.num_images:,} images" + (f" or {budget.seconds:g} s" if budget.seconds is not None else "")


def _trainer(cli: ExperimentCLI, model: GenerativeModel) -> Trainer:
    _quieten()
    settings = cli.config.trainer
    for key in ("max_epochs", "max_steps", "limit_train_batches"):
        if settings[key] == 0:
            raise UserError(
                f"trainer.{key}: 0 trains on nothing; leave it out (--budget.num_images is the length of a training)"
            )
    if settings.accumulate_grad_batches != 1:  # gradients of half a step are in no checkpoint
        raise UserError(
            f"trainer.accumulate_grad_batches: {settings.accumulate_grad_batches} is not supported; leave it out and "
            "set data.batch_size, the images of one optimization step over all processes"
        )
    try:
        trainer = cli.instantiate_trainer(
            logger=False, enable_progress_bar=False, accelerator=processes.accelerator(settings.accelerator)
        )
        use_network_precision(trainer, model)
        return trainer
    except (MisconfigurationException, ValueError, RuntimeError, ImportError) as error:
        raise UserError(f"trainer: {' '.join(str(error).split())}") from None


def _train(trainer: Trainer, objects: Namespace, config: dict[str, Any], run: Run) -> None:
    data, model = objects.data, objects.model
    model.training_seed = config["seed_everything"]
    objects.checkpoint.path = run.checkpoint
    objects.grid.folder = run.samples
    objects.ema.folder = run.snapshots
    _order_callbacks(trainer, [Monitor(), TrainingProgress(objects.budget.num_images)])
    resume = run.checkpoint.is_file()
    if resume:
        checkpoint = read_checkpoint(run)
        check_world_size(checkpoint, trainer)
        images = checkpoint["images_seen"]
        del checkpoint  # as large as the model
    else:
        model.initialise(data.examples("train", NUM_INITIAL).images)
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
        with objects.checkpoint.saved_when_interrupted(trainer):
            trainer.fit(model, datamodule=data, ckpt_path=run.checkpoint if resume else None, weights_only=True)
        failed = False
    except SystemExit as error:
        if not error.code:  # a process beside the first, stopped with it
            raise
        raise KeyboardInterrupt from None  # what Lightning makes of Ctrl-C
    except MisconfigurationException as error:
        raise UserError(f"trainer: {' '.join(str(error).split())}") from None
    finally:
        if trainer.is_global_zero:
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
    """The average is updated before a checkpoint or a grid reads it, and numbers are checked before they are saved."""
    callbacks = added + trainer.callbacks  # type: ignore[attr-defined]
    trainer.callbacks = sorted(callbacks, key=lambda callback: isinstance(callback, (SampleGrid, Checkpoint)))  # type: ignore[attr-defined]


def _evaluate(run: Run, cli: ExperimentCLI) -> Path:
    """Scores a run with objects built anew: one that was trained may keep the precision of its training."""
    objects, device = cli.objects(), processes.device(cli.config.trainer)
    _check_sampler(objects, device)
    processes.launch(cli.config.trainer)
    model = load_model(run, objects.model, objects.evaluation.weights).to(device)
    cache = run.directory.parent / ".reference"
    if objects.sampler is not None:
        objects.sampler.prepare(model, objects.data)
    result, path, computed = objects.evaluation(model, objects.data, objects.sampler, run, cache)
    if processes.ranks()[0] == 0:
        tracking.log_evaluation(objects.wandb, run, result, path.parent, cli.resolved())
        _print_result(result, path, computed)
    return path


def _print_result(result: dict[str, Any], path: Path, computed: bool) -> None:
    protocol, sampler = result["protocol"], result["sampler"]
    shown = {name: value for name, value in result["metrics"].items() if not name.endswith(("_std", "_stderr"))}
    how = sampler["name"] if sampler is not None else "its own way"
    if sampler is not None and "grid" in sampler:
        how += f", {sampler['grid']['name']} grid"
    values = ", ".join(f"{name} {value:.4g}" for name, value in shown.items())
    likelihood = result.get("likelihood")
    bits = "" if likelihood is None else f"  likelihood {describe_likelihood(likelihood['protocol'])}\n"
    print(
        f"{result['model']} ({how}, NFE {result['nfe']:g}, {result['weights']} weights, seed {result['seed']}): "
        f"{values}\n"
        f"  {protocol['num_samples']} samples against {protocol['num_real']} images of {protocol['data']}/"
        f"{protocol['split']}, {protocol['feature_net']} features\n"
        f"{bits}"
        f"  {path}{'' if computed else ' (computed before)'}",
        flush=True,
    )


def one_run(arguments: list[str], verb: str) -> tuple[Run, list[str]]:
    """The run that the first argument names, and the arguments after it.

    Raises:
        UserError: it is no run; or more than one is named, as by a pattern that the shell has filled in.
    """
    names = list(itertools.takewhile(lambda word: not word.startswith("-"), arguments))
    if len(names) > 1:
        more = f" and {len(names) - 2} more" if len(names) > 2 else ""
        raise UserError(
            f"RUN: lit-gen {verb} takes one run at a time, not {names[0]} and {names[1]}{more}; do several one after "
            f'another: for run in {names[0]} {names[1]}; do lit-gen {verb} "$run" ...; done'
        )
    return Run.open(names[0]), arguments[1:]


def _reopen(arguments: list[str], verb: str) -> tuple[Run, ExperimentCLI]:
    """The run that the first argument names, with its configuration and the changes that the others ask for."""
    if not arguments or arguments[0].startswith("-"):
        raise UserError(f"usage: lit-gen {verb} RUN [--sampler Heun --sampler.steps 18 ...]; RUN is a run directory")
    run, rest = one_run(arguments, verb)
    own = ["--config", str(run.config)]
    saved = ExperimentCLI(own).resolved()
    cli = ExperimentCLI([*own, *rest])
    asked = cli.resolved()
    changed = [
        key
        for section in ("model", "data", "budget", "ema", "trainer")
        for key in _changed_keys(section, saved[section], asked[section])
        if not key.startswith(KEYS_OF_THE_MACHINE)
    ]
    if changed:
        raise UserError(
            f"{', '.join(changed)}: belongs to the training of {run.directory}, which is done; lit-gen {verb} takes "
            f"{', '.join(KEYS_OF_AN_EVALUATION)} (use lit-gen run to train with other settings)"
        )
    return run, cli


def _check_sampler(objects: Namespace, device: torch.device) -> None:
    """Says that a sampler or a likelihood does not suit the model before minutes of training, not after.

    The weaker model of an autoguidance is loaded, onto the device.
    """
    objects.model.rehearse(objects.sampler)
    guidance = getattr(objects.sampler, "guidance", None)
    if guidance is not None and guidance.run is not None:
        load_weaker(guidance, objects.model, device)
    if objects.evaluation.likelihood:
        objects.evaluation.likelihood_protocol(objects.model, objects.data)


def _changed_keys(key: str, saved: Any, asked: Any) -> list[str]:
    """The dotted keys in which two settings differ; of another class only its name."""
    if saved == asked:
        return []
    if not isinstance(saved, dict) or not isinstance(asked, dict):
        return [key]
    if saved.get("class_path") != asked.get("class_path"):
        return [f"{key}.class_path"]
    parts = dict.fromkeys([*saved, *asked])
    return [changed for part in parts for changed in _changed_keys(f"{key}.{part}", saved.get(part), asked.get(part))]


def _quieten() -> None:
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
    ):
        warnings.filterwarnings("ignore", message)
