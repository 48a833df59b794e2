"""The verbs that need a configuration: fit, run, evaluate, sample, reflow; and ema.

Data flows one way: config -> data -> model -> samples -> metrics -> result file.
"""

import argparse
import itertools
from pathlib import Path
from typing import Any

import torch

from lit_gen.cli import help
from lit_gen.core.data_facts import DataFacts
from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.core.processes import ranks
from lit_gen.core.progress import image_progress
from lit_gen.core.seeds import check_seed
from lit_gen.data.sources import ImageSource
from lit_gen.experiment import key_help
from lit_gen.experiment.checks import check_evaluation, check_sampler, check_scored
from lit_gen.experiment.experiment import Experiment
from lit_gen.experiment.fit import fit_run
from lit_gen.experiment.loading import load_model
from lit_gen.experiment.parser import ExperimentCLI
from lit_gen.experiment.stages import KEYS_OF_THE_MACHINE
from lit_gen.families.base import GenerativeModel
from lit_gen.families.diffusion.samplers.base import DiffusionSampler
from lit_gen.pictures.grids import check_ending, save_images, save_tiles
from lit_gen.pictures.trajectories import Trajectories, check_path
from lit_gen.report.leaderboard import describe_likelihood
from lit_gen.runs import tracking
from lit_gen.runs.directory import Run
from lit_gen.runs.power_averages import gamma_of
from lit_gen.runs.weights import Width, parse_weights, reconstruct
from lit_gen.training import processes

KEYS_OF_AN_EVALUATION = ("sampler", "evaluation", "wandb")


def fit(arguments: list[str]) -> Run:
    """Trains a model in its run directory, from the last checkpoint if there is one.

    A run that is finished is left as it is. Returns the run.
    """
    cli = ExperimentCLI(arguments, "fit")
    return fit_run(cli, cli.objects())


def run(arguments: list[str]) -> Path:
    """Fits, unless a finished run of the same training exists, then evaluates. Returns the result's path."""
    cli = ExperimentCLI(arguments, "run")
    experiment = cli.objects()
    check_evaluation(experiment)
    return _evaluate(fit_run(cli, experiment), cli)


def evaluate(arguments: list[str]) -> Path:
    """Scores a run with a sampler and a protocol. Returns the result's path."""
    run, cli, _ = _reopen(arguments, "evaluate")
    return _evaluate(run, cli)


def sample(arguments: list[str]) -> None:
    """Draws images from a run into a grid, an archive or a folder."""
    own, rest = help.sample_parser().parse_known_args(arguments)
    for name, value in {"-n": own.n, "--batch-size": own.batch_size}.items():
        if value < 1:
            raise UserError(f"{name}: {value} is not a positive number of images")
    if own.first < 0:
        raise UserError(f"--first: {own.first} is not an index; give 0 or more")
    check_seed(own.seed, "--seed")
    check_ending(own.out)
    if own.trajectory is not None:
        check_path(own.trajectory)
        if own.picture is not None:
            raise UserError("--trajectory: belongs to images that are drawn, not to a --picture; give one of the two")
    parse_weights(own.weights, "--weights")
    run, cli, other_source = _reopen(rest, "sample")
    objects = cli.objects(DataFacts.recorded(run.metadata))
    if other_source or own.picture is not None or _reads_data(objects):
        objects.evaluation.compare_data(run, objects.model, objects.data)
    check_sampler(objects, processes.device(cli.config.trainer))
    model = load_model(run, objects.model, own.weights).to(processes.device(cli.config.trainer))
    model.follow_classes(objects.data)
    source: ImageSource = objects.data.source
    label = None if own.label is None else _class_number(own.label, model, objects.data.class_names)
    if own.picture is not None:
        _show(model, objects, own)
        return
    model.prepare_sampler(objects.sampler, objects.data)
    sampler, trajectories = objects.sampler or model.default_sampler(), None
    if own.trajectory is not None:
        if not isinstance(sampler, DiffusionSampler):
            raise UserError(f"--trajectory: {type(model).__name__} carries no noise to images in steps; leave it out")
        if model.first_stage is not None:
            raise UserError(f"--trajectory: {model.title} carries noise to latents, which are no images; leave it out")
        trajectories = Trajectories(sampler, 8 if source.quantised else 40)
        sampler = trajectories.sampler
    parts = []
    labels = model.drawn_classes(torch.arange(own.first, own.first + own.n))
    if label is not None:
        labels = torch.full((own.n,), label)
    with image_progress("sampling", own.n) as progress:
        for first in range(0, own.n, own.batch_size):
            indices = range(own.first + first, own.first + min(first + own.batch_size, own.n))
            classes = None if labels is None else labels[first : first + len(indices)]
            samples = model.sample(Noise(own.seed, indices, model.device), classes, sampler)
            parts.append(source.stored(samples).cpu())
            if progress is not None:
                progress.update(first + len(indices))
    save_images(torch.cat(parts), labels, source, own.out, own.first)
    settings = f"seed {own.seed}, {own.weights} weights, {model.nfe:g} network evaluations"
    if label is not None:
        names = objects.data.class_names
        settings += f", class {label if names is None else names[label]}"
    print(f"{own.n} images of {run.directory} ({settings}) -> {own.out}")
    if trajectories is not None:
        levels = ", ".join(f"{level:.3g}" for level in trajectories.save(own.trajectory, source))
        print(f"trajectories of the first, at the noise levels sigma / alpha = {levels} -> {own.trajectory}")


