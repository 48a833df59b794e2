"""What a sweep shows while it runs: one line for each trial that ends and, on a terminal, live bars."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table
from rich.text import Text

from lit_gen.core.display import Description, Number, bar, clock, speed
from lit_gen.core.errors import UserError
from lit_gen.core.progress import Step
from lit_gen.core.records import SCORE, read_record, values_of
from lit_gen.core.text import printable, shorten
from lit_gen.sweeps.estimate import Estimate
from lit_gen.sweeps.spec import Trial

_FILE_ENDINGS = (".yaml", ".yml", ".json", ".safetensors", ".ckpt")


def varying_keys(trials: Sequence[Trial]) -> dict[str, str]:
    """Return the parameters that tell trials apart, each with the shortest tail of its name that is its own.

    A parameter counts if the trials that have it differ in it: those of another file may have other parameters. Only
    where that leaves two trials alike, those that one of them lacks count as well.
    """
    keys = list(dict.fromkeys(key for trial in trials for key in trial.parameters))
    values = {key: [repr(trial.parameters[key]) for trial in trials if key in trial.parameters] for key in keys}
    varying = [key for key in keys if len(set(values[key])) > 1]
    if len({tuple(repr(trial.parameters.get(key, ...)) for key in varying) for trial in trials}) < len(trials):
        varying = [key for key in keys if len(set(values[key])) > 1 or len(values[key]) < len(trials)]
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
    """Return the trial's varying parameters in one line, `digits_edm Heun nfe=10`.

    The text of a key without a dot (`config`, `model`, `sampler`) says what it is; other values follow their name.
    """
    given = [(key, name, trial.parameters[key]) for key, name in names.items() if key in trial.parameters]
    words = [
        _short(value) if "." not in key and isinstance(value, str) else f"{name}={_short(value)}"
        for key, name, value in given
    ]
    return printable(" ".join(words) or trial.id)


def _short(value: Any) -> str:
    """Return a value as text: a file as its stem, another path as its last part, a class by its name."""
    if isinstance(value, dict) and "class_path" in value:
        settings = ", ".join(f"{key}={_short(part)}" for key, part in (value.get("init_args") or {}).items())
        name = str(value["class_path"]).rpartition(".")[2]
        return f"{name}({settings})" if settings else name
    if isinstance(value, str) and "://" not in value:
        path = Path(value)
        return path.stem if value.endswith(_FILE_ENDINGS) else path.name if "/" in value and path.name else value
    return str(value)


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
        values = [Text(shorten(printable(_short(trial.parameters.get(key, ""))), 80)) for key in names]
        table.add_row(str(number), trial.id, *values, status.get(trial.id, "waiting"))
    return table


def main_metrics(result: Path) -> str:
    """The metrics of a result.json in one line; empty if it holds none."""
    shown = {name: value for name, value in _scores(result).items() if not name.endswith(("_std", "_stderr"))}
    return "  ".join(f"{name} {value:.4g}" for name, value in shown.items())


def reported_names(result: Path) -> list[str]:
    """Return the names under which the numbers of a result.json are logged: what a sweep's `metric.name` may be."""
    metrics, timing = _scores(result), _scores(result, "timing")
    return [*metrics, "nfe", *timing] if metrics else []


def _scores(result: Path, block: str = "metrics") -> dict[str, float]:
    """Return the numbers in a block of a result.json; none if the file is damaged."""
    try:
        scores = read_record(result, "").get(block)
    except (OSError, UserError):
        return {}
    numbers = {key: scores[key] for key in scores if key != "device"} if isinstance(scores, dict) else {}
    return numbers if values_of(SCORE).fits(numbers) else {}


class SweepProgress:
    """Reports a sweep on a console; use as a context manager.

    Args:
        console: Where to; bars appear only if it is a terminal.
        trials: All trials of the sweep.
        finished: The ids of those that had finished before.
        jobs: How many run at once, for the estimate of the time left.
    """

    def __init__(self, console: Console, trials: Sequence[Trial], finished: Collection[str], jobs: int) -> None:
        self._console = console
        self._names = varying_keys(trials)
        self._total = len(trials)
        self._finished = len(finished)
        self._failed = 0
        self._estimate = Estimate([trial for trial in trials if trial.id not in finished], jobs)
        self._running: dict[str, TaskID] = {}
        self._steps: dict[str, Step] = {}
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

    def started(self, trial: Trial) -> None:
        """A trial begins."""
        self._estimate.started(trial)
        label = f"  {describe(trial, self._names)}"
        self._running[trial.id] = self._bars.add_task(label, total=None, count="", speed="", left="starting")

    def stepped(self, trial: Trial, step: Step) -> None:
        """A running trial has got so far."""
        if step != self._steps.get(trial.id):
            self._steps[trial.id] = step
            self._estimate.stepped(trial, step)
            under_way = step.images_per_second > 0 and step.completed < step.total
            self._bars.update(
                self._running[trial.id],
                description=f"  {describe(trial, self._names)}: {step.description.partition(' ')[0]}",
                total=step.total,
                completed=step.completed,
                count=f"{step.completed:,}/{step.total:,}",
                speed=speed(step.images_per_second) if under_way else "",
                left=f"{clock(step.seconds_left)} left" if under_way else "",
            )
            self._bars.update(self._bar, **self._whole())

    def silent(self, trial: Trial, process: int, seconds: float) -> None:
        """The process of a running trial gives no sign of life."""
        self._steps.pop(trial.id, None)
        self._bars.update(self._running[trial.id], speed="", left="no sign of life")
        self.say(
            f"{describe(trial, self._names)}: process {process} has given no sign of life for {seconds:.0f} s and may "
            f"be stopped; kill -CONT {process} wakes it, kill -KILL {process} gives the trial up"
        )

    def heard(self, trial: Trial, process: int) -> None:
        """The process of a running trial gives signs of life again."""
        self._bars.update(self._running[trial.id], left="")
        self.say(f"{describe(trial, self._names)}: process {process} is at work again")

    def finished(self, trial: Trial, result: Path, seconds: float) -> None:
        """A trial has a result."""
        self._finished += 1
        self._estimate.ended(trial, seconds)
        self._ended(trial, f"{main_metrics(result)}  {seconds:.1f} s")

    def failed(self, trial: Trial, error: str, log: Path, seconds: float) -> None:
        """A trial failed; the sweep goes on."""
        self._failed += 1
        self._estimate.ended(trial)
        self._ended(trial, f"FAILED: {error} (see {log})")

    def say(self, line: str) -> None:
        """Print a line above the bars."""
        self._console.print(printable(line), markup=False, highlight=False, soft_wrap=True)

    def _ended(self, trial: Trial, text: str) -> None:
        self._bars.remove_task(self._running.pop(trial.id))
        self._steps.pop(trial.id, None)
        self._bars.update(self._bar, **self._whole())
        done = self._finished + self._failed
        self.say(f"[{done:{len(str(self._total))}}/{self._total}] {describe(trial, self._names)}  {text}")

    def _whole(self) -> dict[str, Any]:
        """Return what the bar of the whole sweep shows."""
        done = self._finished + self._failed
        failed = f", {self._failed} failed" if self._failed else ""
        left = self._estimate.seconds_left() if done < self._total else None
        return {
            "completed": done,
            "count": f"{done}/{self._total}{failed}",
            "speed": speed(sum(step.images_per_second for step in self._steps.values())),
            "left": "" if left is None else f"{clock(left)} left",
        }
