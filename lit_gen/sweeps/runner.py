"""Run the trials of a sweep, each exactly once, across failures and interruptions.

The sweep's folder is ROOT/sweeps/NAME:

    journal.jsonl       which trials started, finished and failed
    logs/TRIAL.log      output of a trial
    *.yaml              the sweep files as they were last given
    trials.json         ids of their trials

The id of a trial is a hash of its settings: an edited sweep file keeps the finished trials that it still contains.
"""

import json
import os
import selectors
import shlex
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console

from lit_gen.core.errors import UserError
from lit_gen.core.files import write_atomically
from lit_gen.core.records import TEXT, read_json
from lit_gen.core.text import printable
from lit_gen.sweeps.estimate import training_of
from lit_gen.sweeps.journal import JOURNAL_NAME, Journal, outcomes, read_journal, results_of
from lit_gen.sweeps.labels import Labels
from lit_gen.sweeps.pool import Worker
from lit_gen.sweeps.progress import SweepProgress, reported_names, trial_table
from lit_gen.sweeps.spec import Sweep, Trial, load_sweep, option

SWEEP_VARIABLE = "LIT_GEN_SWEEP"
TRIALS_NAME = "trials.json"
SECONDS_OF_SILENCE = 60.0
"""Seconds without a sign of life after which a worker is reported."""

