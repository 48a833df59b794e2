"""Draw samples beside the training images that are nearest to them, by features and by pixels.

by_features, by_pixels = find_neighbours(samples, train, net(samples)[0], net(train)[0])
save_neighbours(samples, train, by_features, by_pixels, Path("neighbours.png"))
"""

import math
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lit_gen.metrics.nearest import nearest
from lit_gen.pictures.grids import enlarge, save_png

SMALLEST_SIDE = 48
"""Smaller images are enlarged by a whole factor to at least this many pixels."""

_TITLES = (("", "sample"), ("nearest training images", "by features"), ("nearest training images", "by pixels"))
_LEGEND = "Numbers are indices. Red, with =: equal to the sample."
_MARGIN, _GAP, _BETWEEN, _LINE, _CAPTION = 12, 24, 4, 16, 15
_BACKGROUND, _TEXT, _FAINT = "white", "black", "#606060"


def find_neighbours(
    samples: Tensor, train: Tensor, sample_features: Tensor, train_features: Tensor, k: int = 5
) -> tuple[Tensor, Tensor]:
    """Return the indices of the k nearest training images of each sample, by features and by pixels, each (n, k).

    Args:
        samples: (n, C, H, W).
        train: (m, C, H, W).
        sample_features: (n, d).
        train_features: (m, d).
        k: Number of neighbours; all training images if there are fewer.
    """
    k = min(k, len(train))
    by_features = nearest(sample_features, train_features, k).indices
    return by_features, nearest(samples.flatten(1).float(), train.flatten(1).float(), k).indices


def save_neighbours(samples: Tensor, train: Tensor, by_features: Tensor, by_pixels: Tensor, path: Path) -> Path:
    """Save one PNG with a row per sample: the sample, its neighbours by features, and its neighbours by pixels.

    The number below an image is its index. Training images that are equal to the sample have a red number with "=".

    Args:
        samples: uint8 (n, C, H, W) with one or three channels.
        train: uint8 (m, C, H, W).
        by_features: Indices of training images, (n, k).
        by_pixels: Indices of training images, (n, l).
        path: The PNG to write.
    """
    factor = math.ceil(SMALLEST_SIDE / min(SMALLEST_SIDE, *samples.shape[-2:]))
    height, width = (factor * side for side in samples.shape[-2:])
    font, small = ImageFont.load_default(13), ImageFont.load_default(11)
    lefts, right = [], _MARGIN
    for lines, columns in zip(_TITLES, (1, by_features.shape[1], by_pixels.shape[1]), strict=True):
        lefts.append(right)
        text = max(math.ceil(font.getlength(line)) for line in lines)
        right += max(columns * (width + _BETWEEN) - _BETWEEN, text) + _GAP
    top = _MARGIN + 2 * _LINE + _BETWEEN
    row_height = height + _CAPTION + _BETWEEN
    bottom = top + len(samples) * row_height
    picture = Image.new("RGB", (right - _GAP + _MARGIN, bottom + _LINE + _MARGIN), _BACKGROUND)
    draw = ImageDraw.Draw(picture)
    for left, lines in zip(lefts, _TITLES, strict=True):
        for number, line in enumerate(lines):
            draw.text((left, _MARGIN + number * _LINE), line, _TEXT, font)
    draw.text((_MARGIN, bottom + _BETWEEN), _LEGEND, _FAINT, small)
    for row, sample in enumerate(samples):
        y = top + row * row_height
        _paste(draw, picture, enlarge(sample, factor), (lefts[0], y), str(row), _FAINT, small)
        for left, indices in ((lefts[1], by_features[row]), (lefts[2], by_pixels[row])):
            for column, index in enumerate(indices.tolist()):
                equal = train[index].equal(sample)
                label, colour = (f"{index} =", "#c00000") if equal else (str(index), _FAINT)
                corner = (left + column * (width + _BETWEEN), y)
                _paste(draw, picture, enlarge(train[index], factor), corner, label, colour, small)
    return save_png(picture, path)


def _paste(
    draw: ImageDraw.ImageDraw,
    picture: Image.Image,
    image: Tensor,
    corner: tuple[int, int],
    label: str,
    colour: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    """Paste an image (C, H, W) with a label below it."""
    pixels = image.expand(3, -1, -1).permute(1, 2, 0).cpu().numpy()
    picture.paste(Image.fromarray(pixels), corner)
    draw.text((corner[0], corner[1] + image.shape[1] + 1), label, colour, font)
