"""Load models from run directories: checkpoints, averaged weights, and the weaker model of an autoguidance."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml
from torch import Tensor

from lit_gen.core.data_facts import DataFacts
from lit_gen.core.errors import UserError
from lit_gen.core.records import COUNT, NUMBER, POSITIVE, RECORD, RECORDS, TEXT, Kind, check_fields, values_of
from lit_gen.experiment.experiment import Experiment
from lit_gen.experiment.first_stage import FOLDER, FirstStage, FirstStageSettings
from lit_gen.experiment.parser import build_objects
from lit_gen.families.base import GenerativeModel
from lit_gen.families.clock import Clock
from lit_gen.families.diffusion.guidance import Guidance
from lit_gen.families.diffusion.models.general import Diffusion
from lit_gen.runs.directory import Run
from lit_gen.runs.exported import Exported
from lit_gen.runs.weights import load_average, parse_weights
from lit_gen.training.callbacks.ema import load_weights

_TENSOR = Kind("a tensor of numbers", lambda value: isinstance(value, Tensor) and _is_whole(value))
_FIELDS = {
    **dict.fromkeys(("images_seen", "batches_seen", "epoch", "global_step"), COUNT),
    **dict.fromkeys(("world_size", "num_threads"), POSITIVE),
    "state_dict": values_of(_TENSOR),
    "ema": RECORD,
    "ema.num_updates": COUNT,
    "ema.weights": values_of(_TENSOR),
    "ema.power": RECORD,
    "monitor": RECORD,
    "monitor.score": TEXT,
    "monitor.protocol": TEXT,
    "monitor.value": NUMBER,
    **dict.fromkeys(("monitor.images_seen", "monitor.num_samples", "monitor.seed"), COUNT),
    **dict.fromkeys(("loops", "callbacks"), RECORD),
    **dict.fromkeys(("optimizer_states", "lr_schedulers"), RECORDS),
}
REMEDY = "restore it, or delete it and train again"


def _is_whole(tensor: Tensor) -> bool:
    """Return whether the tensor is an ordinary one in memory without NaN, as in every lit-gen checkpoint."""
    ordinary = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_complex()
    return ordinary and not (tensor.is_floating_point() and bool(tensor.isnan().any()))


def read_checkpoint(run: Run, best: bool = False) -> dict[str, Any]:
    """Read a run's last checkpoint, or the one with the best score of the evaluations during training.

    Raises:
        UserError: If the file is damaged, a field is missing or of a wrong type, or the best checkpoint does not exist.
    """
    path = run.best_checkpoint if best else run.checkpoint
    if best and not path.is_file():
        raise UserError(
            f"{path}: the run has no best checkpoint; name other weights, or train with --monitor.every 100000 and "
            "another --run.name"
        )
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # a damaged file raises any of half a dozen, some with advice to load whatever is in it
        raise UserError(
            f"{path}: not a readable checkpoint (damaged, or not of lit-gen); delete it and train again"
        ) from None
    if not isinstance(checkpoint, dict):
        raise UserError(f"{path}: not a lit-gen checkpoint; {REMEDY}")
    check_fields(checkpoint, _FIELDS, frozenset({"images_seen", "state_dict"}), path, REMEDY)
    return checkpoint


def open_finished(directory: Path, key: str) -> Run:
    """Return a finished run.

    Args:
        directory: The run.
        key: Key of the run, for the message.

    Raises:
        UserError: If it is not a run, or not finished.
    """
    run = Run.open(directory)
    if not run.finished:
        raise UserError(f"{key}: {run.directory} is not finished; resume it with lit-gen fit")
    return run


@contextmanager
def configured(config: dict[str, Any], folder: Path | None = None) -> Iterator[list[str]]:
    """Yield the arguments of a configuration, which the parser reads from a file that exists for the block.

    Args:
        config: The configuration.
        folder: Folder that holds the first stage, if the configuration names one.

    Raises:
        UserError: If the first stage is missing.
    """
    if (config.get("first_stage") or {}).get("run") is not None:
        if folder is None or not (folder / FOLDER).is_dir():
            raise UserError(f"{folder}: the folder {FOLDER} is missing; export the model again with lit-gen export")
        config = config | {"first_stage": config["first_stage"] | {"run": str((folder / FOLDER).resolve())}}
    with TemporaryDirectory() as temporary:
        path = Path(temporary) / "config.yaml"
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        yield ["--config", str(path)]


def load_objects(run: Run) -> Experiment:
    """Build the experiment of a run, or of an exported folder; its data is not read if facts about it are recorded."""
    if Exported.is_one(run.directory):
        exported = Exported.open(run.directory)
        with configured(exported.config, exported.folder) as words:
            return build_objects(words, DataFacts.recorded(exported.facts))
    return build_objects(["--config", str(run.config)], DataFacts.recorded(run.metadata))


def load_model(run: Run, model: GenerativeModel, weights: str) -> GenerativeModel:
    """Load a checkpoint of a run, or a power-function average, into a model, ready to be sampled.

    The weights `best` are the average in the checkpoint with the best score of the evaluations during training.

    If the run has a first stage, its copy is loaded as well. An exported folder has one set of weights.

    Raises:
        UserError: If the checkpoint is damaged or of another network, or the run does not have this average.
    """
    if Exported.is_one(run.directory):
        return _load_exported(Exported.open(run.directory), model)
    checkpoint = read_checkpoint(run, best=weights == "best")
    width = parse_weights(weights, "weights")
    average, images = checkpoint.get("ema", {}).get("weights", {}), checkpoint["images_seen"]
    if width is not None:
        average, images = load_average(run, width)
    try:
        model.load_state_dict(checkpoint["state_dict"])
        if weights != "raw":
            load_weights(model.generator, average)
    except (RuntimeError, KeyError) as error:
        raise UserError(
            f"{run.checkpoint}: does not fit the model of {run.config} ({' '.join(str(error).split())[:200]}); "
            "restore the run's own config.yaml, or train again"
        ) from None
    if isinstance(model.first_stage, FirstStage):
        load_first_stage(model.first_stage, run.directory / FOLDER)
    model.clock = Clock(images_seen=images)
    model.title = run.metadata.get("title", model.title)
    return model.eval()


def _load_exported(exported: Exported, model: GenerativeModel) -> GenerativeModel:
    """Load the weights of an exported folder into a model, ready to be sampled."""
    try:
        load_weights(model.generator, exported.load_weights())
    except KeyError as error:
        raise UserError(
            f"{exported.path}: does not fit the model of config.json ({error.args[0]}); restore both files"
        ) from None
    if isinstance(model.first_stage, FirstStage):
        load_first_stage(model.first_stage, exported.folder / FOLDER)
    model.clock = Clock(images_seen=exported.facts["images_seen"])
    model.title = exported.facts["title"]
    return model.eval()


def open_first_stage(directory: Path, weights: str = "ema") -> FirstStage:
    """Return the first stage of a finished run, or of a copy in the run of a second stage, with its weights."""
    stage = FirstStage(FirstStageSettings(str(directory), weights), build_objects)
    load_first_stage(stage, directory)
    return stage


def load_first_stage(stage: FirstStage, directory: Path) -> None:
    """Load the weights of a first stage from its run, or from the copy in the run of a second stage.

    Raises:
        UserError: If both are missing, the training is not finished, or the copy is damaged.
    """

    def load_run(path: Path, model: GenerativeModel, weights: str) -> None:
        load_model(open_finished(path, "first_stage.run"), model, weights)

    stage.load(directory, load_run)


def load_weaker(guidance: Guidance, model: GenerativeModel, device: torch.device) -> Guidance:
    """Return an autoguidance with the model of the run that it names, with averaged weights, as its weaker denoiser.

    Raises:
        UserError: If it is not a run, or its images or classes are not those of the model.
    """
    assert guidance.run is not None
    run = Run.open(guidance.run)
    weaker = load_objects(run).model
    if not isinstance(weaker, Diffusion):
        name = type(weaker).__name__
        raise UserError(
            f"sampler.guidance.run: {run.directory} holds the model {name}, which is not a "
            "diffusion model; name the run of one"
        )
    if (weaker.image_shape, weaker.num_classes) != (model.image_shape, model.num_classes):
        ours, theirs = (
            f"{'x'.join(map(str, of.image_shape))} images of {of.num_classes or 'no'} classes" for of in (model, weaker)
        )
        raise UserError(
            f"sampler.guidance.run: {run.directory} samples {theirs}, the model to be guided {ours}; name a run on the "
            "same data with the same model.class_conditional"
        )
    load_model(run, weaker, "ema").to(device)
    if _first_stage(weaker) != _first_stage(model):
        raise UserError(
            f"sampler.guidance.run: the latents of {run.directory} are not those of the model to be guided; name a run "
            "with the same first stage"
        )
    return guidance.by(weaker.denoiser, run.directory.resolve().name)  # results name it wherever it lies


def _first_stage(model: GenerativeModel) -> str | None:
    return None if model.first_stage is None else model.first_stage.metadata.get("identity")
