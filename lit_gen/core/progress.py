"""Progress in images: events for listeners in the same process, a bar on a terminal, lines in a log file."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import Progress, TaskID

from lit_gen.core.display import Description, Number, bar, clock, speed

SECONDS_BETWEEN_LINES = 60.0
"""Seconds between two lines of progress if there is no terminal to draw bars on."""


class Step(NamedTuple):
    """Progress event of a task.

    Attributes:
        description: Name of the task.
        completed: Number of images done.
        total: Number of images of the whole task.
        images_per_second: Mean speed since the start; 0 before the first images.
    """

    description: str
    completed: int
    total: int
    images_per_second: float

    @property
    def seconds_left(self) -> float:
        """Remaining seconds at this speed; infinite before the first images, 0 after the last one."""
        left = max(self.total - self.completed, 0)
        return left / self.images_per_second if self.images_per_second else float("inf")

    @property
    def in_words(self) -> str:
        """Images, speed and time left, such as `200/1,000 images, 100 images/s, 0:08 left`."""
        count = f"{self.completed:,}/{self.total:,} images"
        if not self.images_per_second:
            return count
        return f"{count}, {speed(self.images_per_second)}, {clock(self.seconds_left)} left"


listeners: list[Callable[[Step], object]] = []
"""Functions that are called with every step; they must be fast."""


class ImageProgress:
    """Counter of the images of a task, which shows its progress.

    On a terminal it shows a rich progress bar, and otherwise prints one line every `seconds`. It shows nothing before
    the first update.

    Args:
        description: Name of the task.
        total: Number of images of the whole task.
        completed: Number of images done before.
        seconds: Time between two lines.
        console: Console to write to; by default standard error.
    """

    def __init__(
        self,
        description: str,
        total: int,
        completed: int = 0,
        seconds: float = SECONDS_BETWEEN_LINES,
        console: Console | None = None,
    ) -> None:
        self.description = description
        self.total = total
        self.completed = completed
        self.seconds = seconds
        self._console = console or Console(stderr=True)
        self._start = self._printed = time.monotonic()
        self._first = completed
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def add(self, images: int) -> None:
        """Add to the number of images done."""
        self.update(self.completed + images)

    def update(self, completed: int) -> None:
        """Set the number of images done."""
        self.completed = completed
        now = time.monotonic()
        step = Step(self.description, completed, self.total, (completed - self._first) / max(now - self._start, 1e-9))
        for listener in listeners:
            listener(step)
        if self._console.is_terminal:
            self._draw(step)
        elif now - self._printed >= self.seconds:
            self._printed = now
            print(f"{self.description}: {step.in_words}", file=self._console.file, flush=True)

    def _draw(self, step: Step) -> None:
        under_way = step.images_per_second > 0
        fields: dict[str, Any] = {
            "count": f"{step.completed:,}/{step.total:,} images",
            "speed": speed(step.images_per_second),
            "left": f"{clock(step.seconds_left)} left" if under_way else "",
        }
        if self._bar is None:
            self._bar = Progress(
                *(Description(), bar(self._console), Number("count"), Number("speed"), Number("left")),
                console=self._console,
            )
            self._task = self._bar.add_task(self.description, total=self.total, completed=self._first, **fields)
            self._bar.start()
        self._bar.update(self._task, completed=self.completed, **fields)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


@contextmanager
def image_progress(
    description: str, total: int, show: bool = True, at_once: bool = True, completed: int = 0
) -> Iterator[ImageProgress | None]:
    """Yield a progress for the block, or None if `show` is false; it appears at once or with the first update."""
    progress = ImageProgress(description, total, completed) if show else None
    if progress is not None and at_once:
        progress.update(completed)
    try:
        yield progress
    finally:
        if progress is not None:
            progress.close()
