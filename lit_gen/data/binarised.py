"""Binary images: every value of another data set's images made black or white."""

import hashlib
from typing import Literal

import numpy as np

from lit_gen.core.errors import UserError
from lit_gen.data.batches import hash_bits
from lit_gen.data.sources import ImageSet, ImageSource, Part

EPOCH, FIXED = 2, {"train": 3, "test": 4}  # purposes of hash_bits, beside those of the batches


class Binarised(ImageSource):
    """A data set with the values 0 and 255 alone, or as floats -1 and 1.

    | how | a value v becomes 255 | as in |
    | --- | --- | --- |
    | threshold | if v >= 128 | |
    | sampled | with probability v / 255, drawn once for each image | the fixed binarisation of MNIST |
    | dynamic | with probability v / 255, drawn anew in each epoch of the training images | the dynamic one |

    Validation and test images of the dynamic binarisation are those of `sampled`. Draws are a pure function of
    (seed, epoch, index), so that a resumed training goes on with the same images and processes share them. Likelihoods
    under different binarisations are of different data, and differ by more than models do.

    Paper: Salakhutdinov and Murray 2008, "On the quantitative analysis of deep belief networks" (sampled)

    Args:
        source: The data set, of images.
        how: How values become black or white.
        seed: Seed of the draws.

    Raises:
        UserError: The data set holds points.
    """

    num_levels = 2

    def __init__(
        self, source: ImageSource, how: Literal["threshold", "sampled", "dynamic"] = "threshold", seed: int = 0
    ) -> None:
        if not source.quantised:
            raise UserError(f"data.source.source: {source.name} holds points, which are not binarised; name images")
        self.source = source
        self.how = how
        self.seed = seed
        self._grey: np.ndarray | None = None

    @property
    def name(self) -> str:
        return f"{self.source.name}_binary"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.source.image_shape

    @property
    def num_classes(self) -> int:
        return self.source.num_classes

    @property
    def class_names(self) -> tuple[str, ...] | None:
        return self.source.class_names

    def prepare(self) -> None:
        self.source.prepare()

    def load(self, part: Part) -> ImageSet:
        images, labels = self.source.load(part)
        if self.how == "threshold":
            return ImageSet(np.where(images >= 128, np.uint8(255), np.uint8(0)), labels)
        if self.how == "dynamic" and part == "train":
            self._grey = images
        return ImageSet(self._draw(images, np.arange(len(images)), 0, FIXED[part]), labels)

    def redraw(self, index: np.ndarray, epoch: int) -> np.ndarray | None:
        if self.how != "dynamic":
            return None
        if self._grey is None:
            self._grey = self.source.load("train").images
        return self._draw(self._grey[index], index, epoch, EPOCH)

    def fingerprint(self, loaded: ImageSet, part: Part, start: int, stop: int) -> str:
        fixed = super().fingerprint(loaded, part, start, stop)
        if self.how != "dynamic" or part != "train":
            return fixed
        # what is trained on is more than what was loaded, and must not pass for it
        return hashlib.sha256(f"dynamic {self.seed} {fixed}".encode()).hexdigest()

    def _draw(self, images: np.ndarray, index: np.ndarray, epoch: int, purpose: int) -> np.ndarray:
        """255 where a uniform number of (seed, epoch, purpose, index, place) lies below v / 255, and 0 elsewhere."""
        size = images[0].size
        drawn = np.empty(images.shape, np.uint8)
        for start in range(0, len(images), 4096):  # 64 bits for each value of a whole data set would take much memory
            rows = slice(start, start + 4096)
            places = index[rows, None] * size + np.arange(size)
            bits = hash_bits(self.seed, epoch, purpose, places.ravel()).reshape(images[rows].shape)
            uniform = (bits >> np.uint64(11)) * 2.0**-53
            drawn[rows] = np.where(uniform < images[rows] / 255, np.uint8(255), np.uint8(0))
        return drawn
