"""Run the trials that are left of a sweep in worker processes, together with other processes that do the same."""

import os
import selectors
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from lit_gen.sweeps.estimate import training_of
from lit_gen.sweeps.journal import JOURNAL_NAME, Journal, outcomes, results_of
from lit_gen.sweeps.judge import Judge
from lit_gen.sweeps.labels import Labels
from lit_gen.sweeps.locks import TrialLocks
from lit_gen.sweeps.memory import MemoryWatch, in_units
from lit_gen.sweeps.objective import Objective
from lit_gen.sweeps.pool import Worker
from lit_gen.sweeps.progress import SweepProgress, metric_value, reported_names
from lit_gen.sweeps.proposals import Proposals
from lit_gen.sweeps.queue import SharedTrials, Training
from lit_gen.sweeps.results import SweepResult, results_in, save_trials
from lit_gen.sweeps.spec import Sweep
from lit_gen.sweeps.trial import Trial

SWEEP_VARIABLE = "LIT_GEN_SWEEP"
SECONDS_OF_SILENCE = 60.0
"""Seconds without a sign of life after which a worker is reported."""
SECONDS_UNTIL_REPLACED = 600.0
"""Seconds without a sign of life after which a worker is killed and its trial run again."""

# Signals to stop a trial, with the seconds until the next one; another Ctrl-C skips the wait.
_STOP_STEPS = [(signal.SIGINT, 20.0), (signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0)]
_KILL = [(signal.SIGKILL, 0.0)]
_TAKEN_OVER = "another process took the trial over"


@dataclass(frozen=True)
class Settings:
    """Settings of an execution.

    Args:
        jobs: Number of trials that run at once.
        runner: `module:function` that runs a trial.
        retries: How often a failed trial is run again.
        time_limit: Seconds after which a trial is ended; None for no limit.
        memory_limit: Bytes of memory beyond which a trial is ended; None for no limit.
        again: The command line, for advice.
    """

    jobs: int
    runner: str
    retries: int
    time_limit: float | None
    memory_limit: int | None
    again: str


