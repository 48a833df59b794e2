"""Draw points of the plane on their true density, and their trajectories from noise."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lit_gen.data.points import PointSource, grid_of_points
from lit_gen.pictures.colours import OKABE_ITO
from lit_gen.pictures.figures import new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def save_scatter(points: Tensor, source: PointSource, path: Path) -> Path:
    """Draw points (N, 2, 1, 1) on their true density as one PNG."""
    figure = new_figure(4.0, 4.0)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    draw_density(axes, source)
    draw_points(axes, points)
    return save_figure(figure, path)


def save_paths(states: list[tuple[float, Tensor]], source: PointSource, path: Path) -> Path:
    """Draw the trajectories of points from noise to data as one PNG; arguments as in `draw_paths`."""
    figure = new_figure(5.0, 5.0)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    draw_density(axes, source, 3.0)
    draw_paths(axes, states)
    return save_figure(figure, path)


def draw_density(axes: "Axes", source: PointSource, reach: float = 1.0, alpha: float = 1.0, sigma: float = 0.0) -> None:
    """Shade [-reach, reach]^2 by the density of x_t = alpha x_0 + sigma eps."""
    scales = [torch.tensor(value, dtype=torch.float64) for value in (alpha, sigma)]
    parts = grid_of_points(reach).split(4096)  # a mixture takes memory for each point and component
    shade(axes, torch.cat([source.exact.log_density(part, *scales) for part in parts]), reach)


def shade(axes: "Axes", log_density: Tensor, reach: float = 1.0, darkest: float | None = None) -> None:
    """Shade [-reach, reach]^2 by a density.

    Args:
        axes: The axes.
        log_density: Log-density at `grid_of_points`.
        reach: Half the width of the square.
        darkest: Density of the darkest shade; the maximum if None.
    """
    num = math.isqrt(len(log_density))
    density = log_density.exp().reshape(num, num)
    darkest = float(density.max()) if darkest is None else darkest
    from matplotlib import colormaps  # slow to import

    axes.imshow(
        density.numpy(),
        extent=(-reach, reach, -reach, reach),
        origin="lower",
        cmap=colormaps["Blues"].resampled(24),  # few shades make a small file
        interpolation="nearest",
        vmin=0,
        vmax=1.3 * darkest,
    )
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), xticks=[], yticks=[], aspect="equal")


def draw_points(axes: "Axes", points: Tensor, colour: str = OKABE_ITO[1]) -> None:
    """Draw points (N, 2, 1, 1) as dots, smaller ones if there are many."""
    x, y = points.flatten(1).T.numpy()
    axes.scatter(x, y, s=min(12.0, 4000 / len(points)), color=colour, linewidths=0, alpha=0.7)


def draw_paths(axes: "Axes", states: list[tuple[float, Tensor]], num_lines: int = 40) -> None:
    """Draw lines through the states of the first points, and a dot at the end of each point.

    The states are rescaled to the path (1 - u) x_0 + u eps, on which the lines of an ideal rectified flow are straight.

    Args:
        axes: The axes.
        states: Pairs (sigma / alpha, states (N, 2, 1, 1) in the scale alpha^2 + sigma^2 = 1), from noise to data.
        num_lines: Number of points with a line.
    """
    angles = [math.atan(ratio) for ratio, _ in states]
    lines = torch.stack([x.flatten(1) / (math.cos(a) + math.sin(a)) for a, (_, x) in zip(angles, states, strict=True)])
    for line in lines.transpose(0, 1)[:num_lines].numpy():
        axes.plot(*line.T, color="0.3", linewidth=0.6)
    axes.plot(*lines[0, :num_lines].T.numpy(), ".", color="0.2", markersize=2.5)
    axes.plot(*lines[-1].T.numpy(), ".", color=OKABE_ITO[1], markersize=3, markeredgewidth=0)
