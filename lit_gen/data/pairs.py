"""Pairs of noise and the image that a model samples from it, on which rectified flow is trained again."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lit_gen.core.errors import UserError
from lit_gen.core.files import write_arrays
from lit_gen.data.class_order import classes_of
from lit_gen.data.files import read_npz
from lit_gen.data.sources import ImageSet


@dataclass(frozen=True)
class Pairs:
    """Sampled images with the seed and index of their noise; the noise itself is a function of both and not stored.

    Attributes:
        images: uint8 (N, C, H, W).
        index: int64 (N,), sample indices.
        seed: Seed of the noise.
        num_classes: Number of classes of the model; 0 without classes.
        class_counts: Class counts that the classes of the samples follow; None for equal counts.
    """

    images: np.ndarray
    index: np.ndarray
    seed: int
    num_classes: int = 0
    class_counts: tuple[int, ...] | None = None

    @property
    def image_set(self) -> ImageSet:
        """Images with their labels."""
        if not self.num_classes:
            return ImageSet(self.images, None)
        return ImageSet(self.images, classes_of(self.index, self.class_counts or (1,) * self.num_classes))

    def slice(self, start: int, stop: int) -> "Pairs":
        """Return a view of pairs start .. stop - 1."""
        return replace(self, images=self.images[start:stop], index=self.index[start:stop])

    def fingerprint(self) -> str:
        """Return the SHA-256 (hex) of images, index and seed."""
        digest = hashlib.sha256(f"pairs {self.seed} {self.image_set.fingerprint()}".encode())
        digest.update(self.index.astype("<i8").tobytes())
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Write an .npz file atomically."""
        arrays: dict[str, Any] = {"images": self.images, "index": self.index, "seed": self.seed}
        arrays["num_classes"] = self.num_classes
        if self.class_counts is not None:
            arrays["class_counts"] = self.class_counts
        write_arrays(path, **arrays)

    @classmethod
    def load(cls, path: Path) -> "Pairs":
        """Read a file that `save` wrote.

        Raises:
            UserError: If the file is damaged.
        """
        try:
            file = read_npz(path, ("images", "index", "seed", "num_classes", "class_counts"))
            images, index = file["images"], file["index"]
            if images.ndim != 4 or index.shape != images.shape[:1] or index.dtype != np.int64:
                raise ValueError(f"images of shape {images.shape}, index {index.dtype} of shape {index.shape}")
            counts = tuple(file["class_counts"].tolist()) if "class_counts" in file else None
            return cls(images, index, int(file["seed"]), int(file["num_classes"]), counts)
        except Exception as error:  # numpy, zipfile and zlib each have their own exceptions for a broken file
            raise UserError(
                f"{path}: not a readable file of pairs ({error}); delete it to have the pairs sampled again"
            ) from None
