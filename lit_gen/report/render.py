"""The leaderboard as a table on the terminal, as Markdown, CSV and JSON. Each form carries the protocol."""

import csv
import functools
import io
import json
import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lit_gen.core.errors import UserError
from lit_gen.core.text import for_csv, for_markdown, printable
from lit_gen.report.leaderboard import LIKELIHOODS, Leaderboard, Row, better

_ALWAYS_SHOWN = {"#", "model", "sampler", "NFE"}


def print_table(board: Leaderboard, console: Console | None = None) -> None:
    """Print the leaderboard; into a file or a pipe at full width, else as wide as the terminal is."""
    console = console or Console()
    if not console.is_terminal:
        console = Console(file=console.file, width=400)
    console.print(to_table(board, console.width))


def to_table(board: Leaderboard, width: int = 400) -> Table:
    """A rich table with the protocol above it.

    Args:
        board: What to show.
        width: Columns of the terminal; a narrow one gets fewer columns, the last to be named in a caption.
    """
    columns = _columns(board)
    cells = [[Text(printable(column.text(row))) for row in board.rows] for column in columns]
    needed = [max(len(column.name), *map(len, texts)) + 2 for column, texts in zip(columns, cells, strict=True)]
    left_out: list[str] = []
    for index in reversed(range(len(columns))):
        name = columns[index].name
        if sum(needed) - 2 > width and name not in _ALWAYS_SHOWN and not name.startswith(board.by):
            left_out.insert(0, name)
            del columns[index], cells[index], needed[index]
    caption = f"left out of this width: {', '.join(left_out)} (all with --markdown)" if left_out else None
    shown = min(width, max(sum(needed) - 2, 80))
    table = Table(
        title=Text(printable(board.protocol_line)),
        caption=caption and Text(printable(caption)),
        title_justify="left",
        caption_justify="left",
        box=None,
        header_style="bold",
        pad_edge=False,
        width=shown,
    )
    for name, align, *_ in columns:
        table.add_column(Text(printable(name)), justify=align, no_wrap=name not in ("sampler", "grid"))
    for row in zip(*cells, strict=True):
        table.add_row(*row)
    return table


class Header(NamedTuple):
    """A column's name, `left` or `right`, and whether its values are numbers."""

    name: str
    align: str
    numeric: bool


class Cell(NamedTuple):
    """A cell as text, and what it is sorted by: a number or a text; None if there is nothing."""

    text: str
    value: float | str | None


class Cells(NamedTuple):
    """The leaderboard as cells."""

    headers: list[Header]
    rows: list[list[Cell]]


def to_cells(board: Leaderboard) -> Cells:
    """All columns of all rows."""
    columns = _columns(board)
    headers = [Header(printable(column.name), column.align, column.numeric) for column in columns]
    return Cells(headers, [[_cell(column, row) for column in columns] for row in board.rows])


def _cell(column: "_Column", row: Row) -> Cell:
    text, value = printable(column.text(row)), column.value(row)
    missing = not value if isinstance(value, str) else value is None or math.isnan(value)
    return Cell(text, None if missing else value)


def to_markdown(board: Leaderboard) -> str:
    """A Markdown table with the protocol above it."""
    headers, rows = to_cells(board)
    lines = [
        for_markdown(board.protocol_line),
        "",
        _markdown_line([header.name for header in headers]),
        _markdown_line(["---:" if header.align == "right" else ":---" for header in headers]),
        *(_markdown_line([cell.text for cell in row]) for row in rows),
    ]
    return "\n".join(lines) + "\n"


