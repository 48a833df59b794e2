"""The trials of a sweep as a table."""

from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lit_gen.core.text import printable, shorten
from lit_gen.sweeps.labels import Labels
from lit_gen.sweeps.trial import Trial


def print_trials(console: Console, trials: Sequence[Trial], status: dict[str, str]) -> None:
    """Print the trials as a table of number, id, varying parameters and status.

    A table that fits into the console is printed as plain lines: rich takes ten times as long.

    Args:
        console: The console.
        trials: The trials in order.
        status: Status by trial id, such as finished, failed or stopped early; the other trials are waiting.
    """
    labels = Labels(trials)
    header = ["#", "trial", *map(printable, labels.columns.values()), "status"]
    rows = []
    for number, trial in enumerate(trials, start=1):
        values = [shorten(printable(labels.short(trial.parameters.get(key, ""))), 80) for key in labels.columns]
        rows.append([str(number), trial.id, *values, status.get(trial.id, "waiting")])
    widths = [max(map(cell_len, column)) for column in zip(header, *rows, strict=True)]
    if sum(widths) + 2 * len(widths) > console.width:
        console.print(_table(header, rows))
        return
    first, *lines = (
        " " + "  ".join(_padded(cell, width, right=not index) for index, (cell, width) in enumerate(row)) + " "
        for row in (list(zip(cells, widths, strict=True)) for cells in [header, *rows])
    )
    console.print(Text(first, style="bold"))
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def _padded(cell: str, width: int, right: bool) -> str:
    space = " " * (width - cell_len(cell))
    return space + cell if right else cell + space


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=None, header_style="bold")
    for index, name in enumerate(header):
        table.add_column(Text(name), justify="left" if index else "right")
    for row in rows:
        table.add_row(*map(Text, row))
    return table
