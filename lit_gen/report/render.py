"""Show the leaderboard as a table on the terminal, Markdown, CSV or JSON, each with its protocol."""

import csv
import functools
import io
import json
import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lit_gen.core.errors import UserError
from lit_gen.core.text import for_csv, for_markdown, printable
from lit_gen.report.comparison import compare
from lit_gen.report.floors import Floor
from lit_gen.report.leaderboard import LIKELIHOODS, Leaderboard
from lit_gen.report.numbers import finite, known, known_count, significant, with_interval
from lit_gen.report.published import Published
from lit_gen.report.rows import COPIES, Row, Spread

_ALWAYS_SHOWN = {"#", "model", "sampler", "NFE"}


def print_table(board: Leaderboard, console: Console | None = None) -> None:
    """Print the leaderboard in the width of the terminal, or with all columns into a file or a pipe."""
    console = console or Console()
    if not console.is_terminal:
        console = Console(file=console.file, width=400)
    console.print(to_table(board, console.width))


def to_table(board: Leaderboard, width: int = 400) -> Table:
    """Return the leaderboard as a rich table with the protocol above it.

    Args:
        board: The leaderboard.
        width: Width of the terminal in characters; a caption names the columns that do not fit.
    """
    columns = _columns(board)
    lines = lines_of(board)
    cells = [[Text(printable(column.text(line))) for line in lines] for column in columns]
    needed = [max(len(column.name), *map(len, texts)) + 2 for column, texts in zip(columns, cells, strict=True)]
    left_out: list[str] = []
    for index in reversed(range(len(columns))):
        name = columns[index].name
        if sum(needed) - 2 > width and name not in _ALWAYS_SHOWN and not name.startswith(board.by):
            left_out.insert(0, name)
            del columns[index], cells[index], needed[index]
    caption = board.noise_line
    caption += f"; left out of this width: {', '.join(left_out)} (show all with --markdown)" if left_out else ""
    names = [column.name for column in columns]
    shown = min(width, max(sum(needed) - 2, 80))
    table = Table(
        title=Text(printable(board.protocol_line)),
        caption=Text(printable(caption)),
        title_justify="left",
        caption_justify="left",
        box=None,
        header_style="bold",
        pad_edge=False,
        width=shown,
    )
    for name, align, *_ in columns:
        table.add_column(Text(printable(name)), justify=align, no_wrap=name not in ("sampler", "grid"))
    for line, *row in zip(lines, *cells, strict=True):
        if _has_a_score(line, names):
            table.add_row(*row, style="italic" if isinstance(line, Published) else None)
    return table


class Header(NamedTuple):
    """Name of a column, its alignment `left` or `right`, and whether its values are numbers."""

    name: str
    align: str
    numeric: bool


class Cell(NamedTuple):
    """A cell as text, and its sort key: a number or a text, None if the cell is empty."""

    text: str
    value: float | str | None


class Cells(NamedTuple):
    """Headers and rows of a leaderboard."""

    headers: list[Header]
    rows: list[list[Cell]]


def to_cells(board: Leaderboard) -> Cells:
    """Return all columns of all rows."""
    columns = _columns(board)
    headers = [Header(printable(column.name), column.align, column.numeric) for column in columns]
    return Cells(headers, [[_cell(column, line) for column in columns] for line in lines_of(board)])


Line = Row | Floor | Published
"""A line of a table: a row, the scores of real images, or a published score."""


def lines_of(board: Leaderboard) -> list[Line]:
    """Return the rows, with the scores of real images and published ones at the places of their values."""
    lines: list[Line] = list(board.rows)
    sign = -1.0 if board.better[board.by] == "higher" else 1.0
    others: list[Floor | Published] = [*board.floors, *board.published]
    for line in others:
        score = sign * _score(line, board.by)
        worse = (place for place, other in enumerate(lines) if sign * _score(other, board.by) > score)
        lines.insert(next(worse, len(lines)), line)
    return lines


def _score(line: Line, metric: str) -> float:
    if isinstance(line, Published):
        return line.fid if metric == "fid" else math.nan
    return line.mean(f"metrics.{metric}") if isinstance(line, Row) else line.scores.get(metric, math.nan)