def to_budget_table(board: Leaderboard, budgets: Sequence[int]) -> str:
    """A Markdown table with a row for each model and sampler and a column for each budget of network evaluations.

    A cell holds the evaluations that spent most within the budget, and more than the budget before it. Models, and the
    rows of each, are in the order of their best cell; the best row of each column is bold, and each that equals it.

    Raises:
        UserError: If the budgets are not positive and rising, or leave nothing to show.
    """
    if not budgets or any(high <= low for low, high in pairwise([0, *budgets])):
        raise UserError(f"--budgets: {','.join(map(str, budgets))} are not positive and rising; e.g. 5,10,20")
    lines: dict[tuple[str, str, str, str], dict[int, Row]] = defaultdict(dict)
    for row in board.rows:
        place = bisect_left(budgets, row.mean("nfe"))
        if row.rank is None or place == len(budgets):
            continue
        line = lines[row.first.model, row.first.sampler, row.first.grid, row.run]
        if place not in line or row.mean("nfe") > line[place].mean("nfe"):
            line[place] = row
    if not lines:
        raise UserError(f"--budgets: no evaluation took {budgets[-1]} network evaluations or fewer")
    best = {
        place: min(line[place].rank or 0 for line in lines.values() if place in line)
        for place in range(len(budgets))
        if any(place in line for line in lines.values())
    }
    several = len({grid for _, _, grid, _ in lines if grid}) > 1
    runs = len({key[3] for key in lines}) > len({key[0] for key in lines})
    header = ["model", *(["run"] if runs else []), "sampler", *(["grid"] if several else []), *map(str, budgets)]
    table = [
        for_markdown(board.protocol_line),
        "",
        _markdown_line(header),
        _markdown_line([":---" if name in ("model", "run", "sampler", "grid") else "---:" for name in header]),
    ]
    models = list(dict.fromkeys(model for model, *_ in lines))
    for (model, sampler, grid, run), line in sorted(lines.items(), key=lambda item: models.index(item[0][0])):
        names = [model, *([run] if runs else []), sampler or "-", *([grid or "-"] if several else [])]
        cells = [for_markdown(name) for name in names]
        for place in range(len(budgets)):
            text = _with_spread(line[place], board.by, count=False) if place in line else "-"
            cells.append(f"**{text}**" if place in line and line[place].rank == best[place] else text)
        table.append(f"| {' | '.join(cells)} |")
    return "\n".join(table) + "\n"


def to_csv(board: Leaderboard) -> str:
    """One line for each row, with full precision; the fields of the protocol are columns."""
    records = [_record(board, row) for row in board.rows]
    names = list(dict.fromkeys(key for record in records for key in record))
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow([for_csv(printable(name)) for name in names])
    for record in records:
        writer.writerow([_in_csv(record.get(name)) for name in names])
    return file.getvalue()


def _in_csv(value: Any) -> Any:
    if isinstance(value, list | dict):
        return json.dumps(value)
    return for_csv(printable(value)) if isinstance(value, str) else value


def to_json(board: Leaderboard) -> str:
    """`{"by", "better", "protocol", "rows"}`; each row holds mean and standard deviation and the runs behind it."""
    rows = [
        {key: value for key, value in _record(board, row).items() if not key.startswith("protocol.")}
        | {"sampler_settings": row.first.data.get("sampler"), "results": [str(result.path) for result in row.results]}
        for row in board.rows
    ]
    content = {"by": board.by, "better": better(board.by), "protocol": board.protocol, "rows": rows}
    return json.dumps(_finite(content), indent=2) + "\n"


class _Column(NamedTuple):
    """A column: its header, `left` or `right`, whether it holds numbers, and the text and the value of a row's cell."""

    name: str
    align: Any
    numeric: bool
    text: Callable[[Row], str]
    value: Callable[[Row], float | str | None]


def _names(name: str, value: Callable[[Row], str]) -> _Column:
    """A column of names; a missing one is a dash."""
    return _Column(name, "left", False, lambda row: value(row) or "-", value)


def _numbers(name: str, value: Callable[[Row], float | None], text: Callable[[float], str]) -> _Column:
    """A column of numbers; a missing one is a dash, if it is None."""

    def cell(row: Row) -> str:
        return "-" if (number := value(row)) is None else text(number)

    return _Column(name, "right", True, cell, value)