def _reads_data(objects: Experiment) -> bool:
    """Return whether sampling reads the data: the sampler is fitted to it, or the run recorded no class counts."""
    learns = objects.sampler is not None and objects.sampler.learns_from_data
    return learns or (objects.data.facts is None and bool(objects.model.num_classes))


def _class_number(text: str, model: GenerativeModel, names: tuple[str, ...] | None) -> int:
    """Return the class that `--label` names, or the number that it gives unless names are numbers themselves.

    Raises:
        UserError: The model has no classes, or no such class.
    """
    if not model.num_classes:
        raise UserError(f"--label: {model.title} was not trained with model.class_conditional=true; leave it out")
    if names is not None and text in names:
        return names.index(text)
    numbered = names is None or not any(name.isdecimal() for name in names)
    if numbered and text.isdecimal() and int(text) < model.num_classes:
        return int(text)
    choices = f"0 to {model.num_classes - 1}" if names is None else ", ".join(names[:20])
    more = "" if names is None or len(names) <= 20 else f" and {len(names) - 20} more"
    raise UserError(f"--label: {text} is not a class; choose one of {choices}{more}")


def _show(model: GenerativeModel, objects: Experiment, own: argparse.Namespace) -> None:
    """Saves one of the pictures that a family makes of images of the data."""
    if own.out.suffix != ".png":
        raise UserError(f"--out: {own.out} must end in .png for --picture")
    save_tiles(model.show(own.picture, objects.data, own.n, own.seed, objects.sampler), own.out)
    print(f"{own.picture} of {own.n} images of {objects.data.name} -> {own.out}")


def reflow(arguments: list[str]) -> Run:
    """Trains a run's model once more, on pairs that the run draws. Returns the new run."""
    _check_named(arguments, "reflow", "RUN [--distill]")
    run, rest = one_run(arguments, "reflow")
    if "--distill" in rest:
        words = (word for word in rest if word != "--distill")
        rest = ["--model.density", "noise", "--evaluation.likelihood", "0", *words]
    teacher = ["--reflow.teacher", str(run.directory), "--reflow.teacher_overrides", "null"]
    cli = ExperimentCLI(["--config", str(run.config), *teacher, *rest], "reflow", help.own_options("reflow"))
    return fit_run(cli, cli.objects())


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


def _evaluate(run: Run, cli: ExperimentCLI) -> Path:
    """Scores a run with objects built anew: one that was trained may keep the precision of its training."""
    objects = cli.objects(DataFacts.recorded(run.metadata))
    tracking.check_account(objects.wandb)
    objects.evaluation.compare_data(run, objects.model, objects.data)
    device = processes.device(cli.config.trainer)
    check_scored(objects, device)
    processes.launch(cli.config.trainer)
    model = load_model(run, objects.model, objects.evaluation.weights).to(device)
    model.follow_classes(objects.data)
    cache = run.directory.parent / ".reference"
    model.prepare_sampler(objects.sampler, objects.data)
    with processes.losses_reported(*ranks()):
        result, path, computed = objects.evaluation(model, objects.data, objects.sampler, run, cache)
    if ranks()[0] == 0:
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
    likelihood, reconstruction = result.get("likelihood"), result.get("reconstruction")
    protocols = "" if likelihood is None else f"  likelihood {describe_likelihood(likelihood['protocol'])}\n"
    if reconstruction is not None:
        facts = reconstruction["protocol"]
        protocols += f"  reconstructions of {facts['num_images']} images of {protocol['data']}/{facts['split']}\n"
    print(
        f"{result['model']} ({how}, NFE {result['nfe']:g}, {result['weights']} weights, seed {result['seed']}): "
        f"{values}\n"
        f"  {protocol['num_samples']} samples against {protocol['num_real']} images of {protocol['data']}/"
        f"{protocol['split']}, {protocol['feature_net']} features\n"
        f"{protocols}"
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


def _check_named(arguments: list[str], verb: str, usage: str) -> None:
    """Raise a UserError unless a run is named first; print the help of a class (`--sampler.help Heun`), if asked."""
    if any(key_help.asked_for(word) for word in arguments[:1]):
        ExperimentCLI(arguments, verb, help.own_options(verb))
    if not arguments or arguments[0].startswith("-"):
        raise UserError(f"usage: lit-gen {verb} {usage}; RUN is a run directory")


def _reopen(arguments: list[str], verb: str) -> tuple[Run, ExperimentCLI, bool]:
    """Return the run that the first argument names, and its configuration with the changes that the others ask for.

    Its images may be read from another source; the last value is whether that is asked for.

    Raises:
        UserError: The run does not exist, or the arguments change a setting of its training.
    """
    _check_named(arguments, verb, "RUN [--sampler Heun --sampler.steps 18 ...]")
    run, rest = one_run(arguments, verb)
    own = ["--config", str(run.config)]
    saved = ExperimentCLI(own).resolved()
    cli = ExperimentCLI([*own, *rest], verb, help.own_options(verb))
    asked = cli.resolved()
    changed = [
        key
        for section in ("model", "data", "budget", "ema", "first_stage", "trainer")
        for key in _changed_keys(section, saved[section], asked[section])
        if not key.startswith((*KEYS_OF_THE_MACHINE, "data.source"))
    ]
    if changed:
        raise UserError(
            f"{', '.join(changed)}: belongs to the training of {run.directory}, which is done; lit-gen {verb} takes "
            f"{', '.join(KEYS_OF_AN_EVALUATION)} and data.source (use lit-gen run to train with other settings)"
        )
    return run, cli, saved["data"]["source"] != asked["data"]["source"]


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
