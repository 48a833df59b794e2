"""Columns of a progress display that fits its terminal: the description gives way to the bar and the numbers."""

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task
from rich.table import Column
from rich.text import Text

WIDE = 100
"""Columns from which a terminal has room for long bars."""


class Description(ProgressColumn):
    """The task's description on one line, cut off where the other columns need the room."""

    def render(self, task: Task) -> Text:
        return Text(task.description, no_wrap=True, overflow="ellipsis")


class Number(ProgressColumn):
    """A field of the task, such as `left`; never cut off.

    Args:
        field: Name of the field.
    """

    def __init__(self, field: str) -> None:
        super().__init__(Column(no_wrap=True, justify="right"))
        self._field = field

    def render(self, task: Task) -> Text:
        return Text(str(task.fields[self._field]))


def bar(console: Console) -> BarColumn:
    """Return a bar that suits the width of the terminal."""
    return BarColumn(bar_width=24 if console.width >= WIDE else 10, table_column=Column(no_wrap=True))


def speed(images_per_second: float) -> str:
    """Return `1,234 images/s`; nothing before the first images."""
    return f"{images_per_second:,.0f} images/s" if images_per_second else ""


def clock(seconds: float) -> str:
    """Return `4:05`, or `2:04:05` from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
