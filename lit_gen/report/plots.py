"""Pictures of evaluations: the distance against the number of network evaluations, and samples side by side."""

import io
import itertools
import math
import textwrap
import zipfile
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lit_gen.core.errors import UserError
from lit_gen.core.files import read_regular
from lit_gen.core.records import read_each
from lit_gen.core.text import for_figure
from lit_gen.pictures.figures import new_figure, save_figure
from lit_gen.report.leaderboard import Row, describe_protocol, distance_metric, group_seeds, refuse_unlike
from lit_gen.report.results import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKERS = ["o", "s", "x", "^", "+", "D", "v", "*", "P"]
_LINES = ["-", "--", ":", "-."]
MOST_PIXELS = 2**16 - 1
"""Pixels on a side of a picture, at most: those that matplotlib draws."""
MOST_BYTES = 2**28
"""Bytes of the samples of an evaluation, at most."""


def distance_vs_nfe(results: Sequence[Result], path: Path | str, metric: str | None = None) -> Path:
    """Draw the Frechet distance against NFE: a colour for each training, a marker and a line for each sampler.

    A family that has no sampler is a star at its NFE, and a dotted line across at its distance. Evaluations that differ
    in seeds only are one point with an error bar of one standard deviation. Where more than six samplers have each run
    on several models, each model has a panel of its own, and a sampler its colour.

    Args:
        results: Evaluations of one protocol.
        path: The PNG to write.
        metric: What to draw in place of the distance.

    Raises:
        UserError: If there are no results or their protocols differ.
    """
    if not results:
        raise UserError("there are no results to draw")
    refuse_unlike(results)
    metric = metric or distance_metric(results)
    curves: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for group in group_seeds(results):
        curves[_family(group[0], results), _sampler(group[0], results)].append(Row(None, group))
    families = dict.fromkeys(family for family, _ in curves)
    samplers = list(dict.fromkeys(sampler for _, sampler in curves if sampler))
    sampled = [family for family in families if any((family, sampler) in curves for sampler in samplers)]
    if len(sampled) > 1 and len(samplers) > 6:
        columns = min(3, len(sampled))
        rows = -(-len(sampled) // columns)
        beside = 0.9 + 0.085 * max(map(len, samplers))  # inches of the legend
        width = 3.6 * columns + beside
        figure = new_figure(width, 3.2 * rows + 0.7)
        room = {"left": 0.85 / width, "right": 1 - beside / width, "wspace": 0.06}
        room |= {"bottom": 0.32 / rows, "top": 1 - 0.1 / rows}
        panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False, gridspec_kw=room).flatten()
        colours = {sampler: f"C{index % 10}" for index, sampler in enumerate(samplers)}
        for axes, family in itertools.zip_longest(panels, sampled):
            if family is None:
                axes.set_axis_off()
                continue
            for (of, sampler), curve in curves.items():
                if of == family or of not in sampled:
                    _draw_curve(axes, curve, metric, colours.get(sampler, "0.4"), samplers, sampler)
            axes.set_title(family, size=10)
        _legends(panels[columns - 1], dict.fromkeys(families.keys() - sampled, "0.4"), samplers, set(), colours)
        drawn = list(panels[: len(sampled)])
        lowest = drawn[-columns:]
    else:
        longest = max(map(len, [*samplers, *families]))
        width = 9.0 + 0.085 * max(0, longest - 18)  # inches, with room for the legend
        figure = new_figure(width, 5.6)
        axes = figure.add_axes((0.72 / width, 0.19, 5.94 / width, 0.76))
        colours = {family: f"C{index % 10}" for index, family in enumerate(families)}
        for (family, sampler), curve in curves.items():
            _draw_curve(axes, curve, metric, colours[family], samplers, sampler)
        _legends(axes, colours, samplers, set(sampled))
        drawn = lowest = [axes]
    rows_of_all = [row for curve in curves.values() for row in curve]
    for axes in drawn:
        _label_axes(axes, rows_of_all, metric, room=0.05 if len(drawn) == 1 else 0.1)
    for axes in lowest:
        axes.tick_params(labelbottom=True)
        axes.set_xlabel("network evaluations for one image (NFE)")
    left = 0.08 if len(drawn) == 1 else 0.05
    figure.text(
        left, 0.02, textwrap.fill(for_figure(describe_protocol(results[0].protocol), 1000), 125), size=7.5, color="0.35"
    )
    return save_figure(figure, path, [_shown(row, metric) for curve in curves.values() for row in curve])


