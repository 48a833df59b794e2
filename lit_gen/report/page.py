"""Write one HTML page for folders of runs: answers, leaderboards, charts, samples, and each training run.

The page embeds its pictures, styles and script, so that it is one file to mail or keep. It has a largest size: tables
and charts come first, then samples, curves, pictures and configurations fill the room that is left, best rows first.
The page counts what it leaves out.
"""

import math
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from lit_gen.core.errors import UserError
from lit_gen.core.files import write_atomically
from lit_gen.core.records import read_each
from lit_gen.core.text import printable
from lit_gen.core.version import __version__
from lit_gen.report import plots, trainings
from lit_gen.report.answers import CAUTION, Answer, Budget, find_answers, find_budgets
from lit_gen.report.charts import COSTS, CostChart, Styles, cost_chart
from lit_gen.report.embedding import Room, embedded, strip
from lit_gen.report.labels import Labels, names
from lit_gen.report.leaderboard import Leaderboard, comparable, rank
from lit_gen.report.numbers import with_interval
from lit_gen.report.render import Cell, Header, lines_of, to_cells
from lit_gen.report.results import Result
from lit_gen.report.row_facts import Facts, command_of, facts_of_row
from lit_gen.report.rows import COPIES, Row
from lit_gen.report.samples import common_seed, of_one_seed, real_images, samples_of
from lit_gen.report.trainings import Training, read_training, unless_damaged
from lit_gen.runs.directory import Run
from lit_gen.sweeps.labels import short_paths

MEGABYTE = 1_000_000
LARGEST = 3 * MEGABYTE
"""Largest size of the page in bytes by default."""

COLUMNS_OF_SAMPLES = 12
"""Number of samples of each row."""

FIRST_COLUMNS = {"#", "model", "sampler", "grid", "NFE", "images/s"}
"""Columns that are shown at first, with the first scores; a switch shows all."""
NUM_FIRST_SCORES = 3


@dataclass
class Entry:
    """A row of a leaderboard.

    Args:
        id: Its anchor on the page.
        name: What tells it from the others: model, sampler and NFE.
        model: Name of its model among the others.
        sampler: Name of its sampler; empty without one.
        nfe: Its network evaluations per image as text; empty if unknown.
        score: Its score with its interval.
        result: The evaluation whose samples are shown, of the seed that most rows have.
        note: What is special about its samples, such as another seed.
        command: The command that repeats the evaluation; empty for foreign samples.
        num_others: Number of its other evaluations, which differ in their seeds.
        runs: Anchors of its training runs by name.
        samples: Its samples as a row of pixels, a data URI, if there is room.
    """

    id: str
    name: str
    model: str
    sampler: str
    nfe: str
    score: str
    result: Result
    note: str
    command: str
    num_others: int
    runs: dict[str, str]
    samples: str = ""


@dataclass
class Comparison:
    """Evaluations of one protocol.

    Args:
        id: Its anchor on the page.
        board: The leaderboard.
        headers: Headers of the table.
        first: Whether each column is shown at first.
        lines: Lines of the table: the row, or None for real images and published scores, and the cells.
        entries: The rows.
        answers: Questions with their answers.
        budgets: The best row within each budget of evaluations.
        styles: Colours and markers of the charts.
        charts: Score against each known cost.
        seed: The sampling seed whose samples are shown.
        real: Real images as a row of pixels, a data URI, if there is room.
        figure: Points of the plane side by side, a data URI, if there is room.
        neighbours: Samples beside their nearest training images, data URIs by model, if there is room.
    """

    id: str
    board: Leaderboard
    headers: list[Header]
    first: list[bool]
    lines: list[tuple[Entry | None, list[Cell]]]
    entries: list[Entry]
    answers: list[Answer]
    budgets: list[Budget]
    styles: Styles
    charts: list[CostChart]
    seed: int
    real: str = ""
    figure: str = ""
    neighbours: dict[str, str] = field(default_factory=dict)

    @property
    def data(self) -> str:
        """Name of the data set."""
        return printable(self.board.protocol["data"])

    @property
    def models(self) -> list[str]:
        """The models of the rows, best first."""
        return list(dict.fromkeys(entry.model for entry in self.entries))

    @property
    def samplers(self) -> list[str]:
        """The samplers of the rows, best first; families without samplers have none."""
        return list(dict.fromkeys(entry.sampler for entry in self.entries if entry.sampler))

    @property
    def num_grey(self) -> int:
        """Number of models without a colour of their own."""
        return len(self.models) - len(self.styles.colours)

    @property
    def num_dots(self) -> int:
        """Number of samplers without a marker of their own."""
        return len({entry.sampler for entry in self.entries}) - len(self.styles.markers)

    @cached_property
    def classes(self) -> list[Markup]:
        """The class attribute of the cells of each column."""
        names = [
            " ".join(filter(None, ("n" if header.align == "right" else "", "" if first else "more")))
            for header, first in zip(self.headers, self.first, strict=True)
        ]
        return [Markup(f' class="{name}"' if name else "") for name in names]

    def entry(self, row: Row) -> Entry:
        """Return what the page shows of a row."""
        return next(entry for entry, other in zip(self.entries, self.board.rows, strict=True) if other is row)


