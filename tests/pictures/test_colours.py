from itertools import combinations

import numpy as np
import pytest

from lit_gen.pictures.colours import OKABE_ITO, palette

# Vienot, Brettel & Mollon 1999, "Digital video colourmaps for checking the legibility of displays by dichromats":
# what a protanope and a deuteranope see of linear RGB
DICHROMATS = {
    "protanope": [[0.11238, 0.88762, 0.0], [0.11238, 0.88762, 0.0], [0.00401, -0.00401, 1.0]],
    "deuteranope": [[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]],
}


def linear(colour: str) -> np.ndarray:
    channels = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB of linear RGB under D65."""
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    ratio = matrix @ rgb.clip(0, 1) / np.array([0.9505, 1.0, 1.089])
    x, y, z = np.where(ratio > 216 / 24389, np.cbrt(ratio), (24389 / 27 * ratio + 16) / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def nearest(points: list[np.ndarray]) -> float:
    return min(float(np.linalg.norm(a - b)) for a, b in combinations(points, 2))


@pytest.mark.parametrize("matrix", [np.eye(3), *map(np.array, DICHROMATS.values())], ids=["trichromat", *DICHROMATS])
def test_seven_colours_differ_for_every_eye(matrix: np.ndarray) -> None:
    seen = [lab(matrix @ linear(colour)) for colour in palette(7)]
    assert nearest(seen) > 10


def test_green_red_and_brown_would_not_do() -> None:
    seen = [lab(np.array(DICHROMATS["deuteranope"]) @ linear(colour)) for colour in ("#2ca02c", "#d62728", "#8c564b")]
    assert nearest(seen) < 10


@pytest.mark.parametrize("num", [0, 1, 7, 8, 13, 14, 40, 200])
def test_no_colour_repeats(num: int) -> None:
    colours = palette(num)
    assert len(colours) == len(set(colours)) == num and tuple(colours[:7]) == OKABE_ITO[:num]