def _has_a_score(line: Line, names: Sequence[str]) -> bool:
    """Return whether a line has a score in one of the columns; rows and published scores stay without."""
    return not isinstance(line, Floor) or any(name.rstrip(" ↓↑") in line.scores for name in names)


def _cell(column: "_Column", row: Line) -> Cell:
    text, value = printable(column.text(row)), column.value(row)
    missing = not value if isinstance(value, str) else value is None or math.isnan(value)
    return Cell(text, None if missing else value)


def to_markdown(board: Leaderboard, columns: Sequence[str] | None = None) -> str:
    """Return the leaderboard as a Markdown table with the protocol above it.

    Args:
        board: The leaderboard.
        columns: Names of the columns to show, without arrows; all of them if not given. Seeds, weights and grids that
            all rows share are then named above the table.

    Raises:
        UserError: If there is no such column.
    """
    headers, rows = to_cells(board)
    places = _places([header.name for header in headers], columns)
    texts = [[for_markdown(row[place].text) for place in places] for row in rows]
    lines = lines_of(board)
    for line, cells in zip(lines, texts, strict=True):
        if isinstance(line, Published):
            cells[:] = [cell if cell == "-" else f"*{cell}*" for cell in cells]
    names, aligns = ([getattr(headers[place], of) for place in places] for of in ("name", "align"))
    texts = [cells for line, cells in zip(lines, texts, strict=True) if _has_a_score(line, names)]
    return _markdown_table(board, names, aligns, texts, None if columns is None else board.shared_line)


def _places(headers: Sequence[str], columns: Sequence[str] | None) -> list[int]:
    """Return the places of the columns to show among the headers; raise a UserError if one of them is missing."""
    names = [header.rstrip(" ↓↑") for header in headers]
    for column in columns or []:
        if column not in names:
            raise UserError(f"--columns: {column} is not a column; choose of {', '.join(names)}")
    return [names.index(column) for column in columns or names]


def _markdown_table(
    board: Leaderboard,
    headers: Sequence[str],
    aligns: Sequence[str],
    rows: Sequence[Sequence[str]],
    shared: str | None = None,
) -> str:
    """Return a Markdown table with the protocol above it, and what the rows share; their cells are Markdown already."""
    marks = ["---:" if align == "right" else ":---" for align in aligns]
    lines = [f"| {' | '.join(cells)} |" for cells in (list(map(for_markdown, headers)), marks, *rows)]
    above = board.protocol_line + (f"; {shared}" if shared else "")
    return "\n".join([for_markdown(above), "", *lines, "", for_markdown(board.noise_line)]) + "\n"


def to_budget_table(board: Leaderboard, budgets: Sequence[int]) -> str:
    """Return a Markdown table with one row per model and sampler and one column per budget of network evaluations.

    A cell holds the evaluation with the largest NFE that is within its budget and above the budget before it. The
    models are in the order of their best cells. The best cell of each column is bold, with those that it does not beat
    outside the noise. Cells whose samples copy training images are marked. The last lines hold scores of real images.

    Raises:
        UserError: If the budgets are not positive and increasing, or leave nothing to show.
    """
    if not budgets or any(high <= low for low, high in pairwise([0, *budgets])):
        raise UserError(
            f"--budgets: {','.join(map(str, budgets))} are not positive and rising; give numbers such as 5,10,20"
        )
    table: dict[_Line, dict[int, Row]] = defaultdict(dict)
    for row in board.rows:
        column = bisect_left(budgets, row.mean("nfe"))
        if math.isfinite(row.mean("nfe")) and row.rank is not None and column < len(budgets):
            cells = table[_Line(row.first.model, row.run, row.first.sampler, row.first.grid)]
            cells[column] = max(cells.get(column, row), row, key=lambda each: each.mean("nfe"))
    if not table:
        raise UserError(f"--budgets: no evaluation took {budgets[-1]} network evaluations or fewer; give larger ones")
    models = list(dict.fromkeys(line.model for line in table))
    lines = sorted(table, key=lambda line: models.index(line.model))
    # run and grid are shown only if they tell lines apart
    shown = {"model": True, "run": len({line.run for line in lines}) > len(models), "sampler": True}
    shown["grid"] = len({line.grid for line in lines if line.grid}) > 1
    names = [name for name in _Line._fields if shown[name]]
    columns = [[cells[column] for cells in table.values() if column in cells] for column in range(len(budgets))]
    best = [_best(column, board) if column else [] for column in columns]
    rows = [
        [for_markdown(getattr(line, name) or "-") for name in names]
        + [_budget_cell(table[line].get(column), board.by, best[column]) for column in range(len(budgets))]
        for line in lines
    ]
    rows += [
        [
            for_markdown(f"{floor.num_images} {floor.title}"),
            *["-"] * (len(names) - 1),
            *[_of_real_images(floor, board.by)] * len(budgets),
        ]
        for floor in board.floors
        if board.by in floor.scores
    ]
    aligns = ["left"] * len(names) + ["right"] * len(budgets)
    return _markdown_table(board, [*names, *map(str, budgets)], aligns, rows)