class Execution:
    """One call of `run_sweep`.

    Args:
        sweep: The sweep.
        root: The runs folder.
        folder: Folder of the sweep.
        settings: Its settings.
        console: Console of the reports.
    """

    def __init__(self, sweep: Sweep, root: Path, folder: Path, settings: Settings, console: Console) -> None:
        self._root, self._folder, self._settings = root, folder, settings
        self._locks = TrialLocks(folder / "locks")
        self._journal = Journal(folder / JOURNAL_NAME, self._locks.process.token)
        events = self._journal.news()
        self._proposals = Proposals(sweep.searches)
        proposed = [trial for event in events if (trial := self._proposals.hear(event)) is not None]
        self._trials = {trial.id: trial for trial in [*sweep.trials, *proposed]}
        trials = list(self._trials.values())
        self._judge = Judge(trials)
        for event in events:
            self._judge.hear(event)
        results, stopped = self._ended_before(events)
        self._result = SweepResult(sweep.name, folder, trials, results, stopped=stopped)
        waiting = [trial for trial in trials if trial.id not in results and trial.id not in stopped]
        self._shared = SharedTrials(waiting, self._journal, self._locks)
        self._workers = _workers(settings, len(waiting) + self._proposals.num_left, sweep.name)
        self._progress = SweepProgress(console, trials, [*results, *stopped], len(self._workers))
        self._progress.expect(len(trials) + self._proposals.num_left)
        self._memory = MemoryWatch()
        self._notes = sweep.notes
        save_trials(folder, trials)
        self._metrics: set[str] = set()
        self._reached: set[Objective] = set()
        self._interrupts = 0

    def _ended_before(self, events: list[dict[str, Any]]) -> tuple[dict[str, list[Path]], dict[str, str]]:
        """Return the results of the trials that finished, and the reasons of those that were stopped early."""
        ended = outcomes(events)
        finished = results_in(ended, self._root)
        results = {trial: finished[trial] for trial in self._trials if trial in finished}
        stopped = {
            key: str(ended[key].get("reason"))
            for key, trial in self._trials.items()
            if trial.hyperband is not None and key in ended and ended[key]["event"] == "stopped"
        }
        for trial in stopped:
            self._proposals.record(self._trials[trial], None, self._judge.losses(self._trials[trial]))
        return results, stopped

    def run(self) -> SweepResult:
        """Run the trials, wait for those that other processes run, and return the outcome of all."""
        try:
            with self._locks, self._signals_counted(), self._progress:
                self._announce()
                while not self._interrupts and self._is_going_on():
                    self._hear()
                    self._assign()
                    self._collect()
                if self._interrupts:
                    self._stop()
                self._locks.clear()
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

    def _is_going_on(self) -> bool:
        """Return whether trials are left here or elsewhere; at the end, hear first what others have just ended."""
        for at_once in (False, True):
            if at_once:
                self._hear(at_once)
            left = self._shared.is_waiting or self._shared.num_elsewhere or self._proposals.num_left
            if left or self._busy():
                return True
        return False

    def _busy(self) -> list[Worker]:
        return [worker for worker in self._workers if worker.assignment]

    def _announce(self) -> None:
        for note in self._notes:
            self._progress.say(note)
        total, finished = len(self._result.trials) + self._proposals.num_left, len(self._result.results)
        done = f", {finished} of them finished before" if finished else ""
        done += f", {len(self._result.stopped)} stopped early before" if self._result.stopped else ""
        self._progress.say(f"sweep {self._result.name}: {total} trials{done}; folder {self._folder}")
        for trial in self._result.trials:
            if trial.id in self._result.results:
                self._score(trial)

    def _hear(self, at_once: bool = False) -> None:
        """Record what other processes have done, and give up trials that they have taken over."""
        for event in self._shared.news(at_once):
            self._judge.hear(event)
            if (proposed := self._proposals.hear(event)) is not None:
                self._add(proposed)
            elif (trial := self._trials.get(event["trial"])) is not None:
                self._record_of_others(trial, event)
        for lost in self._shared.give_up():
            for worker in self._busy():
                assert worker.assignment is not None
                if worker.assignment.trial.id == lost:
                    worker.assignment.end(_TAKEN_OVER, _KILL)
        if self._shared.num_elsewhere and not self._busy() and not self._shared.is_waiting:
            self._progress.waiting_for_others(self._shared.num_elsewhere)

    def _record_of_others(self, trial: Trial, event: dict[str, Any]) -> None:
        if event["event"] == "finished":
            self._result.failures.pop(trial.id, None)
            self._result.results[trial.id] = [self._root / path for path in results_of(event)]
            self._progress.ended_elsewhere(trial, "finished")
            self._score(trial)
        elif event["event"] == "failed" and not event.get("again"):
            error = str(event.get("error"))
            self._result.failures[trial.id] = (error, self._folder / str(event.get("log")))
            self._progress.ended_elsewhere(trial, f"FAILED: {error}")
            self._proposals.record(trial, None)
        elif event["event"] == "stopped":
            self._result.stopped[trial.id] = str(event.get("reason"))
            self._progress.ended_elsewhere(trial, "stopped early")
            self._proposals.record(trial, None, self._judge.losses(trial))

    def _assign(self) -> None:
        for worker in self._workers:
            if worker.assignment:
                continue
            busy = {training_of(worker.assignment.trial) for worker in self._workers if worker.assignment}
            while (trial := self._next(busy)) is not None:
                if (reason := self._judge.already_stopped(trial)) is None:
                    self._journal.append("started", trial.id, arguments=trial.arguments)
                    self._progress.started(trial)
                    worker.assign(trial, self._folder / "logs" / f"{trial.id}.log")
                    break
                self._progress.started(trial)
                self._record_stopped(trial, f"the same training run: {reason}", 0.0)

    def _next(self, busy: set[Training]) -> Trial | None:
        """Return the next trial, if need be one that a search proposes; None if there is none to be had."""
        while (trial := self._shared.claim(busy)) is None and self._propose():
            pass
        return trial

    def _propose(self) -> bool:
        """Let a search make a proposal, and return whether there is one; it may be a trial of before."""
        if self._interrupts or not self._proposals.num_left:
            return False
        with self._journal.locked():  # two processes must not make the same proposal
            self._hear(at_once=True)
            search = next(self._proposals.open(), None)
            if search is None:
                return False
            fields, trial = self._proposals.propose(search)
            self._journal.append("proposed", trial.id, **fields)
            self._proposals.hear({"event": "proposed", "trial": trial.id, **fields})
        self._add(trial)
        return True

    def _add(self, trial: Trial) -> None:
        """Add a proposed trial, unless it is one of before."""
        if trial.id not in self._trials:
            self._trials[trial.id] = trial
            self._result.trials.append(trial)
            self._judge.add(trial)
            self._shared.add(trial)
            self._progress.add(trial)
            save_trials(self._folder, self._result.trials)
        self._progress.expect(len(self._trials) + self._proposals.num_left)

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
                self._judge_scores(worker)
                self._watch(worker)
        self._progress.log()

    def _judge_scores(self, worker: Worker) -> None:
        """Tell a trial that has evaluated its weights whether it continues."""
        assignment = worker.assignment
        assert assignment is not None
        while assignment.scores:
            images, value = assignment.scores.popleft()
            trial = assignment.trial
            self._journal.append("scored", trial.id, images=images, value=value)
            self._judge.hear({"event": "scored", "trial": trial.id, "images": images, "value": value})
            worker.reply(self._judge.verdict(trial))

    def _watch(self, worker: Worker) -> None:
        """Report the progress of a trial and the silence of its process, and end it if it takes too long."""
        assignment, process = worker.assignment, worker.pid
        assert assignment is not None and process is not None
        silent = worker.silence > SECONDS_OF_SILENCE
        if silent and not assignment.silent:
            self._progress.silent(assignment.trial, process, worker.silence, SECONDS_UNTIL_REPLACED)
        elif assignment.silent and not silent:
            self._progress.heard(assignment.trial, process)
        elif assignment.step and not silent:
            self._progress.stepped(assignment.trial, assignment.step)
        assignment.silent = silent
        limit, memory = self._settings.time_limit, self._settings.memory_limit
        if worker.silence > SECONDS_UNTIL_REPLACED:
            assignment.end(f"the worker gave no sign of life for {worker.silence:.0f} s", _KILL)
            assignment.replaced = True
        elif limit is not None and assignment.seconds > limit:
            assignment.end(f"the trial took longer than --time-limit, {limit:g} s", _STOP_STEPS)
        elif memory is not None and self._memory.of(process) > memory:
            assignment.end(f"the trial used more than --memory-limit, {in_units(memory)}", _KILL)
            assignment.replaced = worker.is_used  # what the trials before left may be too much for this one
        if (number := assignment.due()) is not None:
            worker.signal(number)

    def _record(self, worker: Worker, answer: dict[str, Any]) -> None:
        assignment = worker.assignment
        assert assignment is not None
        worker.assignment = None
        trial, seconds = assignment.trial, assignment.seconds
        if answer["status"] == "finished":
            self._record_finished(trial, [Path(result) for result in answer["results"]], seconds)
        elif assignment.ending == _TAKEN_OVER:
            self._progress.ended_elsewhere(trial, _TAKEN_OVER, ends=False)
        elif answer["status"] == "stopped":
            self._record_stopped(trial, answer["reason"], seconds)
        elif self._interrupts:  # a trial that was told to stop did not fail: it stays to be run
            self._shared.put_back(trial)
        else:
            allowed = max(self._settings.retries, 1) if assignment.replaced else self._settings.retries
            error = assignment.ending or answer["error"]
            self._record_failed(trial, error, assignment.log, 0 if answer.get("user") else allowed)

    def _record_finished(self, trial: Trial, results: list[Path], seconds: float) -> None:
        paths = [os.path.relpath(result, self._root) for result in results]
        more = {"results": paths} if len(paths) > 1 else {}
        self._journal.append("finished", trial.id, result=paths[0], **more, seconds=round(seconds, 3))
        self._shared.end(trial)
        self._result.results[trial.id] = results
        self._progress.finished(trial, results, seconds)
        if trial.metric is not None and trial.metric not in self._metrics:  # the first of its metric
            self._metrics.add(trial.metric)
            self._check_metric(trial.metric, results, "the first result does not hold")
        self._score(trial)

    def _record_stopped(self, trial: Trial, reason: str, seconds: float) -> None:
        losses = self._judge.losses(trial)
        self._journal.append("stopped", trial.id, reason=reason, num_evaluations=len(losses), seconds=round(seconds, 3))
        self._judge.hear({"event": "stopped", "trial": trial.id, "reason": reason})
        self._shared.end(trial)
        self._result.stopped[trial.id] = reason
        self._proposals.record(trial, None, losses)
        self._progress.stopped(trial, reason, seconds)

    def _record_failed(self, trial: Trial, error: str, log: Path, retries: int) -> None:
        self._shared.num_failures[trial.id] += 1
        number = self._shared.num_failures[trial.id]
        again = {"again": True} if number <= retries else {}
        self._journal.append("failed", trial.id, error=error, log=os.path.relpath(log, self._folder), **again)
        if again:
            self._progress.failed(trial, error, log, f"{number} of {retries}")
            self._shared.put_back(trial)
        else:
            self._result.failures[trial.id] = (error, log)
            self._proposals.record(trial, None)
            self._progress.failed(trial, error, log)
            self._shared.end(trial)

    def _score(self, trial: Trial) -> None:
        """Tell the search of a finished trial its value, and end the sweep file if it reaches the target."""
        objective = trial.objective
        if objective is None or (objective.target is None and not self._proposals.is_any):
            return
        value = metric_value(self._result.results[trial.id], objective.name)
        self._proposals.record(trial, value)
        if value is None:  # nothing to optimize by
            self._proposals.close(objective)
        elif objective.is_reached(value) and objective not in self._reached:
            self._reached.add(objective)
            self._proposals.close(objective)
            self._shared.remove(lambda other: other.objective == objective)
            target = f"{objective.name} {value:.4g} reaches metric.target {objective.target:g}"
            self._progress.say(f"{target}; no other trial is started")

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
        stopped = f", {len(result.stopped)} stopped early" if result.stopped else ""
        say(
            f"sweep {result.name}: {len(result.results)} finished{stopped}, {len(result.failures)} failed "
            f"of {len(result.trials)} trials"
        )
        labels = Labels(result.trials)
        for trial in result.trials:
            if trial.id in result.failures:
                error, log = result.failures[trial.id]
                say(f"  failed: {labels.describe(trial)}: {error} (see {log})")
            elif trial.id in result.stopped:
                say(f"  stopped early: {labels.describe(trial)}: {result.stopped[trial.id]}")
        for metric in dict.fromkeys(trial.metric for trial in result.trials):
            of_metric = [trial.id for trial in result.trials if trial.metric == metric]
            found = [path for trial in of_metric for path in result.results.get(trial, [])]
            if metric is not None and not self._check_metric(metric, found, "no result holds"):
                result.unknown_metrics.append(metric)
        if result.failures or result.interrupted:
            what = "the rest" if result.interrupted else "the failed trials again"
            say(f"run {what} with the same command: {self._settings.again}; finished trials are not repeated")


def _workers(settings: Settings, num_waiting: int, name: str) -> list[Worker]:
    environment = os.environ | {SWEEP_VARIABLE: name}
    if settings.jobs > 1:  # the same for the last trial as for the first: another number rounds differently
        environment.setdefault("OMP_NUM_THREADS", str(max(1, num_cores() // settings.jobs)))
    return [Worker(settings.runner, environment) for _ in range(max(1, min(settings.jobs, num_waiting)))]


def num_cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
