"""Matplotlib figures as PNGs that hold the numbers they show as text."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_gen.core.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUMBERS = "lit_gen:numbers"
"""Key of the PNG text that holds the numbers."""


def new_figure(width: float, height: float, dots: int = 150) -> "Figure":
    """Return a figure that needs no display.

    Args:
        width: Width in inches.
        height: Height in inches.
        dots: Pixels per inch.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dots)
    FigureCanvasAgg(figure)
    return figure


def save_figure(
    figure: "Figure", path: Path | str, numbers: Sequence[Mapping[str, object]] = (), tight: bool = False
) -> Path:
    """Save a figure as a PNG that holds the numbers it shows as text.

    Args:
        figure: The figure.
        path: The PNG to write.
        numbers: One record for each row or point.
        tight: Crop or extend the picture to what the figure shows, labels outside of it included.
    """
    path = Path(path)
    metadata = {NUMBERS: json.dumps(list(numbers))} if numbers else None
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", metadata=metadata, bbox_inches="tight" if tight else None)
    return path


def numbers_of(path: Path | str) -> list[dict[str, Any]]:
    """Return the numbers in a PNG of `save_figure`, one record for each row or point; empty if it holds none."""
    from PIL import Image

    with Image.open(path) as picture:
        records: list[dict[str, Any]] = json.loads(picture.info.get(NUMBERS, "[]"))
    return records
