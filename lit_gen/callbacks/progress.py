"""Progress in images: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import Callback, Trainer
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from lit_gen.models.base import GenerativeModel


class ImagesPerSecond(ProgressColumn):
    """Images per second over the last seconds."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} images/s" if task.speed else "")


class ImageProgress:
    """Counts images towards a total.

    On a terminal a rich bar; elsewhere one line every `seconds`, so that log files stay readable.
    """

    def __init__(self, description: str, total: int, completed: int = 0, seconds: float = 20.0) -> None:
        self.description = description
        self.total = total
        self.completed = completed
        self.seconds = seconds
        self._start = self._printed = time.monotonic()
        self._first = completed
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed:,}/{task.total:,} images"),
                ImagesPerSecond(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
            )
            from rich.console import Console

            self._bar = Progress(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task(description, total=total, completed=completed, note="")
            self._bar.start()

    def update(self, completed: int, note: str = "") -> None:
        """Sets how many images are done."""
        self.completed = completed
        if self._bar is not None:
            self._bar.update(self._task, completed=completed, note=note)
        elif time.monotonic() - self._printed >= self.seconds:
            self._printed = time.monotonic()
            speed = (completed - self._first) / (self._printed - self._start)
            left = (self.total - completed) / speed if speed else float("inf")
            line = f"{self.description}: {completed:,}/{self.total:,} images, {speed:,.0f} images/s, {left:,.0f} s left"
            print(f"{line} {note}".rstrip(), file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


@contextmanager
def image_progress(description: str, total: int, show: bool = True) -> Iterator[ImageProgress | None]:
    """A progress over a block; none on other processes than the first."""
    progress = ImageProgress(description, total) if show else None
    try:
        yield progress
    finally:
        if progress is not None:
            progress.close()


class TrainingProgress(Callback):
    """Images trained on, images per second, time left and the loss.

    Args:
        total: Images of the whole training.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._progress: ImageProgress | None = None

    def on_train_start(self, trainer: Trainer, pl_module: GenerativeModel) -> None:
        if trainer.is_global_zero:
            self._progress = ImageProgress("training", self.total, pl_module.images_seen)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: GenerativeModel, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._progress is not None:
            self._progress.update(pl_module.images_seen)

    def teardown(self, trainer: Trainer, pl_module: GenerativeModel, stage: str) -> None:
        if self._progress is not None:
            self._progress.close()
            self._progress = None
