"""Columns of a progress bar that fits its terminal: the description is truncated before the numbers are."""

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task
from rich.table import Column
from rich.text import Text

WIDE = 100
"""Minimum width of a terminal, in characters, for long bars."""


class Description(ProgressColumn):
    """Description of the task on one line, truncated if the other columns need the space."""

    def render(self, task: Task) -> Text:
        return Text(task.description, no_wrap=True, overflow="ellipsis")


class Number(ProgressColumn):
    """Field of the task, such as `left`; never truncated.

    Args:
        field: Name of the field.
    """

    def __init__(self, field: str) -> None:
        super().__init__(Column(no_wrap=True, justify="right"))
        self._field = field

    def render(self, task: Task) -> Text:
        return Text(str(task.fields[self._field]))


def bar(console: Console) -> BarColumn:
    """Return a bar whose length suits the width of the terminal."""
    return BarColumn(bar_width=24 if console.width >= WIDE else 10, table_column=Column(no_wrap=True))


def speed(images_per_second: float) -> str:
    """Return the speed as `1,234 images/s`; an empty string for 0."""
    return f"{images_per_second:,.0f} images/s" if images_per_second else ""


def clock(seconds: float) -> str:
    """Return a duration as `4:05`, or as `2:04:05` from one hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
