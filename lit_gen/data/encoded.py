"""Codes or latents of a first stage, on which a second stage is trained."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lit_gen.core.errors import UserError
from lit_gen.core.files import write_arrays
from lit_gen.data.files import read_npz
from lit_gen.data.sources import ImageSet


@dataclass(frozen=True)
class Encoded:
    """Codes or latents of the images of a split, in their order and with their labels.

    Attributes:
        values: int32 codes (N, h, w), or float32 latents (N, C, h, w).
        labels: int64 (N,), or None.
        key: Hash of the images and the first stage.
    """

    values: np.ndarray
    labels: np.ndarray | None
    key: str

    @property
    def image_set(self) -> ImageSet:
        """Values with their labels, from which batches are made."""
        return ImageSet(self.values, self.labels)

    def fingerprint(self) -> str:
        """Return the key, since rounding may change the values between machines."""
        return self.key


def save_values(values: np.ndarray, path: Path) -> None:
    """Write an .npz file atomically."""
    write_arrays(path, values=values)


def load_values(path: Path) -> np.ndarray:
    """Read a file that `save_values` wrote.

    Raises:
        UserError: If the file is damaged.
    """
    try:
        return read_npz(path, ["values"])["values"]
    except Exception as error:  # numpy, zipfile and zlib each have their own exceptions for a broken file
        raise UserError(
            f"{path}: not a readable file of codes ({error}); delete it to have the images encoded again"
        ) from None
