"""Binary images: another data set, with every pixel made black or white."""

import hashlib
from typing import Literal

import numpy as np

from lit_gen.core.errors import UserError
from lit_gen.data.batches import hash_bits
from lit_gen.data.sources import ImageSet, ImageSource, Part

EPOCH, FIXED = 2, {"train": 3, "test": 4}  # purposes of hash_bits, in addition to those of the batches


class Binarised(ImageSource):
    """Data set with the pixel values 0 and 255 only, which are -1 and 1 as floats.

    | how | a value v becomes 255 | known as |
    | --- | --- | --- |
    | threshold | if v >= 128 | |
    | sampled | with probability v / 255, drawn once per image | fixed binarisation of MNIST |
    | dynamic | with probability v / 255, drawn again in each epoch of the training images | dynamic binarisation |

    Validation and test images of `dynamic` are those of `sampled`. The draws are a pure function of (seed, epoch,
    index), so that resumed runs and all processes see the same images. Likelihoods under different binarisations do not
    compare: they refer to different data, and differ by more than models do.

    Paper: Salakhutdinov and Murray 2008, "On the quantitative analysis of deep belief networks" (sampled)

    Args:
        source: Data set of images.
        how: Rule that makes values black or white.
        seed: Seed of the draws.

    Raises:
        UserError: If the data set holds points.
    """

    num_levels = 2

    def __init__(
        self, source: ImageSource, how: Literal["threshold", "sampled", "dynamic"] = "threshold", seed: int = 0
    ) -> None:
        if not source.quantised:
            raise UserError(
                f"data.source.source: {source.name} holds points, which cannot be binarised; give a data set of images"
            )
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
        # training sees other images than those loaded, so the fingerprint must differ
        return hashlib.sha256(f"dynamic {self.seed} {fixed}".encode()).hexdigest()

    def _draw(self, images: np.ndarray, index: np.ndarray, epoch: int, purpose: int) -> np.ndarray:
        """Return 255 if a uniform number of (seed, epoch, purpose, index, place) is below v / 255, and else 0."""
        size = images[0].size
        drawn = np.empty(images.shape, np.uint8)
        for start in range(0, len(images), 4096):  # in chunks, since there are 64 random bits per value
            rows = slice(start, start + 4096)
            places = index[rows, None] * size + np.arange(size)
            bits = hash_bits(self.seed, epoch, purpose, places.ravel()).reshape(images[rows].shape)
            uniform = (bits >> np.uint64(11)) * 2.0**-53
            drawn[rows] = np.where(uniform < images[rows] / 255, np.uint8(255), np.uint8(0))
        return drawn
