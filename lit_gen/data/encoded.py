"""What the first of two stages makes of images, on which the second is trained."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lit_gen.core.errors import UserError
from lit_gen.core.files import write_arrays
from lit_gen.data.files import read_npz
from lit_gen.data.sources import ImageSet


@dataclass(frozen=True)
class Encoded:
    """The images of a split as codes or latents, in their order and with their labels.

    Attributes:
        values: int32 codes (N, h, w), or float32 latents (N, C, h, w).
        labels: int64 (N,), or None.
        key: Which images they were, and which first stage made them.
    """

    values: np.ndarray
    labels: np.ndarray | None
    key: str

    @property
    def image_set(self) -> ImageSet:
        """The values with their labels, as batches are made of them."""
        return ImageSet(self.values, self.labels)

    def fingerprint(self) -> str:
        """The key: the values themselves may differ by a rounding between machines."""
        return self.key


def save_values(values: np.ndarray, path: Path) -> None:
    """Writes an .npz file, whole or not at all."""
    write_arrays(path, values=values)


def load_values(path: Path) -> np.ndarray:
    """Reads what `save_values` wrote.

    Raises:
        UserError: the file is damaged.
    """
    try:
        return read_npz(path, ["values"])["values"]
    except Exception as error:  # numpy, zipfile and zlib each have their own exceptions for a broken file
        raise UserError(
            f"{path}: not a readable file of codes ({error}); delete it, and the images are encoded again"
        ) from None
