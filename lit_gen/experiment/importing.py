"""Import a model that was trained elsewhere: it becomes a finished run, which is sampled and evaluated like any other.

The run holds the weights and everything that its network needs, so it can be moved. Its identity is a hash of the
weights, the settings and the images that it is said to be trained on, so that it is never taken for a training run.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lit_gen.core.data_facts import DataFacts
from lit_gen.core.errors import UserError
from lit_gen.core.files import publish, staged
from lit_gen.core.text import printable, shorten
from lit_gen.experiment import names
from lit_gen.experiment.experiment import Experiment
from lit_gen.experiment.exporting import stored_weights
from lit_gen.experiment.first_stage import FOLDER
from lit_gen.experiment.identity import training_config
from lit_gen.experiment.loading import configured, load_model
from lit_gen.experiment.parser import ExperimentCLI
from lit_gen.runs.directory import Run
from lit_gen.runs.exported import Exported, hash_tensors

MAX_TITLE = 60
FIXED = ("--model", "--first_stage", "--reflow", "--budget", "--ema", "--config")
"""Keys that the imported model fixes."""
_COSTS = ("training_seconds", "earlier_seconds", "training_flops", "earlier_flops")


def import_exported(folder: Path, words: Sequence[str]) -> Run:
    """Make a run of a folder that `lit-gen export` wrote.

    Args:
        folder: The folder.
        words: Keys of the data, the evaluation, the run and the machine.

    Raises:
        UserError: If the folder is damaged, a key would change the model, or the data are not those of its training.
    """
    exported = Exported.open(folder)
    check_fixed(words, str(folder))
    facts = DataFacts.recorded(exported.facts)
    assert facts is not None
    with configured(exported.config, folder) as own:
        cli = ExperimentCLI([*own, *words], "import")
        experiment = cli.objects(facts)
        if any(word.startswith("--data.") for word in words):
            _check_data(experiment, facts, folder)
        load_model(Run(folder), experiment.model, exported.facts["weights"])
        of_run = exported.facts["run"]
        return write_run(
            cli,
            experiment,
            data=exported.facts["data"],
            imported={"from": "lit-gen export", "version": exported.facts["version"]} | of_run,
            images_seen=exported.facts["images_seen"],
            seed=of_run["seed"],
            title=exported.facts["title"],
            **{key: of_run[key] for key in (*_COSTS, "flow") if key in of_run},
        )


def check_fixed(words: Sequence[str], what: str) -> None:
    """Raise a UserError if a key would change an imported model."""
    for word in words:
        key = word.partition("=")[0]
        if key.startswith("-") and any(key == fixed or key.startswith(f"{fixed}.") for fixed in FIXED):
            raise UserError(f"{key.lstrip('-')}: {what} fixes it; remove the key")


def _check_data(experiment: Experiment, facts: DataFacts, folder: Path) -> None:
    """Raise a UserError unless the data are those that a model was trained on, or others of its shape are accepted."""
    given = experiment.data.with_facts(None)
    if given.image_shape != facts.image_shape:
        ours, theirs = ("x".join(map(str, shape)) for shape in (given.image_shape, facts.image_shape))
        raise UserError(f"data.source: its images are {ours}, but {folder} makes {theirs}; choose other data")
    if given.fingerprint("train") != facts.images_fingerprint and not experiment.evaluation.other_data:
        raise UserError(
            f"data.source: {folder} was trained on other images (fingerprint {facts.images_fingerprint[:12]}) than "
            f"these ({given.fingerprint('train')[:12]}); name those, or accept these with --evaluation.other_data true"
        )


def write_run(
    cli: ExperimentCLI,
    experiment: Experiment,
    data: dict[str, Any],
    imported: dict[str, Any],
    images_seen: int,
    title: str,
    seed: int = 0,
    **facts: Any,
) -> Run:
    """Write the finished run of a model that was trained elsewhere, unless it exists.

    Args:
        cli: The parser with its configuration.
        experiment: The objects, with the weights in the model.
        data: Facts about the data, with their fingerprint.
        imported: Origin of the model, recorded in run.json.
        images_seen: Number of images that it was trained on; 0 if unknown.
        title: Name of the model in results.
        seed: Training seed.
        **facts: Further entries of run.json.
    """
    model, weights = experiment.model, stored_weights(experiment.model)
    config = cli.resolved()
    config["evaluation"] |= {"other_data": False}
    if experiment.stage is not None:
        config["first_stage"] |= {"run": FOLDER, "run_overrides": None}
    training = training_config(config)
    contents = [names.first(training), data["fingerprint"], hash_tensors(weights)]
    if experiment.stage is not None:
        contents.append(experiment.stage.fingerprint)
    identity = hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()
    title = shorten(printable(title), MAX_TITLE)
    run = Run.of(experiment.run, f"{data['name']}_{title.partition(',')[0].lower()}", identity)
    with run.lock():
        if run.finished:
            print(f"{run.directory}: imported before", flush=True)
            return run
        facts |= {"identity": identity, "recipe": identity, "training": training, "title": title, "seed": seed}
        run.create(config, **facts, imported=imported, data=data)
        if experiment.stage is not None:
            experiment.stage.save(run.directory / FOLDER)
        checkpoint = {"state_dict": model.state_dict(), "ema": {"num_updates": 0, "weights": weights}}
        with staged(run.checkpoint) as temporary:
            torch.save(checkpoint | {"images_seen": images_seen}, temporary)
            publish(temporary, run.checkpoint)
        run.update(status="finished", images_seen=images_seen)
    print(f"{run.directory}: {title} imported", flush=True)
    return run