def training_curves(curves: Mapping[str, Sequence[tuple[float, float]]], path: Path | str) -> Path:
    """Draw the curves of a training, a panel for each name, `train/` and `val/` of one name together.

    Args:
        curves: Points (images seen, value) by name, such as `train/loss`.
        path: The PNG to write.
    """
    panels: dict[str, dict[str, Sequence[tuple[float, float]]]] = defaultdict(dict)
    for name, points in curves.items():
        where, _, what = name.rpartition("/")
        panels[what][where or "train"] = points
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(3.1 * columns, 2.1 * rows, 110)
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    for axes, (what, lines) in zip(grid, panels.items(), strict=False):
        for index, (where, points) in enumerate(sorted(lines.items(), key=lambda line: line[0] != "train")):
            x, y = zip(*points, strict=True)
            axes.plot(
                x, y, color=f"C{index}", linewidth=1.1, marker="." if len(x) < 3 else None, label=for_figure(where, 40)
            )
        axes.set_title(for_figure(what, 40), size=9)
        axes.tick_params(labelsize=7)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1e6:g}M" if value >= 1e6 else f"{value / 1e3:g}k")
        axes.grid(color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
        if len(lines) > 1:
            axes.legend(frameon=False, fontsize=7)
    figure.tight_layout()
    return save_figure(figure, path)


def _draw_curve(axes: "Axes", curve: list[Row], metric: str, colour: str, samplers: list[str], sampler: str) -> None:
    """One model under one sampler, or stars for a family that has none."""
    curve.sort(key=lambda row: row.mean("nfe"))
    x = [row.mean("nfe") for row in curve]
    y = [row.mean(f"metrics.{metric}") for row in curve]
    error = [row.std(f"metrics.{metric}") or 0.0 for row in curve]
    if sampler:
        style = _style(samplers.index(sampler))
        axes.errorbar(x, y, error if any(error) else None, color=colour, capsize=2, linewidth=1.2, **style)
    else:
        axes.errorbar(x, y, error if any(error) else None, color=colour, fmt="*", markersize=11, capsize=2)
        for value in y:
            axes.axhline(value, color=colour, linestyle=(0, (1, 3)), linewidth=1)


def _label_axes(axes: "Axes", rows: Sequence[Row], metric: str, room: float) -> None:
    values = [value for row in rows if math.isfinite(value := row.mean(f"metrics.{metric}"))]
    axes.set_xscale("log")
    if values and min(values) > 0 and max(values) > 5 * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(_plain)
        axes.yaxis.set_minor_formatter(_plain_if_few(min(values), max(values)))
    ticks = _ticks([row.mean("nfe") for row in rows], room)
    axes.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_ylabel(for_figure(metric, 80))
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    axes.label_outer()


def side_by_side(results: Sequence[Result], path: Path | str, columns: int = 16) -> Path:
    """Draw samples of every evaluation, one row each: images of one column come from the same noise.

    Args:
        results: Evaluations, each with its samples.npz beside its result.json; one of each seed's repetitions is drawn.
        path: The PNG to write.
        columns: Images in a row, at most.

    Raises:
        UserError: If there are no results, their protocols differ, they are too many, or none has its samples.
    """
    if not results:
        raise UserError("there are no results to draw")
    refuse_unlike(results)
    seed = results[0].data["seed"]
    groups = group_seeds(results)
    chosen = [min(group, key=lambda result: result.data["seed"] != seed) for group in groups]
    families = list(dict.fromkeys(_family(result, results) for result in chosen))
    chosen.sort(
        key=lambda result: (families.index(_family(result, results)), result.sampler, result.grid, result.data["nfe"])
    )
    chosen, samples = _with_samples(chosen)
    if any(images.dtype != np.uint8 for images in samples):
        return _scatters(chosen, samples, path)
    strips = [_tiles(images[:columns]) for images in samples]
    size = max(48, max(strip.shape[1] for strip in strips))
    metric = distance_metric(chosen)
    labels = [
        (
            for_figure(result.model),
            _sampler(result, chosen),
            f"NFE {result.data['nfe']:g}",
            f"{for_figure(metric, 80)} {result.metrics[metric]:.3g}",
        )
        for result in chosen
    ]
    # The right end of each column of text, in pixels; a character takes at most 8 of them, a bold one 10.
    texts = zip((10, 8, 8, 8), zip(*labels, strict=True), strict=True)
    ends = list(itertools.accumulate(pixels * max(map(len, column)) + 10 for pixels, column in texts))
    gap, between, top, left = 3, 12, 30, ends[-1] + 10
    tops, y = [], top
    for index, (family, *_) in enumerate(labels):
        y += between if index and family != labels[index - 1][0] else 0
        tops.append(y)
        y += size + gap
    width, height = left + max(map(len, strips)) * (size + gap) + 8, y + 8
    if max(width, height) > MOST_PIXELS:
        raise UserError(
            f"{len(strips)} rows of samples are a picture of {width} x {height} pixels, more than {MOST_PIXELS} on a "
            "side; choose some of the evaluations with --where"
        )
    canvas = np.full((height, width, 3), 255, np.uint8)
    for y, strip in zip(tops, strips, strict=True):
        for column, image in enumerate(strip):
            x = left + column * (size + gap)
            canvas[y : y + size, x : x + size] = _enlarged(image, size)
    dots = 100
    figure = new_figure(width / dots, height / dots, dots)
    figure.figimage(canvas)
    for y, (family, sampler, nfe, score) in zip(tops, labels, strict=True):
        middle = 1 - (y + size / 2) / height
        figure.text(10 / width, middle, family, size=9, va="center", weight="bold")
        figure.text((ends[0] + 10) / width, middle, sampler, size=9, va="center")
        figure.text(ends[2] / width, middle, nfe, size=9, va="center", ha="right")
        figure.text(ends[3] / width, middle, score, size=8, va="center", ha="right", color="0.35")
    title = f"first {max(map(len, strips))} samples of seed {seed}; a column is one noise"
    figure.text(left / width, 1 - 12 / height, title, size=9, va="center", color="0.35")
    return save_figure(figure, path, [_shown(Row(None, [result]), metric) for result in chosen])


def _scatters(results: Sequence[Result], samples: list[np.ndarray], path: Path | str, columns: int = 4) -> Path:
    """Draw the points of every evaluation, one panel each."""
    columns, metric = min(columns, len(results)), distance_metric(results)
    rows = -(-len(results) // columns)
    figure = new_figure(2.4 * columns, 2.7 * rows, 100)
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, result, points in itertools.zip_longest(panels, results, samples):
        axes.set_axis_off()
        if result is not None:
            axes.scatter(*points[:, :, 0, 0].T, s=min(8.0, 2000 / len(points)), color="C3", linewidths=0)
            axes.set(xlim=(-1, 1), ylim=(-1, 1), aspect="equal")
            words = filter(None, (_family(result, results), _sampler(result, results), f"NFE {result.data['nfe']:g}"))
            axes.set_title(f"{', '.join(words)}\n{for_figure(metric, 80)} {result.metrics[metric]:.3g}", size=7.5)
    figure.tight_layout()
    return save_figure(figure, path, [_shown(Row(None, [result]), metric) for result in results])


def _shown(row: Row, metric: str) -> dict[str, object]:
    """Return the numbers that a picture shows of a row."""
    first = row.first
    labels = {"model": first.model, "sampler": first.sampler, "grid": first.grid}
    return labels | {"nfe": row.mean("nfe"), metric: row.mean(f"metrics.{metric}")}


def _family(result: Result, results: Sequence[Result]) -> str:
    """The model's name; with several trainings or kinds of weights of that model, what tells them apart."""

    def trainings(of: Sequence[Result]) -> set[str]:
        return {other.get("run.recipe") or other.get("run.identity") for other in of}

    alike = [other for other in results if other.model == result.model]
    name = result.model if len(trainings(alike)) == 1 else result.get("run.name") + result.mark
    several = len({other.get("weights") for other in alike}) > 1
    return for_figure(f"{name} {result.get('weights')}" if several else name)


def _sampler(result: Result, results: Sequence[Result]) -> str:
    """The sampler's label; with its grid, if it has one, where there are several grids."""
    grids = {other.grid for other in results if other.grid}
    return for_figure(f"{result.sampler} {result.grid}" if result.grid and len(grids) > 1 else result.sampler)


def _style(index: int) -> dict[str, Any]:
    """The later the marker, the smaller: samplers that agree, as DDIM and Euler do, stay visible one on another."""
    marker = _MARKERS[index % len(_MARKERS)]
    line = _LINES[index % len(_LINES)]
    return {"marker": marker, "linestyle": line, "markerfacecolor": "none", "markersize": max(4.0, 9.0 - 1.2 * index)}


def _legends(
    axes: "Axes",
    colours: dict[str, str],
    samplers: list[str],
    with_sampler: set[str],
    of_samplers: dict[str, str] | None = None,
) -> None:
    """Legends beside the axes: of models, if there are any, and of samplers, grey unless they have colours."""
    from matplotlib.lines import Line2D

    models = [
        Line2D([], [], color=colour, linewidth=3, label=family)
        if family in with_sampler
        else Line2D([], [], color=colour, marker="*", markersize=10, linestyle=":", label=f"{family} (no sampler)")
        for family, colour in colours.items()
    ]
    if models:
        first = axes.legend(
            handles=models,
            title="model",
            loc="upper left",
            bbox_to_anchor=(1.01, 1.02),
            frameon=False,
            alignment="left",
        )
        axes.add_artist(first)
    if samplers:
        grey = dict.fromkeys(samplers, "0.3")
        lines = [
            Line2D([], [], color=(of_samplers or grey)[name], label=name, **_style(index))
            for index, name in enumerate(samplers)
        ]
        axes.legend(
            handles=lines,
            title="sampler",
            loc="lower left" if models else "upper left",
            bbox_to_anchor=(1.01, -0.02 if models else 1.02),
            frameon=False,
            alignment="left",
            handlelength=3,
        )


def _plain(value: float, _: float) -> str:
    return f"{value:g}"


def _plain_if_few(low: float, high: float) -> Any:
    """Labels at 2 and 5 between the powers of ten, if the axis spans little."""
    few = math.log10(high / low) < 2
    return lambda value, _: f"{value:g}" if few and f"{value:e}"[0] in "25" else ""


def _ticks(values: list[float], room: float) -> list[float]:
    """The commonest of the values, whole ones first, each with room for its label on a logarithmic axis.

    Args:
        values: Where there is something to see.
        room: Of one label, as a share of the axis.
    """
    room *= math.log(max(values) / min(values))
    ticks: list[float] = []
    for value, _ in sorted(Counter(values).most_common(), key=lambda item: item[0] != round(item[0])):
        if all(abs(math.log(value / tick)) > room for tick in ticks):
            ticks.append(value)
    return sorted(ticks)


def _with_samples(results: Sequence[Result]) -> tuple[list[Result], list[np.ndarray]]:
    """The evaluations whose samples can be read, and the samples; the others are named in a warning and left out."""
    found = read_each(
        results, lambda result: (result, _samples(result)), "its row is left out of the samples side by side"
    )
    return [result for result, _ in found], [samples for _, samples in found]


def _samples(result: Result) -> np.ndarray:
    """The kept samples of an evaluation, (N, C, H, W)."""
    file = result.path.with_name("samples.npz")
    try:
        with zipfile.ZipFile(io.BytesIO(read_regular(file))) as archive:
            if (size := archive.getinfo("images.npy").file_size) > MOST_BYTES:
                raise ValueError(f"{size:,} bytes, of at most {MOST_BYTES:,}")
            content = archive.read("images.npy")
        images: np.ndarray = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
        if result.protocol.get("quantisation") == "none":
            fits = images.dtype.kind == "f" and images.shape[1:] == (2, 1, 1) and np.isfinite(images).all()
        else:
            fits = images.dtype == np.uint8 and images.ndim == 4 and images.shape[1] != 2 and max(images.shape) <= 4096
        if not fits or not images.size:
            raise ValueError(f"an array {images.shape} of {images.dtype}")
    except Exception as error:  # a damaged archive raises any of a dozen
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{file}: cannot read the samples ({reason}); evaluate the run again") from None
    return images


def _tiles(images: np.ndarray) -> np.ndarray:
    """Images (N, C, H, W) as (N, H, W, 3)."""
    images = images.transpose(0, 2, 3, 1)
    return np.broadcast_to(images, (*images.shape[:3], 3)) if images.shape[3] == 1 else images[..., :3]


def _enlarged(image: np.ndarray, size: int) -> np.ndarray:
    """The image enlarged by nearest neighbours, so that every pixel of an image is seen as a square."""
    rows = np.arange(size) * image.shape[0] // size
    columns = np.arange(size) * image.shape[1] // size
    return image[rows][:, columns]