def _columns(board: Leaderboard) -> list[_Column]:
    """All columns of the leaderboard."""
    columns = [
        _numbers("#", lambda row: row.rank, "{:g}".format),
        _names("model", lambda row: row.first.model),
        _names("sampler", lambda row: row.first.sampler),
        _names("grid", lambda row: row.first.grid),
        _numbers("NFE", lambda row: row.mean("nfe"), "{:g}".format),
    ]
    for name in board.metrics:
        arrow = "↑" if better(name) == "higher" else "↓"
        cell = functools.partial(_with_spread, metric=name)
        if name in LIKELIHOODS and board.likelihood is None:
            num_images = _unlike(board, "likelihood.protocol.num_images")
            cell = functools.partial(_with_its_kind, metric=name, num_images=num_images)
        columns.append(
            _Column(f"{name} {arrow}", "right", True, cell, functools.partial(Row.mean, key=f"metrics.{name}"))
        )
    columns += [
        _numbers("images/s", lambda row: row.mean("timing.images_per_second"), lambda value: _significant(value, 3)),
        _numbers("parameters", lambda row: row.mean("num_parameters"), _count),
        _numbers("images seen", lambda row: row.mean("images_seen"), _count),
        _numbers("training s", lambda row: row.training_seconds, _known),
        _numbers("trained/s", lambda row: row.images_per_training_second, _known),
    ]
    if len({row.first.data["weights"] for row in board.rows}) > 1:
        columns.append(_names("weights", lambda row: row.first.data["weights"]))
    return [*columns, _names("run", lambda row: row.run)]


def _unlike(board: Leaderboard, key: str) -> bool:
    return len({row.first.get(key) for row in board.rows} - {None}) > 1


def _with_its_kind(row: Row, metric: str, num_images: bool) -> str:
    """A likelihood among unlike ones."""
    text = _with_spread(row, metric)
    if text == "-":
        return text
    protocol = row.first.get("likelihood.protocol") or {}
    return f"{text} {protocol.get('kind')}" + (f" of {protocol.get('num_images')} images" if num_images else "")


def _with_spread(row: Row, metric: str, count: bool = True) -> str:
    if any(metric not in result.metrics for result in row.results):
        return "-"
    mean, std = row.mean(f"metrics.{metric}"), row.std(f"metrics.{metric}")
    if std is None:
        return _significant(mean)
    decimals = min(6, max(0, 1 - math.floor(math.log10(std)))) if std else 3
    of = f" ({len(row.results)})" if count else ""
    return f"{mean:.{decimals}f} ± {std:.{decimals}f}{of}"


def _significant(value: float, digits: int = 4) -> str:
    """So many significant digits, trailing zeros kept so that a column lines up; whole numbers are not cut."""
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{value:.{max(0, decimals)}f}" if -5 <= decimals <= 7 else f"{value:.{digits - 1}e}"


def _known(value: float) -> str:
    return _significant(value, 3) if math.isfinite(value) else "-"


def _count(value: float) -> str:
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {suffix}"
    return f"{value:g}"


def _record(board: Leaderboard, row: Row) -> dict[str, Any]:
    first = row.first
    record: dict[str, Any] = {
        "rank": row.rank,
        "model": first.model,
        "sampler": first.sampler,
        "grid": first.grid,
        "nfe": row.mean("nfe"),
    }
    for name in board.metrics:
        record[name] = row.mean(f"metrics.{name}")
        record[f"{name}_std_over_seeds"] = row.std(f"metrics.{name}")
    if likelihood := first.get("likelihood.protocol"):
        record["likelihood"] = likelihood
    if other_data := first.get("other_data"):
        record["other_data"] = other_data
    record |= {
        "num_seeds": len(row.results),
        "images_per_second": row.mean("timing.images_per_second"),
        "num_parameters": first.data["num_parameters"],
        "images_seen": first.data["images_seen"],
        "weights": first.data["weights"],
        "runs": sorted({result.get("run.name") for result in row.results}),
        "training_seeds": sorted({result.data["training_seed"] for result in row.results}),
        "seeds": sorted({result.data["seed"] for result in row.results}),
    }
    return record | {f"protocol.{key}": value for key, value in board.protocol.items()}


def _markdown_line(cells: list[str]) -> str:
    return f"| {' | '.join(map(for_markdown, cells))} |"


def _finite(value: Any) -> Any:
    """JSON knows no NaN and no infinity."""
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return value
