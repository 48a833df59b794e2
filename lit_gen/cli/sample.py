"""Sample images of a run as a grid, an archive or a folder, and make pictures of its model."""

import argparse

from lit_gen.cli import help
from lit_gen.cli.reopen import reopen
from lit_gen.core.data_facts import DataFacts
from lit_gen.core.errors import UserError
from lit_gen.core.seeds import check_seed
from lit_gen.experiment.checks import check_sampler
from lit_gen.experiment.experiment import Experiment
from lit_gen.experiment.trained import TrainedModel
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
    model = TrainedModel(run, objects, own.weights).to(device)
    index = range(own.first, own.first + own.n)
    labels = model.labels(index, own.label, "--label")
    if own.picture is not None:
        _show(model.module, objects, asked, own)
        return
    sampler, trajectories = model.prepare(asked), None
    if own.trajectory is not None:
        trajectories = _watched(model.module, sampler or model.module.default_sampler(), objects)
        sampler = trajectories.sampler
    images = model.draw(index, own.seed, sampler, labels, own.batch_size, "uint8")
    save_images(images, labels, objects.data.source, own.out, own.first)
    settings = f"seed {own.seed}, {own.weights} weights, {model.nfe:g} network evaluations"
    if own.label is not None and labels is not None:
        settings += f", class {model.classes[int(labels[0])]}"
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


def _reads_data(objects: Experiment) -> bool:
    """Return whether sampling reads the data: the sampler is fitted to it, or the run recorded no class counts."""
    learns = objects.sampler is not None and objects.sampler.learns_from_data
    return learns or (objects.data.facts is None and bool(objects.model.num_classes))


def _show(model: GenerativeModel, objects: Experiment, sampler: Sampler | None, own: argparse.Namespace) -> None:
    """Save one of the pictures that a family makes of images of the data."""
    if own.out.suffix != ".png":
        raise UserError(f"--out: {own.out} does not end in .png; give a name that does, or remove --picture")
    save_tiles(model.show(own.picture, objects.data, own.n, own.seed, sampler), own.out)
    print(f"{own.picture} of {own.n} images of {objects.data.name} -> {own.out}")
