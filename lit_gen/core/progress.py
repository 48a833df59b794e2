"""Progress in images: told to whoever listens in the same process, as a bar on a terminal, as a line elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import Progress, TaskID

from lit_gen.core.display import Description, Number, bar, clock, speed


class Step(NamedTuple):
    """Images done of something that is being done.

    Attributes:
        description: What is being done.
        completed: Images done.
        total: Images to be done.
        images_per_second: Mean since the beginning; 0 before the first images.
    """

    description: str
    completed: int
    total: int
    images_per_second: float

    @property
    def seconds_left(self) -> float:
        """Seconds until all are done at that speed; infinite before the first images, 0 behind the last one."""
        left = max(self.total - self.completed, 0)
        return left / self.images_per_second if self.images_per_second else float("inf")


listeners: list[Callable[[Step], object]] = []
"""Each is called with every step; they must be quick."""


class ImageProgress:
    """Counts images towards a total.

    On a terminal a rich bar; elsewhere one line every `seconds`, so that log files stay readable. Nothing is shown
    before the first update.

    Args:
        description: What is being done.
        total: Images to be done.
        completed: Images done before.
        seconds: Time between two lines.
        console: Where to; the standard error stream if not given.
    """

    def __init__(
        self,
        description: str,
        total: int,
        completed: int = 0,
        seconds: float = 20.0,
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
        """Counts more images."""
        self.update(self.completed + images)

    def update(self, completed: int) -> None:
        """Sets how many images are done."""
        self.completed = completed
        now = time.monotonic()
        step = Step(self.description, completed, self.total, (completed - self._first) / max(now - self._start, 1e-9))
        for listener in listeners:
            listener(step)
        if self._console.is_terminal:
            self._draw(step)
        elif now - self._printed >= self.seconds:
            self._printed = now
            speed_and_time = f"{step.images_per_second:,.0f} images/s, {step.seconds_left:,.0f} s left"
            line = f"{self.description}: {completed:,}/{self.total:,} images, {speed_and_time}"
            print(line, file=self._console.file, flush=True)

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
    description: str, total: int, show: bool = True, at_once: bool = True
) -> Iterator[ImageProgress | None]:
    """A progress over a block, shown at once or with the first update; none on other processes than the first."""
    progress = ImageProgress(description, total) if show else None
    if progress is not None and at_once:
        progress.update(0)
    try:
        yield progress
    finally:
        if progress is not None:
            progress.close()
