"""`lit-gen reproduce`: train and evaluate a run again, and say what differs."""

import contextlib
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from lit_gen.cli import commands
from lit_gen.core.errors import UserError
from lit_gen.core.text import printable
from lit_gen.core.yaml import load_yaml
from lit_gen.evaluation.device import device_name
from lit_gen.experiment.first_stage import FOLDER
from lit_gen.experiment.fit import fit_run
from lit_gen.experiment.loading import open_finished
from lit_gen.experiment.parser import ExperimentCLI
from lit_gen.experiment.reproduction import (
    Outcome,
    arguments_of,
    changed_surroundings,
    compare_curves,
    compare_scores,
    compare_weights,
    edited_keys,
    recorded_threads,
)
from lit_gen.report.results import read_results
from lit_gen.runs.differences import to_lines
from lit_gen.runs.directory import Run
from lit_gen.training import processes
from lit_gen.training.callbacks.checkpoint import threads_restored

NAME = "again"


def reproduce(directory: Path, evaluation_only: bool, tolerance: float, keep: Path | None) -> int:
    """Run a run again and print what differs; return 0 if nothing does, or all of it is within the tolerance, else 1.

    Args:
        directory: The run.
        evaluation_only: Repeat only its evaluations, with its weights.
        tolerance: Relative difference that is accepted.
        keep: Folder for the second run; None removes it.

    Raises:
        UserError: If it is not a finished run, or cannot be trained again.
    """
    if not tolerance >= 0:
        raise UserError(f"--tolerance: {tolerance} is not a relative difference; give 0 or more")
    run = open_finished(directory, "RUN")
    if "imported" in run.metadata and not evaluation_only:
        raise UserError(f"RUN: {directory} was imported and not trained here; add --evaluation-only")
    _print_surroundings(run)
    with _folder(keep) as root:
        again = _copied(run, root) if evaluation_only else _trained_again(run, root)
        outcomes = [] if evaluation_only else [*compare_weights(run, again), compare_curves(run, again)]
        outcomes += _evaluated_again(run, again)
    for outcome in outcomes:
        print(printable(f"  {outcome}"))
    if not any(outcome.num for outcome in outcomes):
        raise UserError(f"RUN: {directory} has no evaluations that can be repeated; make one with lit-gen evaluate")
    same, near = (all(outcome.within(limit) for outcome in outcomes) for limit in (0.0, tolerance))
    verdict = "bit-identical" if same else f"within {tolerance:g}" if near else "not reproduced"
    if left := sum(len(outcome.not_repeated) for outcome in outcomes if not outcome.changed):
        verdict += f", but {left} scores were not repeated"
    print(printable(f"{directory}: {verdict}"), flush=True)
    return 0 if near else 1


def _print_surroundings(run: Run) -> None:
    """Print the edited keys of a run, and what has changed since its training."""
    objects = ExperimentCLI(["--config", str(run.config)]).objects()
    device = device_name(processes.device(objects.trainer), 1)
    if edited := edited_keys(run):
        print("config.yaml was edited, its identity no longer matches (recorded, in the file):")
        print("\n".join(map(printable, to_lines(edited))))
    changed = changed_surroundings(run, objects.data.fingerprint("train"), device, torch.get_num_threads())
    print("changed since (recorded, now):" if changed else "code, packages, data and machine are those of the run")
    for line in to_lines(changed, width=80):
        print(printable(line))


@contextlib.contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    """Yield a folder for the second run, which is removed afterwards unless it is kept."""
    if keep is not None:
        if keep.exists() and any(keep.iterdir()):
            raise UserError(f"--keep: {keep} is not empty; give a new folder")
        keep.mkdir(parents=True, exist_ok=True)
        yield keep
        return
    with TemporaryDirectory(prefix="lit-gen-reproduce-") as temporary:
        yield Path(temporary)


def _trained_again(run: Run, root: Path) -> Run:
    """Train a run again from its configuration, with its number of CPU threads and a copy of its first stage."""
    place = ["--run.root", str(root), "--run.name", NAME, "--tracker", "wandb", "--wandb.mode", "disabled"]
    if (run.directory / FOLDER).is_dir():  # encoding the images writes files beside the first stage
        copied = shutil.copytree(run.directory / FOLDER, root / FOLDER, ignore=shutil.ignore_patterns("encoded"))
        place += ["--first_stage.run", str(Path(copied).resolve())]
    cli = ExperimentCLI(["--config", str(run.config), *place])
    with threads_restored():
        threads = recorded_threads(run)
        if threads is not None and threads != torch.get_num_threads():
            torch.set_num_threads(threads)
        return fit_run(cli, cli.objects())


def _copied(run: Run, root: Path) -> Run:
    """Return a copy of a run without its evaluations; its checkpoints are not copied but linked."""
    place = root / NAME
    place.mkdir()
    for name in ("config.yaml", "run.json"):
        shutil.copy(run.directory / name, place)
    for folder in ("checkpoints", FOLDER):
        if (run.directory / folder).is_dir():
            (place / folder).symlink_to((run.directory / folder).resolve())
    return Run(place)


def _evaluated_again(run: Run, again: Run) -> list[Outcome]:
    """Evaluate the second run as the first was, and return the comparisons of their scores."""
    found = sorted(run.evaluations.glob("*/result.json"))
    outcomes = []
    settings = load_yaml(run.config).get("evaluation") or {}
    for first in read_results(found) if found else []:
        name = f"scores of {first.path.parent.name}"
        try:
            words = arguments_of(first.record.to_dict(), settings)
        except UserError as error:
            outcomes.append(Outcome(f"{name} ({error})", 0, not_repeated=tuple(first.metrics)))
            continue
        with contextlib.redirect_stdout(io.StringIO()):
            path = commands.evaluate([str(again.directory), *words, "--tracker", "wandb", "--wandb.mode", "disabled"])
        (second,) = read_results([path])
        outcomes.append(compare_scores(name, first.record, second.record))
    return outcomes
