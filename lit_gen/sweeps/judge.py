"""The trials to stop early, chosen by the evaluations of all trials of their sweep file."""

import math
from collections.abc import Iterable
from typing import Any

from lit_gen.sweeps.estimate import training_of
from lit_gen.sweeps.trial import Trial


class Judge:
    """The evaluations during training of trials with `early_terminate`, as the journal has them.

    Args:
        trials: Trials of the sweep.
    """

    def __init__(self, trials: Iterable[Trial]) -> None:
        self._trials = {trial.id: trial for trial in trials if trial.hyperband is not None}
        self._losses: dict[str, dict[int, float]] = {}
        self._stopped: dict[frozenset[str], str] = {}

    def add(self, trial: Trial) -> None:
        """Add a trial."""
        if trial.hyperband is not None:
            self._trials[trial.id] = trial

    def hear(self, event: dict[str, Any]) -> None:
        """Take an event of the journal; only evaluations and trials that were stopped matter."""
        trial = self._trials.get(event["trial"])
        if trial is None or trial.objective is None:
            return
        if event["event"] == "stopped":
            self._stopped[training_of(trial)] = str(event.get("reason"))
        value, images = event.get("value"), event.get("images")
        if event["event"] == "scored" and isinstance(value, int | float) and isinstance(images, int):
            loss = trial.objective.loss(value) if math.isfinite(value) else math.inf
            # a trial that was killed repeats evaluations when it resumes
            self._losses.setdefault(trial.id, {})[images] = loss

    def losses(self, trial: Trial) -> list[float]:
        """Return the losses of a trial in the order of its training."""
        return [loss for _, loss in sorted(self._losses.get(trial.id, {}).items())]

    def verdict(self, trial: Trial) -> str | None:
        """Return why a trial is to be stopped after its last evaluation; None if it continues."""
        if trial.hyperband is None:
            return None
        others = [
            self.losses(other)
            for other in self._trials.values()
            if other.id != trial.id and other.hyperband == trial.hyperband and other.id in self._losses
        ]
        return trial.hyperband.verdict(self.losses(trial), others)

    def already_stopped(self, trial: Trial) -> str | None:
        """Return why a trial of the same training run was stopped; None if none was."""
        return self._stopped.get(training_of(trial)) if trial.hyperband is not None else None
