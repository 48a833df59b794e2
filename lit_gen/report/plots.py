"""Plots of evaluations: the distance against the number of network evaluations, and samples side by side."""

import itertools
import math
import textwrap
import warnings
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lit_gen.core.errors import UserError
from lit_gen.core.text import for_figure
from lit_gen.pictures.colours import OKABE_ITO, palette
from lit_gen.pictures.figures import new_figure, save_figure
from lit_gen.report.floors import floors
from lit_gen.report.labels import Labels
from lit_gen.report.leaderboard import describe_protocol, distance_metric, group_seeds, refuse_unlike
from lit_gen.report.results import Result
from lit_gen.report.rows import COPIES, Row
from lit_gen.report.samples import common_seed, of_one_seed, read_samples, real_images

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKERS = ["o", "s", "x", "^", "+", "D", "v", "*", "P"]
_LINES = ["-", "--", ":", "-."]
_GREY = "0.4"
_RING: dict[str, Any] = dict(marker="o", markersize=14, markerfacecolor="none", markeredgecolor="red", linestyle="none")
"""Mark of samples that copy training images."""
MOST_SAMPLERS = 6
"""Largest number of samplers that several models share one panel with."""
MOST_PIXELS = 60_000
"""Largest width and height in pixels of samples side by side; matplotlib draws 2^16, labels included."""

AXES = {"nfe": "NFE (network evaluations per image)", "flops": "FLOPs per image", "seconds": "seconds per image"}
"""Titles of the axis of cost."""

Curves = dict[tuple[str, str], list[Row]]
"""Rows in the order of their cost, by model and sampler; the sampler is empty for a family without samplers."""


