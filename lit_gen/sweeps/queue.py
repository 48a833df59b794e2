"""The trials of a sweep that wait to be run, and those that other processes run."""

import heapq
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from lit_gen.sweeps.estimate import training_of
from lit_gen.sweeps.journal import Journal
from lit_gen.sweeps.locks import TrialLocks
from lit_gen.sweeps.trial import Trial

SECONDS_BETWEEN_LOOKS = 1.0
"""Seconds between two looks at what other processes do."""

Training = frozenset[str]


class TrialQueue:
    """Trials in their order, of which those whose training run nobody has come first: the others would wait for it."""

    def __init__(self, trials: Iterable[Trial]) -> None:
        self._trials: dict[Training, deque[tuple[int, Trial]]] = {}
        self._heads: list[tuple[int, int, Training]] = []
        self._places: dict[str, int] = {}
        for trial in trials:
            self.push(trial)

    def __len__(self) -> int:
        return sum(map(len, self._trials.values()))

    def __bool__(self) -> bool:
        return bool(self._trials)

    def push(self, trial: Trial) -> None:
        """Add a trial at the end, or one that was taken out before its training's others."""
        training = training_of(trial)
        known = trial.id in self._places
        place = self._places.setdefault(trial.id, len(self._places))
        of_training = self._trials.setdefault(training, deque())
        if known:
            of_training.appendleft((place, trial))
        else:
            of_training.append((place, trial))
        if len(of_training) == 1 or known:
            heapq.heappush(self._heads, (of_training[0][0], id(training), training))

    def pop(self, busy: set[Training]) -> Trial | None:
        """Take out the first trial whose training is not busy, or else the first one; None if there is none."""
        passed = []
        found: Training | None = None
        while self._heads and found is None:
            head = heapq.heappop(self._heads)
            waiting = self._trials.get(head[2])
            if waiting is None or waiting[0][0] != head[0]:  # an older head
                continue
            if head[2] in busy:
                passed.append(head)
            else:
                found = head[2]
        if found is None and passed:
            found = passed.pop(0)[2]
        for head in passed:
            heapq.heappush(self._heads, head)
        if found is None:
            return None
        waiting = self._trials[found]
        _, trial = waiting.popleft()
        if waiting:
            heapq.heappush(self._heads, (waiting[0][0], id(found), found))
        else:
            del self._trials[found]
        return trial


class SharedTrials:
    """The trials that are left of a sweep which several processes may run.

    Args:
        trials: The trials to run.
        journal: The journal of the sweep.
        locks: The locks of its trials.
    """

    def __init__(self, trials: Sequence[Trial], journal: Journal, locks: TrialLocks) -> None:
        self._trials = {trial.id: trial for trial in trials}
        self._queue = TrialQueue(trials)
        self._journal = journal
        self._locks = locks
        self._elsewhere: dict[str, Trial] = {}
        self._busy_elsewhere: set[Training] = set()
        self._ended: set[str] = set()
        self._unheard: list[dict[str, Any]] = []
        self._looked = -SECONDS_BETWEEN_LOOKS
        self.num_failures: Counter[str] = Counter()

    @property
    def num_elsewhere(self) -> int:
        """Number of trials that other processes run, as far as this one tried to."""
        return len(self._elsewhere)

    @property
    def is_waiting(self) -> bool:
        """Whether this process still has a trial to run."""
        return bool(self._queue)

    def add(self, trial: Trial) -> None:
        """Add a trial to run."""
        self._trials[trial.id] = trial
        self._queue.push(trial)

    def remove(self, chosen: Callable[[Trial], bool]) -> None:
        """Remove the chosen trials from those to run and those to wait for."""
        kept = []
        while (trial := self._queue.pop(set())) is not None:
            kept.append(trial)
        self._queue = TrialQueue(trial for trial in kept if not chosen(trial))
        self._elsewhere = {key: trial for key, trial in self._elsewhere.items() if not chosen(trial)}

    def claim(self, busy: set[Training]) -> Trial | None:
        """Return the next trial, whose lock this process has from now on; None if there is none to be had.

        Args:
            busy: Training runs that this process has.
        """
        while (trial := self._queue.pop(busy | self._busy_elsewhere)) is not None:
            if trial.id in self._ended:
                continue
            if not self._locks.acquire(trial.id):
                self._elsewhere[trial.id] = trial
                continue
            self._listen()  # another process may have ended it a moment ago
            if trial.id not in self._ended:
                return trial
            self._locks.release(trial.id)
        return None

    def end(self, trial: Trial) -> None:
        """Record that a trial ended and its outcome is in the journal."""
        self._ended.add(trial.id)
        self._locks.release(trial.id)

    def put_back(self, trial: Trial) -> None:
        """Let any process run a trial of this one again."""
        self._locks.release(trial.id)
        self._queue.push(trial)

    def give_up(self) -> list[str]:
        """Return the trials that another process has taken over, and no longer hold them."""
        lost = self._locks.lost()
        for trial in lost:
            self._locks.release(trial)
            self._elsewhere[trial] = self._trials[trial]
        return lost

    def news(self, at_once: bool = False) -> list[dict[str, Any]]:
        """Return what other processes have written since the last call; it looks only every second."""
        now = time.monotonic()
        if at_once or now - self._looked >= SECONDS_BETWEEN_LOOKS:
            self._looked = now
            held = self._locks.of_others()  # before the journal: who ends a trial writes first and then lets go
            self._listen()
            known = [self._trials[trial] for trial in held if trial in self._trials]
            self._busy_elsewhere = {training_of(trial) for trial in known}
            for trial in [trial for trial in self._elsewhere if trial not in held]:
                returned = self._elsewhere.pop(trial)
                if trial not in self._ended:
                    self._queue.push(returned)
        news, self._unheard = self._unheard, []
        return news

    def _listen(self) -> None:
        for event in self._journal.news():
            if event.get("by") == self._journal.writer:
                continue
            self._unheard.append(event)
            kind, trial = event["event"], event["trial"]
            if kind == "failed":
                self.num_failures[trial] += 1
            if kind in ("finished", "stopped") or (kind == "failed" and not event.get("again")):
                self._ended.add(trial)
                self._elsewhere.pop(trial, None)
