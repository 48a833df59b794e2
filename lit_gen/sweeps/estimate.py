"""Estimates how long a sweep still takes, from its first minute on.

    seconds left = max(sum of the seconds left of all running and waiting trials / jobs, the longest running trial's)

Trials that share a training cost very different times: the first trains and evaluates, the others only evaluate. So
each of the two kinds has a mean of its own, over its finished trials, and before one has finished over the running
ones as they are expected to end.
"""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

from lit_gen.core.progress import Step
from lit_gen.sweeps.spec import Trial

SHARE_OF_EVALUATION = 0.1
"""Assumed cost of a trial that only evaluates, as a share of one that trains, until one has run."""

_EVALUATION_ARGUMENT = re.compile(r"--(sampler|evaluation|wandb)\b")


def training_of(trial: Trial) -> frozenset[str]:
    """Return the arguments that may change the weights; trials that share them share a training."""
    return frozenset(argument for argument in trial.arguments if not _EVALUATION_ARGUMENT.match(argument))


@dataclass
class _Running:
    trains: bool
    since: float
    total: float | None = None  # seconds from its beginning to its end, as far as its present step tells


class Estimate:
    """The time left of a sweep.

    Args:
        waiting: The trials to be run.
        jobs: How many run at a time.
    """

    def __init__(self, waiting: Sequence[Trial], jobs: int) -> None:
        self._waiting = {trial.id: training_of(trial) for trial in waiting}
        self._jobs = jobs
        self._begun: set[frozenset[str]] = set()
        self._running: dict[str, _Running] = {}
        self._seconds: dict[bool, list[float]] = {True: [], False: []}

    def started(self, trial: Trial) -> None:
        """Note that a trial begins."""
        training = self._waiting.pop(trial.id, training_of(trial))
        self._running[trial.id] = _Running(training not in self._begun, time.monotonic())
        self._begun.add(training)

    def stepped(self, trial: Trial, step: Step) -> None:
        """Note how far a running trial is."""
        if isfinite(step.seconds_left):
            running = self._running[trial.id]
            running.total = time.monotonic() - running.since + step.seconds_left

    def ended(self, trial: Trial, seconds: float | None = None) -> None:
        """Note that a trial is over: it took so long, or tells nothing since it failed."""
        running = self._running.pop(trial.id)
        if seconds is not None:
            self._seconds[running.trains].append(seconds)

    def seconds_left(self) -> float | None:
        """Return the seconds until the last trial ends; None while nothing is known."""
        training, evaluating = self._mean(True), self._mean(False)
        if evaluating is None:
            evaluating = None if training is None else SHARE_OF_EVALUATION * training
        if training is None:
            training = evaluating
        if training is None or evaluating is None:
            return None
        now = time.monotonic()
        running = [
            max((trial.total or (training if trial.trains else evaluating)) - (now - trial.since), 0.0)
            for trial in self._running.values()
        ]
        num_trainings = len(set(self._waiting.values()) - self._begun)
        waiting = num_trainings * training + (len(self._waiting) - num_trainings) * evaluating
        return max((sum(running) + waiting) / self._jobs, *running, 0.0)

    def _mean(self, trains: bool) -> float | None:
        expected = [trial.total for trial in self._running.values() if trial.trains == trains and trial.total]
        seconds = self._seconds[trains] or expected
        return sum(seconds) / len(seconds) if seconds else None
