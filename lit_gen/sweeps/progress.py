"""What a sweep shows while it runs: one line for each trial that ends and, on a terminal, live bars."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from lit_gen.core.records import SCORE, read_record, values_of
from lit_gen.core.text import printable, shorten
from lit_gen.errors import UserError
from lit_gen.step import Step
from lit_gen.sweeps.spec import Trial


def varying_keys(trials: Sequence[Trial]) -> dict[str, str]:
    """The parameters that are not the same in all trials, each with the shortest tail of its name that is its own."""
    keys = list(dict.fromkeys(key for trial in trials for key in trial.parameters))
    varying = [key for key in keys if len({repr(trial.parameters.get(key, ...)) for trial in trials}) > 1]
    names = {}
    for key in varying:
        parts = key.split(".")
        tails = [".".join(parts[start:]) for start in reversed(range(len(parts)))]
        clashing = [other for other in varying if other != key]
        names[key] = next(
            (tail for tail in tails if not any(f".{other}".endswith(f".{tail}") for other in clashing)), key
        )
    return names


def describe(trial: Trial, names: dict[str, str]) -> str:
    """The trial's varying parameters in one line, `model=EDM steps=10`."""
    values = (f"{name}={trial.parameters[key]}" for key, name in names.items() if key in trial.parameters)
    return printable(" ".join(values) or trial.id)


def trial_table(trials: Sequence[Trial], status: dict[str, str]) -> Table:
    """The trials as a table: number, id, varying parameters, status.

    Args:
        trials: The trials in order.
        status: Trial id -> finished or failed; the others are waiting.
    """
    names = varying_keys(trials)
    table = Table(box=None, header_style="bold")
    table.add_column("#", justify="right")
    table.add_column("trial")
    for name in names.values():
        table.add_column(Text(printable(name)))
    table.add_column("status")
    for number, trial in enumerate(trials, start=1):
        values = [Text(shorten(printable(trial.parameters.get(key, "")), 80)) for key in names]
        table.add_row(str(number), trial.id, *values, status.get(trial.id, "waiting"))
    return table


def main_metrics(result: Path) -> str:
    """The metrics of a result.json in one line; empty if it holds none."""
    try:
        metrics = read_record(result, "").get("metrics")
    except (OSError, UserError):
        return ""
    if not values_of(SCORE).fits(metrics):
        return ""
    shown = {name: value for name, value in (metrics or {}).items() if not name.endswith(("_std", "_stderr"))}
    return "  ".join(f"{name} {value:.4g}" for name, value in shown.items())


class SweepProgress:
    """Reports a sweep on a console; use as a context manager.

    Args:
        console: Where to; bars appear only if it is a terminal.
        trials: All trials of the sweep.
        num_finished: How many of them had finished before.
        jobs: How many run at once, for the estimate of the time left.
    """

    def __init__(self, console: Console, trials: Sequence[Trial], num_finished: int, jobs: int) -> None:
        self._console = console
        self._names = varying_keys(trials)
        self._total = len(trials)
        self._finished = num_finished
        self._failed = 0
        self._jobs = jobs
        self._seconds: list[float] = []
        self._running: dict[str, TaskID] = {}
        self._steps: dict[str, Step] = {}
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[note]}", markup=False),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._bar = self._bars.add_task("trials", total=self._total, completed=num_finished, note=self._note())

    def __enter__(self) -> "SweepProgress":
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        for task in [*self._running.values(), self._bar]:
            self._bars.remove_task(task)
        self._bars.stop()

    def started(self, trial: Trial) -> None:
        """A trial begins."""
        self._running[trial.id] = self._bars.add_task(f"  {describe(trial, self._names)}", total=None, note="")

    def stepped(self, trial: Trial, step: Step) -> None:
        """A running trial has got so far."""
        if step != self._steps.get(trial.id):
            self._steps[trial.id] = step
            note = step.description if step.completed < step.total else f"{step.description}: done"
            if step.images_per_second and step.completed < step.total:
                note = f"{step.images_per_second:,.0f} images/s, {_minutes(step.seconds_left)} left, {note}"
            task = self._running[trial.id]
            self._bars.update(task, total=step.total, completed=step.completed, note=note)
            self._bars.update(self._bar, note=self._note())

    def silent(self, trial: Trial, process: int, seconds: float) -> None:
        """The process of a running trial gives no sign of life."""
        self._steps.pop(trial.id, None)
        self._bars.update(self._running[trial.id], note=f"no sign of life of process {process}")
        self.say(
            f"{describe(trial, self._names)}: process {process} has given no sign of life for {seconds:.0f} s and may "
            f"be stopped; kill -CONT {process} wakes it, kill -KILL {process} gives the trial up"
        )

    def heard(self, trial: Trial, process: int) -> None:
        """The process of a running trial gives signs of life again."""
        self._bars.update(self._running[trial.id], note="")
        self.say(f"{describe(trial, self._names)}: process {process} is at work again")

    def finished(self, trial: Trial, result: Path, seconds: float) -> None:
        """A trial has a result."""
        self._finished += 1
        self._ended(trial, seconds, f"{main_metrics(result)}  {seconds:.1f} s")

    def failed(self, trial: Trial, error: str, log: Path, seconds: float) -> None:
        """A trial failed; the sweep goes on."""
        self._failed += 1
        self._ended(trial, seconds, f"FAILED: {error} (see {log})")

    def say(self, line: str) -> None:
        """Print a line above the bars."""
        self._console.print(printable(line), markup=False, highlight=False, soft_wrap=True)

    def _ended(self, trial: Trial, seconds: float, text: str) -> None:
        self._seconds.append(seconds)
        self._bars.remove_task(self._running.pop(trial.id))
        self._steps.pop(trial.id, None)
        done = self._finished + self._failed
        self._bars.update(self._bar, completed=done, note=self._note())
        self.say(f"[{done:{len(str(self._total))}}/{self._total}] {describe(trial, self._names)}  {text}")

    def _note(self) -> str:
        note = f"{self._finished} finished, {self._failed} failed of {self._total}"
        if speed := sum(step.images_per_second for step in self._steps.values()):
            note += f", {speed:,.0f} images/s"
        left = self._total - self._finished - self._failed
        if self._seconds and left:
            note += f", about {_minutes(sum(self._seconds) / len(self._seconds) * left / self._jobs)} left"
        return note


def _minutes(duration: float) -> str:
    minutes, seconds = divmod(round(duration), 60)
    return f"{minutes}:{seconds:02}"
