"""Sample images of a run as a grid, an archive or a folder, and make pictures of its model."""

import argparse

import torch
from torch import Tensor

from lit_gen.cli import help
from lit_gen.cli.reopen import reopen
from lit_gen.core.data_facts import DataFacts
from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.core.progress import image_progress
from lit_gen.core.seeds import check_seed
from lit_gen.experiment.checks import check_sampler
from lit_gen.experiment.experiment import Experiment
from lit_gen.experiment.loading import load_model
from lit_gen.families.base import GenerativeModel
from lit_gen.families.diffusion.samplers.base import DiffusionSampler
from lit_gen.families.settings import Sampler
from lit_gen.pictures.grids import check_ending, save_images, save_tiles
from lit_gen.pictures.trajectories import Trajectories, check_path
from lit_gen.runs.weights import parse_weights
from lit_gen.training import processes


def sample(arguments: list[str]) -> None:
    """Sample images of a run into a grid, an archive or a folder."""
    own, rest = help.sample_parser().parse_known_args(arguments)
    _check_options(own)
    run, cli, other_source = reopen(rest, "sample")
    objects = cli.objects(DataFacts.recorded(run.metadata))
    if other_source or own.picture is not None or _reads_data(objects):
        objects = objects.with_accepted_data(run)
    device = processes.device(objects.trainer)
    asked = check_sampler(objects, device)
    model = load_model(run, objects.model, own.weights).to(device)
    model.follow_classes(objects.data)
    label = None if own.label is None else _class_number(own.label, model, objects.data.class_names)
    if own.picture is not None:
        _show(model, objects, asked, own)
        return
    model.prepare_sampler(asked, objects.data)
    sampler, trajectories = asked or model.default_sampler(), None
    if own.trajectory is not None:
        trajectories = _watched(model, sampler, objects)
        sampler = trajectories.sampler
    labels = model.drawn_classes(torch.arange(own.first, own.first + own.n))
    if label is not None:
        labels = torch.full((own.n,), label)
    images = _sampled(model, objects, sampler, labels, own)
    save_images(images, labels, objects.data.source, own.out, own.first)
    settings = f"seed {own.seed}, {own.weights} weights, {model.nfe:g} network evaluations"
    if label is not None:
        names = objects.data.class_names
        settings += f", class {label if names is None else names[label]}"
    print(f"{own.n} images of {run.directory} ({settings}) -> {own.out}")
    if trajectories is not None:
        levels = ", ".join(f"{level:.3g}" for level in trajectories.save(own.trajectory, objects.data.source))
        print(f"trajectories of the first, at the noise levels sigma / alpha = {levels} -> {own.trajectory}")


def _check_options(own: argparse.Namespace) -> None:
    """Raise a UserError if an option is out of range, before a run is opened."""
    for name, value in {"-n": own.n, "--batch-size": own.batch_size}.items():
        if value < 1:
            raise UserError(f"{name}: {value} is not a positive number of images; give 1 or more")
    if own.first < 0:
        raise UserError(f"--first: {own.first} is not an index; give 0 or more")
    check_seed(own.seed, "--seed")
    check_ending(own.out)
    if own.trajectory is not None:
        check_path(own.trajectory)
        if own.picture is not None:
            raise UserError("--trajectory: needs sampled images and cannot be used with --picture; give one of the two")
    parse_weights(own.weights, "--weights")


def _watched(model: GenerativeModel, sampler: Sampler | None, objects: Experiment) -> Trajectories:
    """Return a sampler that records the states of the first images; raise a UserError if it has none to record."""
    if not isinstance(sampler, DiffusionSampler):
        raise UserError(f"--trajectory: {type(model).__name__} does not sample in steps from noise; remove it")
    if model.first_stage is not None:
        raise UserError(f"--trajectory: {model.title} samples latents, which are not images; remove it")
    return Trajectories(sampler, 8 if objects.data.source.quantised else 40)


def _sampled(
    model: GenerativeModel,
    objects: Experiment,
    sampler: Sampler | None,
    labels: Tensor | None,
    own: argparse.Namespace,
) -> Tensor:
    """Return the images in the form of the data, sampled batch by batch."""
    parts = []
    with image_progress("sampling", own.n) as progress:
        for first in range(0, own.n, own.batch_size):
            indices = range(own.first + first, own.first + min(first + own.batch_size, own.n))
            classes = None if labels is None else labels[first : first + len(indices)]
            samples = model.sample(Noise(own.seed, indices, model.device), classes, sampler)
            parts.append(objects.data.source.stored(samples).cpu())
            if progress is not None:
                progress.update(first + len(indices))
    return torch.cat(parts)


def _reads_data(objects: Experiment) -> bool:
    """Return whether sampling reads the data: the sampler is fitted to it, or the run recorded no class counts."""
    learns = objects.sampler is not None and objects.sampler.learns_from_data
    return learns or (objects.data.facts is None and bool(objects.model.num_classes))


def _class_number(text: str, model: GenerativeModel, names: tuple[str, ...] | None) -> int:
    """Return the class that `--label` names, or the number that it gives unless names are numbers themselves.

    Raises:
        UserError: If the model has no classes, or not this class.
    """
    if not model.num_classes:
        raise UserError(f"--label: {model.title} was not trained with model.class_conditional=true; remove --label")
    if names is not None and text in names:
        return names.index(text)
    numbered = names is None or not any(name.isdecimal() for name in names)
    if numbered and text.isdecimal() and int(text) < model.num_classes:
        return int(text)
    choices = f"0 to {model.num_classes - 1}" if names is None else ", ".join(names[:20])
    more = "" if names is None or len(names) <= 20 else f" and {len(names) - 20} more"
    raise UserError(f"--label: {text} is not a class; choose one of {choices}{more}")


def _show(model: GenerativeModel, objects: Experiment, sampler: Sampler | None, own: argparse.Namespace) -> None:
    """Save one of the pictures that a family makes of images of the data."""
    if own.out.suffix != ".png":
        raise UserError(f"--out: {own.out} does not end in .png; give a name that does, or remove --picture")
    save_tiles(model.show(own.picture, objects.data, own.n, own.seed, sampler), own.out)
    print(f"{own.picture} of {own.n} images of {objects.data.name} -> {own.out}")
