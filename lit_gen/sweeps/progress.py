"""Report a running sweep: a line for each trial that ends, live bars, and a line a minute if there is no terminal."""

import re
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.progress import Progress, TaskID

from lit_gen.core.display import Description, Number, bar, clock, speed
from lit_gen.core.errors import UserError
from lit_gen.core.progress import SECONDS_BETWEEN_LINES, Step
from lit_gen.core.records import SCORE, read_record, values_of
from lit_gen.core.text import printable
from lit_gen.sweeps.estimate import Estimate
from lit_gen.sweeps.labels import Labels
from lit_gen.sweeps.trial import Trial


def main_metrics(results: Sequence[Path]) -> str:
    """Return the metrics of a trial, the mean over its result.json files, in one line; empty if there are none."""
    scores = [_scores(result) for result in results]
    shown = [name for name in scores[0] if not name.endswith(("_std", "_stderr"))]
    means = {name: fmean(each[name] for each in scores) for name in shown if all(name in each for each in scores)}
    repeats = f"  (mean of {len(results)} sampling seeds)" if means and len(results) > 1 else ""
    return "  ".join(f"{name} {value:.4g}" for name, value in means.items()) + repeats


def reported_names(result: Path) -> list[str]:
    """Return the names under which the numbers of a result.json are logged, the choices for a sweep's `metric.name`."""
    metrics, timing = _scores(result), _scores(result, "timing")
    return [*metrics, "nfe", *timing] if metrics else []


def metric_value(results: Sequence[Path], name: str) -> float | None:
    """Return the value of a reported name, the mean over the results of a trial; None if one of them lacks it."""
    values = []
    for result in results:
        metrics, timing = _scores(result), _scores(result, "timing")
        found = metrics.get(name, timing.get(name))
        if found is None and name == "nfe":
            found = _nfe(result)
        if found is None:
            return None
        values.append(float(found))
    return fmean(values) if values else None


def _nfe(result: Path) -> float | None:
    try:
        nfe = read_record(result, "").get("nfe")
    except (OSError, UserError):
        return None
    return float(nfe) if isinstance(nfe, int | float) else None


def _scores(result: Path, block: str = "metrics") -> dict[str, float]:
    """Return the numbers in a block of a result.json; none if the file is damaged."""
    try:
        scores = read_record(result, "").get(block)
    except (OSError, UserError):
        return {}
    numbers = {key: scores[key] for key in scores if key != "device"} if isinstance(scores, dict) else {}
    return numbers if values_of(SCORE).fits(numbers) else {}


def _activity(step: Step) -> str:
    """Return what a trial does in a word, with the number of the repeat, such as `evaluating (2 of 3)`."""
    words = re.match(r"\S+( \(\d+ of \d+\))?", step.description)
    return "" if words is None else words[0]


NUM_IN_A_LINE = 4
"""Largest number of running trials that a line of progress describes."""