class _Line(NamedTuple):
    """The names of a line of the budget table."""

    model: str
    run: str
    sampler: str
    grid: str


def _best(rows: Sequence[Row], board: Leaderboard) -> list[Row]:
    """Return the best row of a column, and those that it does not beat outside the noise."""
    sign = -1.0 if board.better[board.by] == "higher" else 1.0
    first = min(rows, key=lambda row: sign * _score(row, board.by))
    return [row for row in rows if row is first or not compare(first, row, board.by).distinct]


def _budget_cell(row: Row | None, metric: str, best: Sequence[Row]) -> str:
    if row is None:
        return "-"
    text = _with_interval(row, metric)
    mark = COPIES if row.copies else ""
    return (f"**{text}**" if any(row is each for each in best) else text) + mark


def to_records(board: Leaderboard) -> list[dict[str, Any]]:
    """Return one record per row in full precision, with the fields of the protocol."""
    return [_record(board, row) for row in board.rows]


def to_csv(board: Leaderboard) -> str:
    """Return the leaderboard as CSV in full precision; the fields of the protocol are columns."""
    records = to_records(board)
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
    """Return `{"by", "better", "protocol", "rows"}` as JSON; each row holds means, standard deviations and its runs."""
    rows = [
        {key: value for key, value in _record(board, row).items() if not key.startswith("protocol.")}
        | {"sampler_settings": row.first.record.sampler, "results": [str(result.path) for result in row.results]}
        for row in board.rows
    ]
    content = {"by": board.by, "better": board.better[board.by], "protocol": board.protocol, "rows": rows}
    content["published"] = [asdict(score) for score in board.published]
    content["floors"] = [asdict(floor) for floor in board.floors]
    return json.dumps(finite(content), indent=2) + "\n"


class _Column(NamedTuple):
    """Name, alignment and kind of a column, as in `Header`, and the functions that make text and value of a cell."""

    name: str
    align: Any
    numeric: bool
    text: Callable[[Line], str]
    value: Callable[[Line], float | str | None]


def _names(name: str, value: Callable[[Row], str], other: Callable[[Floor | Published], str] | None = None) -> _Column:
    """Return a column of names; a dash stands for an empty name."""

    def of(line: Line) -> str:
        if isinstance(line, Row):
            return value(line)
        return "" if other is None else other(line)

    return _Column(name, "left", False, lambda line: of(line) or "-", of)


def _numbers(name: str, value: Callable[[Row], float | None], text: Callable[[float], str]) -> _Column:
    """Return a column of numbers; a dash stands for None, and for what the line does not have."""

    def of(line: Line) -> float | None:
        if isinstance(line, Published) and name == "NFE":
            return line.nfe
        return value(line) if isinstance(line, Row) else None

    return _Column(name, "right", True, lambda line: "-" if (number := of(line)) is None else text(number), of)


def _scores(board: Leaderboard, metric: str) -> _Column:
    """Return the column of a score."""
    unlike = metric in LIKELIHOODS and board.likelihood is None
    num_images = unlike and _unlike(board, "likelihood.protocol.num_images")

    def text(line: Line) -> str:
        if isinstance(line, Published):
            return f"{line.fid:g}" if metric == "fid" else "-"
        if isinstance(line, Floor):
            return _of_real_images(line, metric)
        return _with_its_kind(line, metric, num_images) if unlike else _with_interval(line, metric)

    arrow = "↑" if board.better[metric] == "higher" else "↓"
    return _Column(f"{metric} {arrow}", "right", True, text, functools.partial(_score, metric=metric))