# Signals to stop a trial, with the seconds until the next one; another Ctrl-C skips the wait.
_STOP_STEPS = [(signal.SIGINT, 20.0), (signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0)]


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
        interrupted: Whether the sweep was stopped before its end.
        unknown_metrics: Values of `metric.name` that are in no result.
    """

    name: str
    folder: Path
    trials: list[Trial]
    results: dict[str, list[Path]] = field(default_factory=dict)
    failures: dict[str, tuple[str, Path]] = field(default_factory=dict)
    interrupted: bool = False
    unknown_metrics: list[str] = field(default_factory=list)

    @property
    def exit_status(self) -> int:
        """0 if every trial finished and has the metric of its sweep, else 1; 130 if the sweep was stopped."""
        return 130 if self.interrupted else 1 if self.failures or self.unknown_metrics else 0


def sweep_results(folder: Path) -> dict[str, list[Path]]:
    """Return the result.json files of each finished trial of a sweep's folder by its id, if all of them still exist."""
    root = folder.parent.parent
    finished = {
        trial: [root / result for result in results_of(event)]
        for trial, event in outcomes(read_journal(folder / JOURNAL_NAME)).items()
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


def dry_run(
    files: Sequence[Path | str],
    root: Path,
    seed: int = 0,
    count: int | None = None,
    name: str | None = None,
    console: Console | None = None,
) -> Sweep:
    """Print the trials of a sweep with their status; run and write nothing.

    Args:
        files: W&B sweep files.
        root: The runs folder.
        seed: Seed of the random searches.
        count: Largest number of trials per file.
        name: Name of the sweep; if None, the name in the first file.
        console: Console of the table.
    """
    console = console or Console()
    sweep = load_sweep(files, seed, count, name)
    folder = root / "sweeps" / sweep.name
    finished = sweep_results(folder)
    status = {
        trial: "finished" if trial in finished else "waiting" if event["event"] == "finished" else "failed"
        for trial, event in outcomes(read_journal(folder / JOURNAL_NAME)).items()
    }
    console.print(trial_table(sweep.trials, status))
    for note in sweep.notes:
        console.print(printable(note), markup=False, highlight=False, soft_wrap=True)
    num_finished = sum(trial.id in finished for trial in sweep.trials)
    line = f"sweep {sweep.name}: {len(sweep.trials)} trials, {num_finished} of them finished"
    console.print(line, markup=False, highlight=False, soft_wrap=True)
    return sweep


def run_sweep(
    files: Sequence[Path | str],
    root: Path,
    jobs: int = 1,
    seed: int = 0,
    count: int | None = None,
    name: str | None = None,
    runner: str = "lit_gen.cli.commands:run_repeats",
    console: Console | None = None,
) -> SweepResult:
    """Run every trial that has not finished yet, including those that failed before.

    Args:
        files: W&B sweep files; their trials form one queue.
        root: The runs folder, `--run.root` of the trials that do not set it.
        jobs: Number of trials that run at once, each in its own process.
        seed: Seed of the random searches.
        count: Largest number of trials per file.
        name: Name of the sweep; if None, the name in the first file.
        runner: `module:function` that runs a trial: arguments of `lit-gen run` -> its result.json files.
        console: Console of the reports.

    Raises:
        UserError: If a file is invalid or another process runs the same sweep.
    """
    if jobs < 1:
        raise UserError(f"--jobs: {jobs} is not a positive number; give 1 or more")
    console = console or Console()
    sweep = load_sweep(files, seed, count, name)
    sweep = replace(sweep, trials=[_rooted(trial, root) for trial in sweep.trials])
    folder = root / "sweeps" / sweep.name
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    try:
        # The system may take a moment to release the lock of a killed process.
        with FileLock(folder / ".lock").acquire(timeout=2.0):
            _keep_files(sweep, folder)
            again = _command(sweep.files, root, jobs, seed, count, name)
            return _Run(sweep, root, folder, jobs, runner, console, again).run()
    except Timeout:
        raise UserError(f"the sweep {sweep.name} is already running in {folder}; wait for it or stop it") from None


def _command(files: Sequence[Path], root: Path, jobs: int, seed: int, count: int | None, name: str | None) -> str:
    """Return the command line of a sweep, with the options that differ from their defaults."""
    options = {"root": (root, Path("runs")), "jobs": (jobs, 1), "seed": (seed, 0), "count": (count, None)}
    options["name"] = (name, None)
    given = [(f"--{key}", str(value)) for key, (value, default) in options.items() if value != default]
    return shlex.join(["lit-gen", "sweep", *map(str, files), *(word for pair in given for word in pair)])


def _rooted(trial: Trial, root: Path) -> Trial:
    if option(trial.arguments, "run.root") is not None:
        return trial
    return replace(trial, arguments=[*trial.arguments, f"--run.root={root}"])


def _keep_files(sweep: Sweep, folder: Path) -> None:
    """Save copies of the sweep files, numbered if two have the same name, and the ids of their trials."""
    write_atomically(folder / TRIALS_NAME, json.dumps([trial.id for trial in sweep.trials]) + "\n")
    names: set[str] = set()
    for number, file in enumerate(sweep.files, start=1):
        name = file.name if file.name not in names else f"{number}-{file.name}"
        names.add(name)
        if file.resolve() != (folder / name).resolve():
            write_atomically(folder / name, file.read_bytes())


class _Run:
    """One call of `run_sweep`, which holds the lock."""

    def __init__(
        self, sweep: Sweep, root: Path, folder: Path, jobs: int, runner: str, console: Console, again: str
    ) -> None:
        self._root, self._folder, self._console = root, folder, console
        self._again = again
        finished = sweep_results(folder)
        results = {trial.id: finished[trial.id] for trial in sweep.trials if trial.id in finished}
        self._result = SweepResult(sweep.name, folder, sweep.trials, results)
        self._waiting = deque(trial for trial in sweep.trials if trial.id not in results)
        environment = os.environ | {SWEEP_VARIABLE: sweep.name}
        if jobs > 1:  # the same for the last trial as for the first: another number rounds differently
            environment.setdefault("OMP_NUM_THREADS", str(max(1, _num_cores() // jobs)))
        jobs = max(1, min(jobs, len(self._waiting)))
        self._workers = [Worker(runner, environment) for _ in range(jobs)]
        self._journal = Journal(folder / JOURNAL_NAME)
        self._progress = SweepProgress(console, sweep.trials, list(results), jobs)
        self._notes = sweep.notes
        self._metrics: set[str] = set()
        self._interrupts = 0

    def run(self) -> SweepResult:
        try:
            with self._signals_counted(), self._progress:
                self._announce()
                while not self._interrupts and (self._waiting or self._busy()):
                    self._assign()
                    self._collect()
                if self._interrupts:
                    self._stop()
            for worker in self._workers:
                worker.hang_up()
            for worker in self._workers:
                worker.close(patience=30.0)
        finally:
            for worker in self._workers:
                worker.close()
        self._conclude()
        order = [trial.id for trial in self._result.trials]
        self._result.results = {trial: self._result.results[trial] for trial in order if trial in self._result.results}
        return self._result

    def _busy(self) -> list[Worker]:
        return [worker for worker in self._workers if worker.assignment]

    def _announce(self) -> None:
        for note in self._notes:
            self._progress.say(note)
        total, finished = len(self._result.trials), len(self._result.results)
        done = f", {finished} of them finished before" if finished else ""
        self._progress.say(f"sweep {self._result.name}: {total} trials{done}; folder {self._folder}")

    def _assign(self) -> None:
        for worker in self._workers:
            if self._waiting and not worker.assignment:
                trial = self._next()
                self._journal.append("started", trial.id, arguments=trial.arguments)
                self._progress.started(trial)
                worker.assign(trial, self._folder / "logs" / f"{trial.id}.log")

    def _next(self) -> Trial:
        """Return the next trial, preferably of a training run that no other worker has: it would wait for it."""
        busy = {training_of(worker.assignment.trial) for worker in self._workers if worker.assignment}
        trial = next((trial for trial in self._waiting if training_of(trial) not in busy), self._waiting[0])
        self._waiting.remove(trial)
        return trial

    def _collect(self) -> None:
        """Wait briefly for answers, and record them."""
        with selectors.DefaultSelector() as selector:
            for worker in self._busy():
                selector.register(worker.file, selectors.EVENT_READ)
            selector.select(timeout=0.2)
        for worker in self._busy():
            answer = worker.answer()
            if answer is not None:
                self._record(worker, answer)
            else:
                self._watch(worker)

    def _watch(self, worker: Worker) -> None:
        """Report the progress of a trial, and when its process stops and resumes giving signs of life.

        A silent process is left alone: someone may have stopped it on purpose.
        """
        assignment, process = worker.assignment, worker.pid
        assert assignment is not None and process is not None
        silent = worker.silence > SECONDS_OF_SILENCE
        if silent and not assignment.silent:
            self._progress.silent(assignment.trial, process, worker.silence)
        elif assignment.silent and not silent:
            self._progress.heard(assignment.trial, process)
        elif assignment.step and not silent:
            self._progress.stepped(assignment.trial, assignment.step)
        assignment.silent = silent

    def _record(self, worker: Worker, answer: dict[str, Any]) -> None:
        assert worker.assignment is not None
        trial, log, seconds = worker.assignment.trial, worker.assignment.log, worker.assignment.seconds
        worker.assignment = None
        if answer["status"] == "finished":
            results = [Path(result) for result in answer["results"]]
            paths = [os.path.relpath(result, self._root) for result in results]
            more = {"results": paths} if len(paths) > 1 else {}
            self._journal.append("finished", trial.id, result=paths[0], **more, seconds=round(seconds, 3))
            self._result.results[trial.id] = results
            self._progress.finished(trial, results, seconds)
            if trial.metric is not None and trial.metric not in self._metrics:  # the first of its metric
                self._metrics.add(trial.metric)
                self._check_metric(trial.metric, results, "the first result does not hold")
        elif not self._interrupts:  # a trial that was told to stop did not fail: it stays to be run
            self._journal.append("failed", trial.id, error=answer["error"], log=os.path.relpath(log, self._folder))
            self._result.failures[trial.id] = (answer["error"], log)
            self._progress.failed(trial, answer["error"], log, seconds)

    @contextmanager
    def _signals_counted(self) -> Iterator[None]:
        """Only count Ctrl-C and SIGTERM, so that neither interrupts the record of a trial's answer in the journal."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def count(*_: object) -> None:
            self._interrupts += 1

        saved = {number: signal.signal(number, count) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in saved.items():
                signal.signal(number, handler)

    def _stop(self) -> None:
        self._result.interrupted = True
        self._progress.say("stopping: waiting for the running trials to save their state (press Ctrl-C again to hurry)")
        for worker in self._workers:
            worker.hang_up()
        for number, seconds in _STOP_STEPS:
            seen, until = self._interrupts, time.monotonic() + seconds
            for worker in self._busy():
                worker.signal(number)
            while self._busy() and time.monotonic() < until and self._interrupts == seen:
                self._collect()

    def _check_metric(self, metric: str, results: list[Path], what: str) -> bool:
        """Return whether a result has the metric that a sweep file names; if none has, print the choices."""
        names = list(dict.fromkeys(name for result in results for name in reported_names(result)))
        if not names or metric in names:
            return True
        self._progress.say(f"metric.name: {what} {metric}; name one of {', '.join(names)}")
        return False

    def _conclude(self) -> None:
        result, say = self._result, self._progress.say
        say(
            f"sweep {result.name}: {len(result.results)} finished, {len(result.failures)} failed "
            f"of {len(result.trials)} trials"
        )
        labels = Labels(result.trials)
        for trial in result.trials:
            if trial.id in result.failures:
                error, log = result.failures[trial.id]
                say(f"  failed: {labels.describe(trial)}: {error} (see {log})")
        for metric in dict.fromkeys(trial.metric for trial in result.trials):
            of_metric = [trial.id for trial in result.trials if trial.metric == metric]
            found = [path for trial in of_metric for path in result.results.get(trial, [])]
            if metric is not None and not self._check_metric(metric, found, "no result holds"):
                result.unknown_metrics.append(metric)
        if result.failures or result.interrupted:
            what = "the rest" if result.interrupted else "the failed trials again"
            say(f"run {what} with the same command: {self._again}; finished trials are not repeated")


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