def distance_vs_cost(
    results: Sequence[Result], path: Path | str, metric: str | None = None, against: str = "nfe"
) -> Path:
    """Plot the Frechet distance against the cost of an image: one color per run, one marker and line per sampler.

    A family without samplers is a star at its NFE, with a dotted line at its distance. Evaluations that differ only in
    their seeds are one point. Error bars are the intervals of the leaderboard, grey lines the scores of real images,
    and red rings mark samples that copy training images. If several models have more than `MOST_SAMPLERS` samplers,
    each model has its own panel and each sampler its own color.

    Args:
        results: Evaluations of one protocol.
        path: The PNG to write.
        metric: Metric to plot instead of the distance.
        against: The cost of an image: `nfe`, its network evaluations, `flops` or `seconds`.

    Raises:
        UserError: If there are no results, their protocols differ, or none has the cost.
    """
    _check_comparable(results)
    metric = metric or distance_metric(results)
    curves = _curves(results, against)
    if not curves:
        raise UserError(f"--against: no result has the {against} of an image; evaluate the runs again, or use nfe")
    families = list(dict.fromkeys(family for family, _ in curves))
    samplers = list(dict.fromkeys(sampler for _, sampler in curves if sampler))
    sampled = [family for family in families if any((family, sampler) in curves for sampler in samplers)]
    if len(sampled) > 1 and len(samplers) > MOST_SAMPLERS:
        panels = {family: [key for key in curves if key[0] == family or key[0] not in sampled] for family in sampled}
        of_samplers = dict(zip(samplers, palette(len(samplers)), strict=True))
        of_models = {family: _GREY for family in families if family not in sampled}
        colours = {key: of_samplers.get(key[1], _GREY) for key in curves}
    else:
        panels = {"": list(curves)}
        of_samplers = dict.fromkeys(samplers, _GREY)
        of_models = dict(zip(families, palette(len(families)), strict=True))
        colours = {key: of_models[key[0]] for key in curves}
    columns = min(3, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure = new_figure(*((6.6, 5.3) if len(panels) == 1 else (3.4 * columns, 3.1 * lines + 0.4)))
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flatten()
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    for axes, (title, keys) in zip(grid, panels.items(), strict=False):
        for key in keys:
            _draw_curve(axes, curves[key], metric, against, colours[key], key[1] and _style(samplers.index(key[1])))
        _draw_floors(axes, results, metric)
        axes.set_title(textwrap.fill(title, 36), size=10)
    rows = [row for curve in curves.values() for row in curve]
    _format_axes(list(grid[: len(panels)]), columns, rows, metric, against)
    protocol = for_figure(describe_protocol(results[0].protocol), 1000)
    figure.supxlabel(textwrap.fill(protocol, 95), x=0.01, ha="left", size=7.5, color="0.35")
    _add_legends(figure, of_models, of_samplers, sampled, any(row.copies for row in rows))
    return save_figure(figure, path, [_shown(row, metric) for row in rows])


def training_curves(curves: Mapping[str, Sequence[tuple[float, float]]], path: Path | str) -> Path:
    """Plot the curves of a training run, one panel per name, with `train/` and `val/` of one name together.

    Args:
        curves: Points (images seen, value) by name, such as `train/loss`.
        path: The PNG to write.
    """
    panels: dict[str, dict[str, Sequence[tuple[float, float]]]] = defaultdict(dict)
    for name, points in curves.items():
        where, _, what = name.rpartition("/")
        panels[what][where or "train"] = points
    columns = min(4, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = new_figure(3.1 * columns, 2.1 * rows, 110)
    figure.set_layout_engine("constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    for axes, (what, lines) in zip(grid, panels.items(), strict=False):
        ordered = sorted(lines.items(), key=lambda line: line[0] != "train")
        for colour, (where, points) in zip(palette(len(ordered)), ordered, strict=True):
            x, y = zip(*points, strict=True)
            axes.plot(
                x, y, color=colour, linewidth=1.1, marker="." if len(x) < 3 else None, label=for_figure(where, 40)
            )
        axes.set_title(for_figure(what, 40), size=9)
        axes.tick_params(labelsize=7)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1e6:g}M" if value >= 1e6 else f"{value / 1e3:g}k")
        axes.grid(color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
        if len(lines) > 1:
            axes.legend(frameon=False, fontsize=7)
    return save_figure(figure, path)


def side_by_side(results: Sequence[Result], path: Path | str, columns: int = 16) -> Path:
    """Draw samples of every evaluation, one row each, below a row of real images of the split they are scored against.

    Samples in the same column come from the same noise. Evaluations that differ only in their seeds share a row, which
    shows the samples of one of them. If the data of the runs cannot be read, the picture has no real images, and a
    warning says why.

    Args:
        results: Evaluations of one protocol, each with its samples.npz next to its result.json.
        path: The PNG to write.
        columns: Largest number of images in a row.

    Raises:
        UserError: If there are no results, their protocols differ, there are too many, or none has its samples.
    """
    _check_comparable(results)
    chosen, samples = read_samples(_rows_of_samples(results))
    if any(images.dtype != np.uint8 for images in samples):
        return _scatters(chosen, samples, path)
    metric = distance_metric(chosen)
    num_columns = min(columns, max(map(len, samples)))
    size = max(48, *(images.shape[-1] for images in samples))
    seed = common_seed([[result] for result in chosen])
    labels = Labels(chosen, for_figure)
    lines = []
    for result, images in zip(chosen, samples, strict=True):
        other = "" if result.record.seed == seed else f", seed {result.record.seed}"
        setting = labels.setting(result) + other
        lines.append(_Line(labels.family(result), setting, _score(result, metric), images[:columns]))
    if (real := _real(chosen, num_columns)) is not None:
        lines.insert(0, _Line("real images", f"{chosen[0].protocol['split']} split", "", real))
    title = f"first {num_columns} samples of seed {seed}; "
    title += "samples of one seed in the same column come from the same noise"
    figure = _draw_lines(lines, size, num_columns, title)
    return save_figure(figure, path, [_shown(Row(None, [result]), metric) for result in chosen], tight=True)


class _Line(NamedTuple):
    """A row of images (N, C, H, W) under a heading, with a label on its left and one on its right."""

    heading: str
    left: str
    right: str
    images: np.ndarray


def _draw_lines(lines: Sequence[_Line], size: int, columns: int, title: str) -> "Figure":
    """Return a figure with the lines below each other; lines of the same heading follow one another."""
    strips = [_strip(line.images, size, columns) for line in lines]
    space = np.full((24, strips[0].shape[1], 3), 255, np.uint8)
    blocks: dict[str | int, np.ndarray] = {}  # from top to bottom: a heading by its text, a strip by its number
    for number, (line, strip) in enumerate(zip(lines, strips, strict=True)):
        blocks.setdefault(line.heading, space)
        blocks[number] = strip
    height, width = sum(map(len, blocks.values())), space.shape[1]
    if max(width, height) > MOST_PIXELS:
        raise UserError(
            f"{len(strips)} rows of samples are a picture of {width} x {height} pixels, more than {MOST_PIXELS} on a "
            "side; choose some of the evaluations with --where"
        )
    figure = new_figure(width / 100, height / 100, 100)
    axes = figure.add_axes((0, 0, 1, 1))  # labels stand outside, where the saved picture makes room for them
    axes.imshow(np.concatenate(list(blocks.values())), aspect="auto", interpolation="nearest")
    ends = dict(zip(blocks, itertools.accumulate(map(len, blocks.values())), strict=True))
    for label, end in ends.items():
        if isinstance(label, str):
            axes.text(0, end - 4, label, size=9, weight="bold", va="bottom")
    middles = [ends[number] - len(strip) / 2 for number, strip in enumerate(strips)]
    axes.set_yticks(middles, [line.left for line in lines], size=9)
    right = axes.secondary_yaxis("right")
    right.set_yticks(middles, [line.right for line in lines], size=8, color="0.35")
    axes.set_title(title, loc="left", size=9, color="0.35")
    for side in (axes, right):
        side.tick_params(length=0, labelbottom=False)
        side.spines[:].set_visible(False)
    return figure


def _real(results: Sequence[Result], num: int) -> np.ndarray | None:
    """Return real images or points; None, with a warning, if they cannot be read."""
    try:
        return real_images(results, num)
    except UserError as error:
        warnings.warn(f"{error}; the samples side by side have no row of real images", stacklevel=3)
        return None


def _check_comparable(results: Sequence[Result]) -> None:
    if not results:
        raise UserError("there are no results to plot; give evaluations of one protocol")
    refuse_unlike(results, leave_out=("inception_splits",))


def _curves(results: Sequence[Result], against: str) -> Curves:
    """Return the rows whose cost is known, by model and sampler, in the order of their cost."""
    curves: Curves = defaultdict(list)
    labels = Labels(results, for_figure)
    for group in group_seeds(results):
        row = Row(None, group)
        if math.isfinite(row.cost(against)):
            curves[labels.family(row.first), labels.sampler(row.first)].append(row)
    return {key: sorted(curve, key=lambda row: row.cost(against)) for key, curve in curves.items()}


def _draw_curve(
    axes: "Axes", curve: list[Row], metric: str, against: str, colour: str, style: dict[str, Any] | str
) -> None:
    """Draw one model under one sampler, or stars if the style is empty: a family without samplers."""
    x = [row.cost(against) for row in curve]
    y = [row.mean(f"metrics.{metric}") for row in curve]
    error = [0.0 if (spread := row.spread(metric)) is None else spread.half_width for row in curve]
    bars = error if any(error) else None
    for row in (row for row in curve if row.copies):
        axes.plot(row.cost(against), row.mean(f"metrics.{metric}"), **_RING)
    if isinstance(style, dict):
        axes.errorbar(x, y, bars, color=colour, capsize=2, linewidth=1.2, **style)
        return
    axes.errorbar(x, y, bars, color=colour, fmt="*", markersize=11, capsize=2)
    for value in y:
        axes.axhline(value, color=colour, linestyle=(0, (1, 3)), linewidth=1)


def _draw_floors(axes: "Axes", results: Sequence[Result], metric: str) -> None:
    """Draw a line with its title at each score of real images."""
    for floor in floors(results):
        if (score := floor.scores.get(metric)) is not None and 0 < score < math.inf:
            axes.axhline(score, color="0.6", linewidth=1, zorder=0)
            title = for_figure(f"{floor.num_images} {floor.title}", 60)
            place: dict[str, Any] = {
                "xycoords": ("axes fraction", "data"),
                "textcoords": "offset points",
                "ha": "right",
            }
            axes.annotate(title, (1, score), (-2, 2), size=7, color="0.45", **place)


def _format_axes(panels: Sequence["Axes"], columns: int, rows: Sequence[Row], metric: str, against: str) -> None:
    """Set scales, ticks and labels of the panels, which share both axes.

    Args:
        panels: The panels that hold curves, row by row.
        columns: Number of panels in a row.
        rows: The rows of all curves.
        metric: The metric on the y axis.
        against: The cost on the x axis.
    """
    values = [value for row in rows if math.isfinite(value := row.mean(f"metrics.{metric}"))]
    ticks = _ticks([row.cost(against) for row in rows], room=0.05 if len(panels) == 1 else 0.1)
    for axes in panels:
        axes.set_xscale("log")
        if values and min(values) > 0 and max(values) > 5 * min(values):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.yaxis.set_minor_formatter(_plain_if_few(min(values), max(values)))
        axes.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
        axes.set_xticks([], minor=True)
        axes.set_ylabel(for_figure(metric, 80))
        axes.grid(color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
        axes.label_outer()
    for axes in panels[-columns:]:  # the lowest of each column
        axes.tick_params(labelbottom=True)
        axes.set_xlabel(AXES[against] if len(panels) == 1 else AXES[against].partition(" ")[0])


def _add_legends(
    figure: "Figure", models: Mapping[str, str], samplers: Mapping[str, str], sampled: Sequence[str], copies: bool
) -> None:
    """Lay out the figure with legends of models and samplers on its right, and enlarge it by their room.

    Args:
        figure: The figure, whose size has room for the panels alone.
        models: Colors by model.
        samplers: Colors by sampler.
        sampled: The models with samplers.
        copies: Whether samples of a model copy training images.
    """
    from matplotlib.lines import Line2D

    legends = {
        "model": [
            Line2D([], [], color=colour, linewidth=3, label=family)
            if family in sampled
            else Line2D([], [], color=colour, marker="*", markersize=10, linestyle=":", label=f"{family} (no sampler)")
            for family, colour in models.items()
        ]
        + [Line2D([], [], label="copies training images", **_RING)] * copies,
        "sampler": [
            Line2D([], [], color=colour, label=name, **_style(index))
            for index, (name, colour) in enumerate(samplers.items())
        ],
    }
    drawn = [
        figure.legend(
            handles=lines,
            loc="outside right upper" if title == "model" else "outside right lower",
            title=title,
            frameon=False,
            alignment="left",
            handlelength=3,
        ).get_window_extent()
        for title, lines in legends.items()
        if lines
    ]
    width, height = figure.get_size_inches()
    needed = sum(extent.height for extent in drawn) / figure.dpi + 0.5
    figure.set_size_inches(width + max(extent.width for extent in drawn) / figure.dpi, max(height, needed))
    figure.set_layout_engine("constrained")


def _rows_of_samples(results: Sequence[Result]) -> list[Result]:
    """Return one result per group of seeds, of the seed that most groups have if it is there, in the order of rows."""
    chosen = of_one_seed(group_seeds(results))
    labels = Labels(chosen, for_figure)
    families = list(dict.fromkeys(map(labels.family, chosen)))
    return sorted(
        chosen,
        key=lambda result: (families.index(labels.family(result)), result.sampler, result.grid, result.number("nfe")),
    )


def _scatters(results: Sequence[Result], samples: list[np.ndarray], path: Path | str, columns: int = 4) -> Path:
    """Draw the points of every evaluation, one panel each, after a panel of real points."""
    metric = distance_metric(results)
    labels = Labels(results, for_figure)
    panels = []
    for result, points in zip(results, samples, strict=True):
        what = textwrap.fill(f"{labels.family(result)}, {labels.setting(result)}", 38)
        panels.append((f"{what}\n{_score(result, metric)}", points))
    if (real := _real(results, max(map(len, samples)))) is not None:
        panels.insert(0, (f"real points, {results[0].protocol['split']} split\n", real))
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = new_figure(2.4 * columns, 2.7 * rows, 100)
    figure.set_layout_engine("constrained")
    for axes, panel in itertools.zip_longest(figure.subplots(rows, columns, squeeze=False).flatten(), panels):
        axes.set_axis_off()
        if panel is not None:
            title, points = panel
            axes.scatter(*points[:, :, 0, 0].T, s=min(8.0, 2000 / len(points)), color=OKABE_ITO[0], linewidths=0)
            axes.set(xlim=(-1, 1), ylim=(-1, 1), aspect="equal")
            axes.set_title(title, size=7.5)
    return save_figure(figure, path, [_shown(Row(None, [result]), metric) for result in results])


def _shown(row: Row, metric: str) -> dict[str, object]:
    """Return the numbers that a picture shows of a row."""
    first = row.first
    labels = {"model": first.model, "sampler": first.sampler, "grid": first.grid}
    return labels | {"nfe": row.mean("nfe"), metric: row.mean(f"metrics.{metric}")}


def _score(result: Result, metric: str) -> str:
    """Return the metric, its value with three significant digits or whole if it is large, and any mark of copies."""
    value = result.metrics[metric]
    number = f"{value:.0f}" if 1000 <= value < 1e7 else f"{value:.3g}"
    return f"{for_figure(metric, 80)} {number}{COPIES if result.get('copies') else ''}"


def _style(index: int) -> dict[str, Any]:
    """Return the marker and line of a sampler; markers shrink, so that equal samplers (DDIM, Euler) stay visible."""
    marker = _MARKERS[index % len(_MARKERS)]
    line = _LINES[index % len(_LINES)]
    return {"marker": marker, "linestyle": line, "markerfacecolor": "none", "markersize": max(4.0, 9.0 - 1.2 * index)}


def _plain_if_few(low: float, high: float) -> Any:
    """Return a formatter of minor ticks that labels 2 and 5 between powers of ten, if the axis spans few of them."""
    few = math.log10(high / low) < 2
    return lambda value, _: f"{value:g}" if few and f"{value:e}"[0] in "25" else ""


def _ticks(values: list[float], room: float) -> list[float]:
    """Return the most common values, whole numbers first, that are far enough apart for labels on a logarithmic axis.

    Args:
        values: Values on the axis.
        room: Smallest distance of two ticks, as a fraction of the axis.
    """
    room *= math.log(max(values) / min(values))
    ticks: list[float] = []
    for value, _ in sorted(Counter(values).most_common(), key=lambda item: item[0] != round(item[0])):
        if all(abs(math.log(value / tick)) > room for tick in ticks):
            ticks.append(value)
    return sorted(ticks)


def _strip(images: np.ndarray, size: int, columns: int) -> np.ndarray:
    """Return images (N, C, H, W) as one row (height, width, 3) with room for `columns` of them and white gaps."""
    images = images.transpose(0, 2, 3, 1)
    images = np.broadcast_to(images, (*images.shape[:3], 3)) if images.shape[3] == 1 else images[..., :3]
    row = np.full((columns, size + 3, size + 3, 3), 255, np.uint8)
    for tile, image in zip(row, images, strict=False):
        tile[:size, :size] = _enlarged(image, size)
    return np.concatenate(list(row), axis=1)


def _enlarged(image: np.ndarray, size: int) -> np.ndarray:
    """Return the image enlarged by nearest neighbors, which shows each pixel as a square."""
    rows = np.arange(size) * image.shape[0] // size
    columns = np.arange(size) * image.shape[1] // size
    return image[rows][:, columns]