def _columns(board: Leaderboard) -> list[_Column]:
    """Return all columns of the leaderboard."""
    columns = [
        _numbers("#", lambda row: row.rank, "{:g}".format),
        _names("model", _titled, _title_of),
        _names("sampler", lambda row: row.first.sampler),
        _names("grid", lambda row: row.first.grid),
        _numbers("NFE", lambda row: row.mean("nfe"), lambda value: f"{value:g}" if math.isfinite(value) else "-"),
        *(_scores(board, name) for name in board.metrics),
        _names("seeds", lambda row: row.seeds),
        _numbers("FLOPs/image", lambda row: row.cost("flops"), known_count),
        _numbers("images/s", lambda row: row.mean("timing.images_per_second"), known),
        _numbers("parameters", lambda row: row.mean("num_parameters"), known_count),
        _numbers("images seen", lambda row: row.mean("images_seen"), known_count),
        _numbers("training s", lambda row: row.training_seconds, known),
        _numbers("trained/s", lambda row: row.images_per_training_second, known),
    ]
    if any(math.isfinite(row.training_flops) for row in board.rows):
        columns.append(_numbers("training FLOPs", lambda row: row.training_flops, known_count))
    if len({row.first.record.weights for row in board.rows}) > 1:
        columns.append(_names("weights", lambda row: row.first.record.weights))
    return [*columns, _names("run", lambda row: row.run)]


def _title_of(line: Floor | Published) -> str:
    """Return the name of a line that is not a row."""
    return f"{line.num_images} {line.title}" if isinstance(line, Floor) else line.title


def _titled(row: Row) -> str:
    """Return the model of a row, with a mark if its samples copy training images."""
    return row.first.model + (COPIES if row.copies else "")


def _unlike(board: Leaderboard, key: str) -> bool:
    return len({row.first.get(key) for row in board.rows} - {None}) > 1


def _with_its_kind(row: Row, metric: str, num_images: bool) -> str:
    """Return a likelihood with its kind, for a column of several protocols."""
    text = _with_interval(row, metric)
    if text == "-":
        return text
    protocol = row.first.get("likelihood.protocol") or {}
    return f"{text} {protocol.get('kind')}" + (f" of {protocol.get('num_images')} images" if num_images else "")


def _with_interval(row: Row, metric: str) -> str:
    """Return the mean of a score with half of its interval and, if asked for, the least; a dash if it is missing."""
    if any(metric not in result.metrics for result in row.results):
        return "-"
    least = row.least(metric)
    beside = "" if least is None else f" (least of {row.least_of}: {significant(least)})"
    return with_interval(row.mean(f"metrics.{metric}"), row.spread(metric)) + beside


def _of_real_images(floor: Floor, metric: str) -> str:
    if metric not in floor.scores:
        return "-"
    error = floor.errors.get(metric)
    return with_interval(floor.scores[metric], None if error is None else Spread(error))


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
        spread = row.spread(name)
        record[f"{name}_half_width"] = None if spread is None else spread.half_width
        record[f"{name}_std_over_seeds"] = row.std(f"metrics.{name}")
        if (least := row.least(name)) is not None:
            record[f"{name}_least_of_{row.least_of}"] = least
    if likelihood := first.get("likelihood.protocol"):
        record["likelihood"] = likelihood
    if other_data := first.get("other_data"):
        record["other_data"] = other_data
    record |= {
        "copies": row.copies,
        "num_seeds": len(row.results),
        "flops_per_image": row.cost("flops"),
        "images_per_second": row.mean("timing.images_per_second"),
        "num_parameters": first.record.num_parameters,
        "images_seen": first.record.images_seen,
        "training_flops": row.mean("training_flops"),
        "earlier_flops": row.mean("earlier_flops"),
        "weights": first.record.weights,
        "runs": sorted({result.record.run.name for result in row.results}),
        "training_seeds": sorted({seed for each in row.results if (seed := each.record.training_seed) is not None}),
        "seeds": sorted({result.record.seed for result in row.results}),
    }
    return record | {f"protocol.{key}": value for key, value in board.protocol.items()}
