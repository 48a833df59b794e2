"""Figures of matplotlib as PNGs that hold, as text, the numbers that they show."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_gen.core.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUMBERS = "lit_gen:numbers"
"""Name of the text of a PNG that holds the numbers that it shows."""


def new_figure(width: float, height: float, dots: int = 150) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dots)
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: "Figure", path: Path | str, numbers: Sequence[Mapping[str, object]] = ()) -> Path:
    """Save a figure as a PNG, and in it, as text, the numbers that it shows."""
    path = Path(path)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", metadata={NUMBERS: json.dumps(list(numbers))} if numbers else None)
    return path


def numbers_of(path: Path | str) -> list[dict[str, Any]]:
    """Return the numbers that a picture of evaluations shows, one record for each row or point; none if it has none."""
    from PIL import Image

    with Image.open(path) as picture:
        records: list[dict[str, Any]] = json.loads(picture.info.get(NUMBERS, "[]"))
    return records
