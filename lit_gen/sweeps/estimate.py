"""Estimate the time left of a sweep.

    seconds left = max(sum of the seconds left of all running and waiting trials / jobs, longest running trial)

The first trial of a training run trains and evaluates, the others only evaluate, which takes far less time. The two
kinds therefore have separate means over their finished trials, or over the expected totals of their running trials
before one has finished.
"""

import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import fmean

from lit_gen.core.progress import Step
from lit_gen.sweeps.trial import Trial

SHARE_OF_EVALUATION = 0.1
"""Assumed time of a trial that only evaluates, as a fraction of a trial that trains, until one has run."""

_EVALUATION_ARGUMENT = re.compile(r"--(sampler|evaluation|tracker|wandb)\b")


def training_of(trial: Trial) -> frozenset[str]:
    """Return the arguments that may change the weights; trials that share them share a training run."""
    return frozenset(argument for argument in trial.arguments if not _EVALUATION_ARGUMENT.match(argument))


@dataclass
class _Running:
    trains: bool
    since: float
    total: float | None = None  # expected seconds from start to end, by the current step


class Estimate:
    """The time left of a sweep.

    Args:
        waiting: The trials to run.
        jobs: Number of trials that run at once.
    """

    def __init__(self, waiting: Sequence[Trial], jobs: int) -> None:
        self._waiting: dict[str, frozenset[str]] = {}
        self._num_waiting: Counter[frozenset[str]] = Counter()
        self._jobs = jobs
        self._begun: set[frozenset[str]] = set()
        self._to_train: set[frozenset[str]] = set()
        self._running: dict[str, _Running] = {}
        self._seconds = {True: 0.0, False: 0.0}
        self._num_ended = {True: 0, False: 0}
        for trial in waiting:
            self.added(trial)

    def added(self, trial: Trial) -> None:
        """Add a trial to those that wait."""
        training = training_of(trial)
        if trial.id not in self._waiting:
            self._waiting[trial.id] = training
            self._num_waiting[training] += 1
            if training not in self._begun:
                self._to_train.add(training)

    def removed(self, trial: Trial) -> frozenset[str]:
        """Remove a trial from those that wait, if it is one, and return its training."""
        training = self._waiting.pop(trial.id, None)
        if training is None:
            return training_of(trial)
        self._num_waiting[training] -= 1
        if not self._num_waiting[training]:
            del self._num_waiting[training]
            self._to_train.discard(training)
        return training

    def started(self, trial: Trial) -> None:
        """Record that a trial starts."""
        training = self.removed(trial)
        self._running[trial.id] = _Running(training not in self._begun, time.monotonic())
        self._begun.add(training)
        self._to_train.discard(training)

    def stepped(self, trial: Trial, step: Step) -> None:
        """Record the progress of a running trial."""
        if isfinite(step.seconds_left):
            running = self._running[trial.id]
            running.total = time.monotonic() - running.since + step.seconds_left

    def ended(self, trial: Trial, seconds: float | None = None) -> None:
        """Record that a trial ended, with its time in seconds unless it failed; nothing if that is known already."""
        running = self._running.pop(trial.id, None)
        if running is not None and seconds is not None:
            self._seconds[running.trains] += seconds
            self._num_ended[running.trains] += 1

    def seconds_left(self) -> float | None:
        """Return the expected seconds until the last trial ends; None before the first progress."""
        train, evaluate = self._mean(trains=True), self._mean(trains=False)
        if train is None and evaluate is None:
            return None
        if evaluate is None:
            evaluate = SHARE_OF_EVALUATION * (train or 0.0)
        if train is None:
            train = evaluate
        now = time.monotonic()
        running = [
            max((trial.total or (train if trial.trains else evaluate)) - (now - trial.since), 0.0)
            for trial in self._running.values()
        ]
        num_trainings = len(self._to_train)
        waiting = num_trainings * train + (len(self._waiting) - num_trainings) * evaluate
        return max((sum(running) + waiting) / self._jobs, *running, 0.0)

    def _mean(self, trains: bool) -> float | None:
        """Return the mean seconds of the trials that train, or of the others; None if nothing is known of them."""
        if self._num_ended[trains]:
            return self._seconds[trains] / self._num_ended[trains]
        expected = [trial.total for trial in self._running.values() if trial.trains == trains and trial.total]
        return fmean(expected) if expected else None