class SweepProgress:
    """Reports of a sweep on a console; a context manager.

    A trial that another process took over and ended may still run here for a moment.

    Args:
        console: The console; bars appear only if it is a terminal, and else lines of progress.
        trials: All trials of the sweep.
        finished: Ids of the trials that finished earlier.
        jobs: Number of trials that run at once, for the estimate of the time left.
    """

    def __init__(self, console: Console, trials: Sequence[Trial], finished: Collection[str], jobs: int) -> None:
        self._console = console
        self._trials = list(trials)
        self._labels = Labels(trials)
        self._total = len(trials)
        self._finished = len(finished)
        self._failed = 0
        self._told_of_waiting = False
        self._has_failed: dict[str, bool] = {}
        self._estimate = Estimate([trial for trial in trials if trial.id not in finished], jobs)
        self._running: dict[str, TaskID] = {}
        self._steps: dict[str, Step] = {}
        self._logged = time.monotonic()
        self._bars = Progress(
            *(Description(), bar(console), Number("count"), Number("speed"), Number("left")),
            console=console,
            disable=not console.is_terminal,
        )
        self._bar = self._bars.add_task("trials", total=self._total, **self._whole())

    def __enter__(self) -> "SweepProgress":
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        for task in [*self._running.values(), self._bar]:
            self._bars.remove_task(task)
        self._bars.stop()

    def add(self, trial: Trial) -> None:
        """Add a trial that a search has proposed."""
        self._trials.append(trial)
        self._labels = Labels(self._trials)
        self._estimate.added(trial)

    def expect(self, total: int) -> None:
        """Set the number of trials of the sweep."""
        self._total = total
        self._bars.update(self._bar, total=total, **self._whole())

    def started(self, trial: Trial) -> None:
        """Add a bar for a trial that begins."""
        self._estimate.started(trial)
        label = f"  {self._labels.describe(trial)}"
        self._running[trial.id] = self._bars.add_task(label, total=None, count="", speed="", left="starting")

    def stepped(self, trial: Trial, step: Step) -> None:
        """Show how far a running trial is."""
        if trial.id in self._running and step != self._steps.get(trial.id):
            self._steps[trial.id] = step
            self._estimate.stepped(trial, step)
            under_way = step.images_per_second > 0 and step.completed < step.total
            self._bars.update(
                self._running[trial.id],
                description=f"  {self._labels.describe(trial)}: {_activity(step)}",
                total=step.total,
                completed=step.completed,
                count=f"{step.completed:,}/{step.total:,}",
                speed=speed(step.images_per_second) if under_way else "",
                left=f"{clock(step.seconds_left)} left" if under_way else "",
            )
            self._bars.update(self._bar, **self._whole())

    def log(self) -> None:
        """Print what runs and how far the sweep is, at most every `SECONDS_BETWEEN_LINES`, unless there are bars."""
        now = time.monotonic()
        if self._console.is_terminal or now - self._logged < SECONDS_BETWEEN_LINES:
            return
        self._logged = now
        running = [trial for trial in self._trials if trial.id in self._running]
        words = [f"{self._labels.describe(trial)}: {self._doing(trial)}" for trial in running[:NUM_IN_A_LINE]]
        more = [f"and {len(running) - len(words)} more"] if len(running) > len(words) else []
        whole = self._whole()
        failed = self._failed and f"{self._failed} failed"
        left = whole["left"] and f"{whole['left']} of the sweep"
        of_all = [f"{whole['completed']}/{self._total} trials", failed, whole["speed"], left]
        what = "running" if running else "waiting for other processes"
        self.say("; ".join([f"{what}: {', '.join(filter(None, of_all))}", *words, *more]))

    def _doing(self, trial: Trial) -> str:
        step = self._steps.get(trial.id)
        return "starting" if step is None else f"{_activity(step)} {step.in_words}"

    def silent(self, trial: Trial, process: int, seconds: float, until_replaced: float) -> None:
        """Report that the process of a running trial gives no sign of life."""
        self._steps.pop(trial.id, None)
        if trial.id in self._running:
            self._bars.update(self._running[trial.id], speed="", left="no sign of life")
        self.say(
            f"{self._labels.describe(trial)}: process {process} has given no sign of life for {seconds:.0f} s and may "
            f"be stopped; resume it with kill -CONT {process}, or it is replaced after {until_replaced:.0f} s"
        )

    def heard(self, trial: Trial, process: int) -> None:
        """Report that the process of a running trial gives signs of life again."""
        if trial.id in self._running:
            self._bars.update(self._running[trial.id], left="")
        self.say(f"{self._labels.describe(trial)}: process {process} is running again")

    def finished(self, trial: Trial, results: Sequence[Path], seconds: float) -> None:
        """Report the results of a trial, one per sampling seed."""
        self._count(trial, failed=False)
        self._estimate.ended(trial, seconds)
        self._ended(trial, f"{main_metrics(results)}  {seconds:.1f} s")

    def stopped(self, trial: Trial, reason: str, seconds: float) -> None:
        """Report that a trial was stopped early."""
        self._count(trial, failed=False)
        self._estimate.ended(trial)
        self._ended(trial, f"stopped early: {reason}  {seconds:.1f} s")

    def failed(self, trial: Trial, error: str, log: Path, retry: str = "") -> None:
        """Report that a trial failed, and which retry follows if one does; the sweep continues."""
        self._estimate.ended(trial)
        if retry:
            self._estimate.added(trial)
            self._ended(trial, f"failed and runs again ({retry}): {error} (see {log})")
        else:
            self._count(trial, failed=True)
            self._ended(trial, f"FAILED: {error} (see {log})")

    def ended_elsewhere(self, trial: Trial, how: str, ends: bool = True) -> None:
        """Report what another process did with a trial."""
        self._estimate.removed(trial)
        if trial.id in self._running:
            self._estimate.ended(trial)
        if ends:
            self._count(trial, failed=how.startswith("FAILED"))
        self._ended(trial, how if not ends else f"{how}, by another process")

    def _count(self, trial: Trial, failed: bool) -> None:
        """Count a trial as ended, only once: another process may run one again that failed here."""
        before = self._has_failed.get(trial.id)
        if before is not None:
            self._failed -= before
            self._finished -= not before
        self._has_failed[trial.id] = failed
        self._failed += failed
        self._finished += not failed

    def waiting_for_others(self, number: int) -> None:
        """Report once that only trials of other processes are left."""
        if not self._told_of_waiting:
            self._told_of_waiting = True
            self.say(f"waiting for {number} {'trial' if number == 1 else 'trials'} that other processes run")

    def say(self, line: str) -> None:
        """Print a line above the bars."""
        self._console.print(printable(line), markup=False, highlight=False, soft_wrap=True)

    def _ended(self, trial: Trial, text: str) -> None:
        if trial.id in self._running:
            self._bars.remove_task(self._running.pop(trial.id))
        self._steps.pop(trial.id, None)
        self._bars.update(self._bar, **self._whole())
        done = self._finished + self._failed
        self.say(f"[{done:{len(str(self._total))}}/{self._total}] {self._labels.describe(trial)}  {text}")

    def _whole(self) -> dict[str, Any]:
        """Return the fields of the bar of the whole sweep."""
        done = self._finished + self._failed
        failed = f", {self._failed} failed" if self._failed else ""
        left = self._estimate.seconds_left() if done < self._total else None
        return {
            "completed": done,
            "count": f"{done}/{self._total}{failed}",
            "speed": speed(sum(step.images_per_second for step in self._steps.values())),
            "left": "" if left is None else f"{clock(left)} left",
        }
