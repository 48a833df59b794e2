"""The outcome of a sweep, and the results of a sweep's folder."""

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lit_gen.core.errors import UserError
from lit_gen.core.files import write_atomically
from lit_gen.core.records import TEXT, read_json
from lit_gen.sweeps.journal import JOURNAL_NAME, outcomes, read_journal, results_of
from lit_gen.sweeps.trial import Trial

TRIALS_NAME = "trials.json"


@dataclass
class SweepResult:
    """The outcome of a sweep.

    Args:
        name: Name of the sweep.
        folder: Folder of the sweep.
        trials: All trials.
        results: The result.json files of each finished trial, one per sampling seed, by its id in the order of the
            trials.
        failures: Error in one line and log file by trial id.
        stopped: Reason by trial id, for trials that were stopped early.
        interrupted: Whether the sweep was stopped before its end.
        unknown_metrics: Values of `metric.name` that are in no result.
    """

    name: str
    folder: Path
    trials: list[Trial]
    results: dict[str, list[Path]] = field(default_factory=dict)
    failures: dict[str, tuple[str, Path]] = field(default_factory=dict)
    stopped: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False
    unknown_metrics: list[str] = field(default_factory=list)

    @property
    def exit_status(self) -> int:
        """0 if no trial failed and each finished one has the metric of its sweep, else 1; 130 if it was interrupted."""
        return 130 if self.interrupted else 1 if self.failures or self.unknown_metrics else 0


def sweep_results(folder: Path) -> dict[str, list[Path]]:
    """Return the result.json files of each finished trial of a sweep's folder by its id, if all of them still exist."""
    return results_in(outcomes(read_journal(folder / JOURNAL_NAME)), folder.parent.parent)


def save_trials(folder: Path, trials: Sequence[Trial]) -> None:
    """Save the ids of the trials of a sweep in its folder."""
    write_atomically(folder / TRIALS_NAME, json.dumps([trial.id for trial in trials]) + "\n")


def results_in(ended: dict[str, dict[str, object]], root: Path) -> dict[str, list[Path]]:
    """Return the result.json files of the finished trials among the last events of trials, if all of them exist."""
    finished = {
        trial: [root / result for result in results_of(event)]
        for trial, event in ended.items()
        if event["event"] == "finished"
    }
    return {trial: results for trial, results in finished.items() if results and all(map(Path.is_file, results))}


def current_results(folder: Path) -> dict[str, list[Path]]:
    """Return `sweep_results` for the trials of the sweep as it was last run, those that its report ranks."""
    results = sweep_results(folder)
    path = folder / TRIALS_NAME
    remedy = "run the sweep again to restore it"
    try:
        trials = read_json(path, remedy)
        if not isinstance(trials, list) or not all(map(TEXT.fits, trials)):
            raise UserError(f"{path}: not a list of trials; {remedy}")
    except FileNotFoundError:
        return results
    except UserError as error:
        warnings.warn(f"{error}; until then all finished trials of the journal count", stacklevel=2)
        return results
    return {trial: results[trial] for trial in trials if trial in results}
