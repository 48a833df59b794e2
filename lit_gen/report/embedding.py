"""Pictures inside the page: PNGs as data URIs, and the room that is left for them."""

import base64
import io
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from lit_gen.core.errors import UserError
from lit_gen.core.files import read_regular

LARGEST_PICTURE = 2400
"""Pixels of the longer side of a picture; larger pictures are scaled down."""


class Room:
    """The bytes that are left of a page's size.

    Args:
        num_bytes: Bytes for everything that may be left out.

    Attributes:
        left_out: Number of things that did not fit, by their kind.
    """

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        self.left_out: Counter[str] = Counter()

    def take(self, text: str, kind: str, reserve: float = 0.0) -> str:
        """Return the text and take its room; if too little is left, count it by its kind and return nothing.

        Args:
            text: What is to stand on the page.
            kind: What it is, in the plural, such as `pictures`.
            reserve: Bytes that stay free for other kinds.
        """
        size = len(text.encode())
        if size > self.num_bytes - reserve:
            self.left_out[kind] += 1
            return ""
        self.num_bytes -= size
        return text


@contextmanager
def _strict() -> Iterator[None]:
    """Turn the warning about a picture of too many pixels into an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def embedded(path: Path) -> str:
    """Return a PNG as a data URI, scaled down if it is very large.

    Raises:
        UserError: If it is not a readable picture.
    """
    try:
        data = read_regular(path)
        with _strict(), Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
            if max(picture.size) > LARGEST_PICTURE:
                picture.thumbnail((LARGEST_PICTURE, LARGEST_PICTURE))
                smaller = io.BytesIO()
                picture.save(smaller, "PNG")
                data = smaller.getvalue()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(f"{path}: not a readable picture ({error}); restore it, or delete it") from None
    return _as_uri(data)


def strip(images: np.ndarray, columns: int) -> str:
    """Return uint8 images (N, C, H, W) as one row of pixels, a data URI, with a transparent pixel between two images.

    Args:
        images: Images with one or three channels.
        columns: Number of places in the row; places without an image are transparent.
    """
    channels, height, width = images.shape[1:]
    shown = 3 if channels >= 3 else 1
    row = np.zeros((height, columns * (width + 1) - 1, shown + 1), np.uint8)
    for number, image in enumerate(images[:columns]):
        left = number * (width + 1)
        row[:, left : left + width, :shown] = image[:shown].transpose(1, 2, 0)
        row[:, left : left + width, shown] = 255
    file = io.BytesIO()
    Image.fromarray(row, "RGBA" if shown == 3 else "LA").save(file, "PNG", optimize=True)
    return _as_uri(file.getvalue())


def _as_uri(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"
