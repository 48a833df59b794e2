"""Export the model of a run to a folder of safetensors and JSON.

The folder needs neither the run nor its data: config.json holds the settings by public class names, the facts about the
data, and the run. Absolute paths of this machine are cut to their last part.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save
from torch import Tensor

from lit_gen.core.data_facts import DataFacts
from lit_gen.core.files import write_atomically, writing_folder
from lit_gen.core.version import __version__
from lit_gen.core.yaml import load_yaml
from lit_gen.experiment.experiment import Experiment
from lit_gen.experiment.first_stage import FOLDER
from lit_gen.experiment.first_stage import WEIGHTS as FIRST_STAGE_WEIGHTS
from lit_gen.experiment.loading import load_model, load_objects, open_finished
from lit_gen.families.base import GenerativeModel
from lit_gen.runs.directory import Run
from lit_gen.runs.exported import CARD, CONFIG, FORMAT, SECTIONS, WEIGHTS, Exported
from lit_gen.training.callbacks.ema import named_weights

_OF_THE_RUN = (
    *("identity", "recipe", "seed", "flow"),
    *("training_seconds", "earlier_seconds", "training_flops", "earlier_flops"),
)
_OF_THE_FIRST_STAGE = (*_OF_THE_RUN, "status", "wandb_id", "title", "images_seen", "data")


def export_run(directory: Path, folder: Path, weights: str, card: Callable[[Run, dict[str, Any]], str]) -> Exported:
    """Write the model of a finished run to a new folder, whole or not at all.

    Args:
        directory: The run.
        folder: The folder; it must not exist, or be empty.
        weights: `ema`, `raw`, `best`, or a power-function average such as `ema:0.1`.
        card: Makes the model card from the run and the content of config.json.

    Raises:
        UserError: If it is not a finished run, lacks the weights, or the folder cannot be written.
    """
    run = open_finished(directory, "RUN")
    objects = load_objects(run)
    model = load_model(run, objects.model, weights)
    facts = describe(run, objects, model, weights)
    with writing_folder(folder) as place:
        write_atomically(place / CONFIG, json.dumps(facts, indent=2) + "\n")
        write_atomically(place / WEIGHTS, save(stored_weights(model), {"format": "pt"}))
        if objects.stage is not None:
            _copy_first_stage(run.directory / FOLDER, place / FOLDER)
        write_atomically(place / CARD, card(run, facts))
    return Exported.open(folder)


def stored_weights(model: GenerativeModel) -> dict[str, Tensor]:
    """Return copies of the weights and buffers of the generating network on the CPU, by name."""
    return {
        name: weight.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, weight in named_weights(model.generator).items()
    }


def describe(run: Run, objects: Experiment, model: GenerativeModel, weights: str) -> dict[str, Any]:
    """Return the content of config.json."""
    metadata, sampler = run.metadata, objects.sampler or model.default_sampler()
    facts = DataFacts.recorded(metadata) or objects.data.describe()  # an older version did not record them
    return {
        "format": FORMAT,
        "version": __version__,
        "title": model.title,
        "weights": weights,
        "images_seen": model.images_seen,
        "run": {"name": run.directory.resolve().name} | {key: metadata[key] for key in _OF_THE_RUN if key in metadata},
        "data": {"fingerprint": metadata.get("data", {}).get("fingerprint", facts.images_fingerprint)}
        | facts.to_dict(),
        "sampler": None if sampler is None else sampler.to_dict(),
        "config": published(load_yaml(run.config)),
    }


def published(config: dict[str, Any]) -> dict[str, Any]:
    """Return the sections of a configuration that say what the model is, without paths of this machine."""
    kept: dict[str, Any] = _without_folders({key: config[key] for key in SECTIONS if key in config})
    if kept.get("first_stage", {}).get("run") is not None:
        kept["first_stage"] |= {"run": FOLDER, "run_overrides": None}
    return kept


def _without_folders(value: Any) -> Any:
    """Return a value with each absolute path in it cut to its last part."""
    if isinstance(value, dict):
        return {key: _without_folders(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_without_folders(part) for part in value]
    is_path = isinstance(value, str) and (os.path.isabs(value) or value.startswith("~"))
    return Path(value).name if is_path else value


def _copy_first_stage(source: Path, folder: Path) -> None:
    """Copy the first stage of a run, with the settings and facts that loading it needs."""
    metadata = Run(source).metadata
    kept = _without_folders({key: metadata[key] for key in _OF_THE_FIRST_STAGE if key in metadata})
    write_atomically(folder / "run.json", json.dumps(kept, indent=2) + "\n")
    config = published(load_yaml(source / "config.yaml"))
    write_atomically(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))
    write_atomically(folder / FIRST_STAGE_WEIGHTS, (source / FIRST_STAGE_WEIGHTS).read_bytes())
