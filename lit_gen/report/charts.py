"""Geometry of the page's charts: score against cost with its Pareto front, and curves of training runs.

A chart is plain numbers in units of its view box, which a template draws as SVG; y grows downwards.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from lit_gen.report.leaderboard import Leaderboard, pareto
from lit_gen.report.numbers import count
from lit_gen.report.rows import Row

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 480, 330
LEFT, RIGHT, TOP, BOTTOM = 58, 470, 10, 288
"""Edges of the axes of a chart of costs."""
PANEL = (46, 232, 8, 112)
"""Edges of the axes of a panel of curves: left, right, top, bottom."""

COSTS = {"nfe": "network evaluations per image (NFE)", "flops": "FLOPs per image", "seconds": "seconds per image"}
"""Titles of the axis of cost."""

MOST_COLOURS = 7
"""Number of models with a colour; others are grey."""
MOST_MARKERS = 12
"""Number of samplers with a marker; others are dots."""
MOST_LINES = 40
"""Largest number of models and samplers whose points are joined by lines."""
MOST_POINTS = 120
"""Largest number of points of a curve; of more, each interval keeps its least and its greatest."""


@dataclass(frozen=True)
class Tick:
    """A mark of an axis, at a place in units of the chart."""

    place: float
    text: str


@dataclass(frozen=True)
class Axis:
    """A map from numbers to places on a chart, linear or logarithmic.

    Args:
        low: Number at the start.
        high: Number at the end, above `low`.
        start: Place of `low`.
        end: Place of `high`.
        logarithmic: Whether equal ratios are equally far apart.
    """

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool

    @classmethod
    def around(cls, values: Iterable[float], start: float, end: float, logarithmic: bool | None = None) -> "Axis":
        """Return an axis with some room around finite values; by default logarithmic if they span a factor of 5."""
        known = [value for value in values if math.isfinite(value)] or [1.0]
        low, high = min(known), max(known)
        if logarithmic is None:
            logarithmic = low > 0 and high > 5 * low
        if logarithmic:
            room = max((high / low) ** 0.06, 1.1)
            return cls(low / room, high * room, start, end, True)
        room = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
        return cls(low - room, high + room, start, end, False)

    def place(self, value: float) -> float:
        """Return the place of a number, at most at an end of the axis."""
        low, high, at = self.low, self.high, min(max(value, self.low), self.high)
        if self.logarithmic:
            low, high, at = math.log(low), math.log(high), math.log(at)
        return round(self.start + (self.end - self.start) * (at - low) / (high - low), 1)

    @property
    def ticks(self) -> list[Tick]:
        """Round numbers on the axis, three to seven of them."""
        values = _powers(self.low, self.high) if self.logarithmic else []
        if len(values) < 3:
            values = _multiples(self.low, self.high)
        return [Tick(self.place(value), _short(value)) for value in values]


def _powers(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 times powers of ten in a range; only powers, or every nth, if they are more than seven."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors, every in (((1, 2, 5), 1), ((1, 3), 1), ((1,), 1), ((1,), 2), ((1,), 4), ((1,), 16)):
        chosen = (exponent for exponent in exponents if exponent % every == 0)
        values = [factor * 10.0**exponent for exponent in chosen for factor in factors]
        inside = [value for value in values if low <= value <= high]
        if len(inside) <= 7:
            return inside
    return []


def _multiples(low: float, high: float) -> list[float]:
    """Return the multiples of a round number in a range, at most seven."""
    rough = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    return [step * number for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _short(value: float) -> str:
    return count(value) if value >= 10_000 else f"{value:.4g}"


@dataclass(frozen=True)
class Mark:
    """A row on a chart of costs.

    Attributes:
        row: Number of the row on its leaderboard.
        x: Place of its cost.
        y: Place of its score.
        bar: Places of the ends of its interval; None if the interval is unknown.
        colour: Number of its colour; None for grey.
        marker: Number of its marker; `MOST_MARKERS` for a dot.
        front: Whether no row of equal or smaller cost beats it outside the noise.
    """

    row: int
    x: float
    y: float
    bar: tuple[float, float] | None
    colour: int | None
    marker: int
    front: bool


@dataclass(frozen=True)
class Line:
    """A line through points, as the path of an SVG, with the number of its colour; None for grey."""

    path: str
    colour: int | None


@dataclass(frozen=True)
class Floor:
    """The score of real images: its place and its title."""

    y: float
    title: str


@dataclass(frozen=True)
class CostChart:
    """Score of each row against one cost.

    Attributes:
        against: The cost: `nfe`, `flops` or `seconds`.
        title: Title of the axis of cost.
        score: Title of the axis of the score.
        x_ticks: Marks of the axis of cost.
        y_ticks: Marks of the axis of the score.
        marks: The rows whose cost is known, the cheapest first.
        lines: The rows of one model and sampler, joined in the order of their cost.
        floors: Scores of real images.
        front: Path of the best mean score at or below each cost.
        num_left_out: Number of rows whose cost or score is unknown.
    """

    against: str
    title: str
    score: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    marks: list[Mark]
    lines: list[Line]
    floors: list[Floor]
    front: str
    num_left_out: int


@dataclass(frozen=True)
class Styles:
    """Colours of models and markers of samplers, for every chart of a leaderboard.

    Args:
        models: Model of each row.
        samplers: Sampler of each row; empty without one.

    Attributes:
        colours: The number of the colour of a model; models beyond `MOST_COLOURS` have none.
        markers: The number of the marker of a sampler; samplers beyond `MOST_MARKERS` have none. The empty name, of
            families without samplers, has one too.
    """

    models: Sequence[str]
    samplers: Sequence[str]
    colours: dict[str, int] = field(init=False)
    markers: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        first = list(dict.fromkeys(self.models))[:MOST_COLOURS]
        object.__setattr__(self, "colours", {name: number for number, name in enumerate(first)})
        found = list(dict.fromkeys(self.samplers))[:MOST_MARKERS]
        object.__setattr__(self, "markers", {name: number for number, name in enumerate(found)})


def cost_chart(board: Leaderboard, against: str, styles: Styles) -> CostChart | None:
    """Return the chart of a cost; None if it is known of no row.

    Args:
        board: The leaderboard.
        against: `nfe`, `flops` or `seconds`.
        styles: Colours and markers of its rows.
    """
    numbers = {id(row): number for number, row in enumerate(board.rows)}
    known = [row for row in board.rows if row.rank is not None and math.isfinite(row.cost(against))]
    if not known:
        return None
    known.sort(key=lambda row: row.cost(against))
    scores = {id(row): row.mean(f"metrics.{board.by}") for row in known}
    floors = {floor.title: score for floor in board.floors if (score := floor.scores.get(board.by)) is not None}
    x = Axis.around((row.cost(against) for row in known), LEFT, RIGHT, True)
    y = Axis.around([*scores.values(), *(score for score in floors.values() if score > 0)], BOTTOM, TOP)
    front = {id(row) for row in pareto(board, against).rows}
    marks = []
    for row in known:
        number, spread, score = numbers[id(row)], row.spread(board.by), scores[id(row)]
        ends = None if spread is None else (y.place(score - spread.half_width), y.place(score + spread.half_width))
        colour = styles.colours.get(styles.models[number])
        marker = styles.markers.get(styles.samplers[number], MOST_MARKERS)
        place = x.place(row.cost(against)), y.place(score)
        marks.append(Mark(number, *place, ends, colour, marker, id(row) in front))
    sign = -1.0 if board.better[board.by] == "higher" else 1.0
    return CostChart(
        against,
        COSTS[against],
        board.by,
        x.ticks,
        y.ticks,
        marks,
        _lines(marks, styles),
        [Floor(y.place(score), title) for title, score in floors.items() if y.low <= score <= y.high],
        _steps(known, [sign * scores[id(row)] for row in known], marks),
        len(board.rows) - len(known),
    )


def _lines(marks: Sequence[Mark], styles: Styles) -> list[Line]:
    """Return a line for each model and sampler with several points; none if there are too many to follow."""
    groups: dict[tuple[str, str], list[Mark]] = {}
    for mark in marks:
        groups.setdefault((styles.models[mark.row], styles.samplers[mark.row]), []).append(mark)
    several = [group for group in groups.values() if len(group) > 1]
    if len(several) > MOST_LINES:
        return []
    return [Line(_path([(mark.x, mark.y) for mark in group]), group[0].colour) for group in several]


def _steps(rows: Sequence[Row], scores: Sequence[float], marks: Sequence[Mark]) -> str:
    """Return the path of the least score at or below each cost, from the cheapest row to the right edge."""
    corners: list[tuple[float, float]] = []
    best = math.inf
    for _, score, mark in zip(rows, scores, marks, strict=True):
        if score < best:
            corners += [(mark.x, corners[-1][1] if corners else mark.y), (mark.x, mark.y)]
            best = score
    return _path([*corners, (RIGHT, corners[-1][1])])


def _path(points: Iterable[tuple[float, float]]) -> str:
    places = (point for point, _ in itertools.groupby(points))
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in places)


@dataclass(frozen=True)
class Panel:
    """Curves of one name, such as the loss of training and of validation.

    Attributes:
        name: Their common name, the title of the y axis.
        lines: Where each was computed, such as `train`, its path and the number of its colour.
        x_ticks: Marks of the axis of images seen.
        y_ticks: Marks of the axis of values.
        last: The last value of each curve, by where it was computed.
    """

    name: str
    lines: list[tuple[str, Line]]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    last: dict[str, str]


def curve_panels(curves: Mapping[str, Points], most_points: int = MOST_POINTS) -> list[Panel]:
    """Return a panel for each name of curves, with `train/` and `val/` of one name together; losses come first.

    Args:
        curves: Points (images seen, value) by name, such as `train/loss`.
        most_points: Largest number of points of a curve.
    """
    groups: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for name, points in curves.items():
        where, _, what = name.rpartition("/")
        known = [(x, y) for x, y in points if math.isfinite(y)]
        if known:
            groups.setdefault(what, {})[where or "train"] = known
    ordered = sorted(groups, key=lambda what: (what != "loss", not _of_quality(what)))
    return [_panel(what, groups[what], most_points) for what in ordered]


def _of_quality(name: str) -> bool:
    """Return whether a curve is about the model, and not about its optimizer or the machine."""
    return not any(part in name for part in ("lr", "grad", "per_second", "flops", "time", "memory"))


def _panel(name: str, curves: Mapping[str, Points], most_points: int) -> Panel:
    left, right, top, bottom = PANEL
    x = Axis.around([0.0, *(x for points in curves.values() for x, _ in points)], left, right, False)
    x = Axis(0.0, x.high, left, right, False)
    y = Axis.around((y for points in curves.values() for _, y in points), bottom, top)
    lines = []
    for number, where in enumerate(sorted(curves, key=lambda where: where != "train")):
        points = [(x.place(at), y.place(value)) for at, value in thinned(curves[where], most_points)]
        lines.append((where, Line(_path(points), number % MOST_COLOURS)))
    last = {where: f"{curves[where][-1][1]:.4g}" for where, _ in lines}
    return Panel(name, lines, x.ticks[::2] if len(x.ticks) > 4 else x.ticks, y.ticks, last)


def thinned(points: Points, most: int) -> Points:
    """Return at most `most` points of a curve: the least and the greatest of each of equally many, in their order."""
    if len(points) <= most:
        return points
    num = max(1, (most - 2) // 2)
    kept = {0, len(points) - 1}
    for number in range(num):
        part = range(len(points) * number // num, len(points) * (number + 1) // num)
        kept |= {min(part, key=lambda index: points[index][1]), max(part, key=lambda index: points[index][1])}
    return [points[index] for index in sorted(kept)]
