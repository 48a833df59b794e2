"""A run that continues on another number of processes than it began on.

The order of the images does not depend on processes (`lit_gen.data.batches`), but random numbers do: each share of a
batch, one per process and micro-batch, has its own. A run keeps the shares that it began with. Processes and
micro-batches per step may change if their product does not: a run of two processes continues on one process with twice
as many micro-batches, and draws the same numbers. Sums then round differently, so the weights are not bit-equal. Where
the shares do not divide among the processes, the run continues with other random numbers.

The number of processes is part of the identity of a run. So that one run does not become two, run.json lists under
`continued` the identities that the run has continued under.
"""

from dataclasses import replace
from typing import Any

from lit_gen.core.errors import UserError
from lit_gen.core.trainer_settings import TrainerSettings
from lit_gen.experiment import names
from lit_gen.experiment.identity import training_config, training_identity
from lit_gen.families.base import GenerativeModel
from lit_gen.families.clock import Division
from lit_gen.runs.directory import Run, RunSettings
from lit_gen.training import processes

KEYS_OF_PROCESSES = ("devices", "num_nodes", "accumulate_grad_batches")


def find_run(settings: RunSettings, name: str, config: dict[str, Any], fingerprint: str) -> Run:
    """Return the run of a configuration, or an unfinished one of another number of processes if there is none.

    An unfinished run that another command trains at the moment is left to it.

    Args:
        settings: The place of the run.
        name: First part of the directory's name if the settings have no name.
        config: The resolved configuration.
        fingerprint: Fingerprint of the training data.
    """
    identity = training_identity(config, fingerprint)
    run = Run.of(settings, name, identity)
    if run.metadata_path.is_file():
        return run
    others = [(Run(path), _metadata(Run(path))) for path in run.named_alike()]
    for other, metadata in others:
        if identity in (segment.get("identity") for segment in metadata.get("continued", [])):
            return other
    for other, metadata in others:
        same = other.checkpoint.is_file() and _differs_in_processes(metadata, config, fingerprint)
        if same and not other.is_locked():
            return other
    return run


def keep_shares(run: Run, settings: TrainerSettings, model: GenerativeModel) -> tuple[TrainerSettings, Division | None]:
    """Return the settings with which a run keeps its shares, and the division it began with.

    The division is None if it is that of the settings, or if the shares do not divide among the processes. A model with
    manual optimization splits the batch of each process itself, so its processes must divide too.
    """
    began = _division(run.metadata.get("training", {}).get("trainer", {}))
    num = processes.number(settings)
    today = Division(num, settings.accumulate_grad_batches)
    manual = not model.automatic_optimization
    if began is None or began == today or (began.processes if manual else began.num_shares) % num:
        return settings, None
    settings = replace(settings, accumulate_grad_batches=began.num_shares // num)
    return settings, Division(began.processes, 1) if manual else began


def record(run: Run, config: dict[str, Any], kept: Division | None, images: int, before: int, today: Division) -> None:
    """Record and report that a run continues on another number of processes; the first process calls it.

    Args:
        run: The run.
        config: The resolved configuration of today.
        kept: Division that the run keeps, of `keep_shares`.
        images: Number of images seen.
        before: Number of processes that saved the checkpoint.
        today: Division of today.
    """
    metadata = run.metadata
    began = _division(metadata.get("training", {}).get("trainer", {}))
    same = kept is not None or began == today
    segment = {
        "identity": training_identity(config, metadata["data"]["fingerprint"]),
        "images_seen": images,
        "processes": today.processes,
        "micro_batches": today.micro_batches,
        "same_noise": same,
    }
    run.update(continued=[*metadata.get("continued", []), segment])
    what = "the same images and noise" if same else "the same images in the same order, but other noise"
    count = f"{today.processes} process{'es' * (today.processes > 1)}"
    parts = f", {today.micro_batches} micro-batches each" if today.micro_batches > 1 else ""
    print(f"{run.directory}: on {count} instead of {before}{parts}: {what}, and not bit-equal", flush=True)


def _metadata(run: Run) -> dict[str, Any]:
    """Return the content of run.json; empty if it is damaged, which is another run's affair."""
    try:
        return run.metadata
    except UserError:
        return {}


def _differs_in_processes(metadata: dict[str, Any], config: dict[str, Any], fingerprint: str) -> bool:
    """Return whether an unfinished run has the training of a configuration but for the number of its processes."""
    recorded, now = metadata.get("training"), training_config(config)
    if recorded is None or metadata["status"] == "finished" or metadata["data"]["fingerprint"] != fingerprint:
        return False
    began, today = (_division(training.get("trainer", {})) for training in (recorded, now))
    if began is None or today is None or began.processes == today.processes:
        return False
    if began.micro_batches != today.micro_batches and began.num_shares != today.num_shares:
        return False
    return names.first(_without_processes(recorded)) == names.first(_without_processes(now))


def _without_processes(training: dict[str, Any]) -> dict[str, Any]:
    trainer = {key: value for key, value in training["trainer"].items() if key not in KEYS_OF_PROCESSES}
    return training | {"trainer": trainer}


def _division(trainer: dict[str, Any]) -> Division | None:
    """Return the division of recorded settings of the Trainer; None if they are incomplete."""
    counts = [count for key in KEYS_OF_PROCESSES if isinstance(count := trainer.get(key), int) and count > 0]
    if len(counts) < len(KEYS_OF_PROCESSES):
        return None
    devices, nodes, micro_batches = counts
    return Division(devices * nodes, micro_batches)