def write_page(results: Sequence[Result], out: Path, title: str, largest: int = LARGEST) -> Path:
    """Write the page.

    Args:
        results: Evaluations of any protocols; evaluations of one protocol are compared.
        out: The HTML file.
        title: Title of the page.
        largest: Largest size of the page in bytes; pictures, curves and configurations beyond it are left out.

    Raises:
        UserError: If the name of the file does not end in .html, or its folder cannot be written.
    """
    if out.suffix not in (".html", ".htm"):
        raise UserError(f"--out: {out} must end in .html; give such a name")
    found = _trainings(results)
    number = iter(range(len(results)))
    comparisons = read_each(
        comparable(results),
        lambda group: _comparison(group, found, f"table-{next(number)}"),
        "the page leaves out the results of this protocol",
    )
    known = list(found.values())
    runs = {training.directory: place for place, training in enumerate(known)}
    rows = [(entry, row) for each in comparisons for entry, row in zip(each.entries, each.board.rows, strict=True)]
    of_rows = {entry.id: (runs.get(_directory(row.first)), facts_of_row(row)) for entry, row in rows}
    content: dict[str, Any] = {
        "title": printable(title),
        "comparisons": comparisons,
        "trainings": known,
        "facts": Facts([training.texts for training in known], of_rows).to_dict(),
        "num_evaluations": len(results),
        "caution": CAUTION,
        "version": __version__,
        "created": datetime.now().astimezone().isoformat(" ", "minutes"),
        "left_out": {},
    }
    environment = Environment(
        loader=PackageLoader("lit_gen.report", "templates"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"printable": printable, "sort_key": _sort_key}
    page = environment.get_template("page.html.jinja")
    room = Room(largest - len(page.render(content).encode()) - 10_000)
    for comparison in comparisons:
        _fill(comparison, room)
    panel = environment.get_template("panel.svg.jinja")
    trainings.fill(known, room, lambda each: panel.render(panel=each))
    text = page.render(content | {"left_out": room.left_out})
    if len(text.encode()) > largest:
        warnings.warn(
            f"{out}: {len(text.encode()) / MEGABYTE:.1f} MB without any pictures; choose some of the rows with --where",
            stacklevel=2,
        )
    write_atomically(out, text)
    return out


def _sort_key(value: float | str) -> str:
    return f"{value:.9g}" if isinstance(value, int | float) else value


def _directory(result: Result) -> Path:
    return result.path.parents[2]


def _trainings(results: Sequence[Result]) -> dict[Path, Training]:
    """Return the runs by directory; a damaged file of a run hides neither the others nor its evaluations."""
    directories = sorted({_directory(result) for result in results if not result.foreign})
    shortest = short_paths(map(str, directories))
    found = {}
    for number, directory in enumerate(directories):
        arguments = (Run(directory), shortest[str(directory)], number)
        if (training := unless_damaged(read_training, None, "this training", *arguments)) is not None:
            found[directory] = training
    return found


def _comparison(results: Sequence[Result], found: Mapping[Path, Training], anchor: str) -> Comparison:
    board = rank(results)
    entries = _entries(board, found, anchor)
    by_row = {id(row): entry for row, entry in zip(board.rows, entries, strict=True)}
    headers, cells = to_cells(board)
    lines = [(by_row.get(id(line)), row) for line, row in zip(lines_of(board), cells, strict=True)]
    scores = [f"{name} {'↑' if board.better[name] == 'higher' else '↓'}" for name in board.metrics[:NUM_FIRST_SCORES]]
    shown = FIRST_COLUMNS | {printable(score) for score in scores}
    if len({grid for row in board.rows if (grid := row.first.grid)}) < 2:
        shown -= {"grid"}
    styles = Styles([entry.model for entry in entries], [entry.sampler for entry in entries])
    charts = [chart for against in COSTS if (chart := cost_chart(board, against, styles)) is not None]
    return Comparison(
        id=anchor,
        board=board,
        headers=headers,
        first=[header.name in shown for header in headers],
        lines=lines,
        entries=entries,
        answers=find_answers(board),
        budgets=find_budgets(board),
        styles=styles,
        charts=charts,
        seed=common_seed([row.results for row in board.rows]),
    )


def _entries(board: Leaderboard, found: Mapping[Path, Training], anchor: str) -> list[Entry]:
    """Return what the page shows of each row of a leaderboard."""
    short = Labels([row.first for row in board.rows])
    shown = of_one_seed([row.results for row in board.rows])
    seed = common_seed([row.results for row in board.rows])
    entries = []
    for number, (row, name, result) in enumerate(zip(board.rows, names(board.rows), shown, strict=True)):
        run = found.get(_directory(result))
        command = command_of(result, {} if run is None else run.settings)
        entries.append(
            Entry(
                id=f"{anchor}-row-{number}",
                name=printable(name) + (COPIES if row.copies else ""),
                model=printable(short.family(row.first)),
                sampler=printable(short.sampler(row.first)),
                nfe=f"{row.mean('nfe'):g}" if math.isfinite(row.mean("nfe")) else "",
                score=with_interval(row.mean(f"metrics.{board.by}"), row.spread(board.by)),
                result=result,
                note=_note(result, seed),
                command=command,
                num_others=len(row.results) - 1,
                runs=_runs(row, found),
            )
        )
    return entries


def _note(result: Result, seed: int) -> str:
    """Return why samples of a row do not come from the noise of the others in their column; empty if they do."""
    if result.foreign:
        return "made by other software, from other noise"
    return "" if result.record.seed == seed else f"from the noise of seed {result.record.seed}"


def _runs(row: Row, found: Mapping[Path, Training]) -> dict[str, str]:
    known = (found.get(_directory(result)) for result in row.results)
    return {training.name: training.id for training in known if training is not None}


def _fill(comparison: Comparison, room: Room) -> None:
    """Add samples and nearest training images to a comparison, as far as there is room, best rows first."""
    kept = [entry for entry in comparison.entries if entry.result.path.with_name("samples.npz").exists()]
    results = [entry.result for entry in kept]
    if results and results[0].protocol.get("quantisation") == "none":
        comparison.figure = room.take(_points(results), "pictures of points")
        kept = []
    reserve = 0.45 * room.num_bytes
    if kept:
        real = unless_damaged(real_images, None, "the row of real images", results, COLUMNS_OF_SAMPLES)
        if real is not None:
            comparison.real = room.take(strip(real, COLUMNS_OF_SAMPLES), "rows of real images")
    for entry in kept:
        images = unless_damaged(samples_of, None, "its samples", entry.result)
        if images is not None:
            entry.samples = room.take(strip(images, COLUMNS_OF_SAMPLES), "rows without their samples", reserve)
    for result in (result for row in comparison.board.rows for result in row.results):
        path = result.path.with_name("neighbours.png")
        model = printable(result.model)
        if model not in comparison.neighbours and path.is_file():
            picture = unless_damaged(embedded, "", "the nearest training images", path)
            if picture and (picture := room.take(picture, "pictures of nearest training images", reserve / 2)):
                comparison.neighbours[model] = picture


def _points(results: Sequence[Result]) -> str:
    """Return the points of each evaluation in one picture; empty, with a warning, if none can be read."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "points.png"
        return unless_damaged(lambda: embedded(plots.side_by_side(results, path)), "", "the points side by side")
