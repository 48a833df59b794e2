"""Data sets: images and labels of a training and a test part, with a name and a shape.

Every source returns its training images in an order that is not sorted by class, so that the data module can hold out
the last ones for validation.
"""

import hashlib
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lit_gen.core.errors import NoTestImagesError, UserError
from lit_gen.core.pixels import finite, to_levels
from lit_gen.data.files import read_npz

Part = Literal["train", "test"]


class ImageSet(NamedTuple):
    """Images with labels.

    Attributes:
        images: uint8 `(N, C, H, W)`, in memory or memory-mapped; float32 for a source that is not quantised.
        labels: int64 `(N,)` in [0, num_classes), or None.
    """

    images: np.ndarray
    labels: np.ndarray | None

    def slice(self, start: int, stop: int) -> "ImageSet":
        """Return a view of images start .. stop - 1."""
        return ImageSet(self.images[start:stop], None if self.labels is None else self.labels[start:stop])

    def fingerprint(self) -> str:
        """Return the SHA-256 (hex) of shape, dtype and bytes of the images, and labels; independent of paths."""
        digest = hashlib.sha256(f"{self.images.shape} {self.images.dtype}".encode())
        for start in range(0, len(self.images), 4096):
            digest.update(np.ascontiguousarray(self.images[start : start + 4096]).data)
        digest.update(b"unlabelled" if self.labels is None else self.labels.astype("<i8").tobytes())
        return digest.hexdigest()


class ImageSource(ABC):
    """Data set; only `prepare` and `load` access its files.

    Attributes:
        quantised: Whether its images, and samples of its models, are stored as uint8; otherwise as float32.
        num_levels: Number of distinct pixel values: 256 for 8-bit images, 2 for binary ones (0 and 255).
    """

    quantised: bool = True
    num_levels: int = 256

    @property
    @abstractmethod
    def name(self) -> str:
        """Name of the data set in results and caches."""

    @property
    @abstractmethod
    def image_shape(self) -> tuple[int, int, int]:
        """`(C, H, W)`."""

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """Number of classes; 0 for data without labels."""

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes in the order of the labels, by default their numbers; None without labels."""
        return tuple(map(str, range(self.num_classes))) if self.num_classes else None

    def prepare(self) -> None:  # noqa: B027  (most sources have nothing to prepare)
        """Download files or build caches; may be called repeatedly and from several processes."""

    @abstractmethod
    def load(self, part: Part) -> ImageSet:
        """Return the images of one part.

        Raises:
            UserError: If a file is missing or invalid, or the data set has no such part.
        """

    def stored(self, samples: Tensor) -> Tensor:
        """Return samples in the form of the data: uint8, rounded to 0 or 255 for binary images; or float32.

        Raises:
            NotFiniteError: If a value is not finite.
        """
        return self.unchecked(finite(samples))

    def unchecked(self, samples: Tensor) -> Tensor:
        """Return samples as `stored` does, for a caller that checks that they are finite."""
        if not self.quantised:
            return samples.float()
        images = to_levels(samples)
        return images if self.num_levels > 2 else (images >= 128).to(torch.uint8) * 255

    def redraw(self, index: np.ndarray, epoch: int) -> np.ndarray | None:
        """Return the training images of one epoch, a pure function of (index, epoch); None if they do not change."""
        return None

    def fingerprint(self, loaded: ImageSet, part: Part, start: int, stop: int) -> str:
        """Return `ImageSet.fingerprint` of images start .. stop - 1 of a loaded part; a source may cache it."""
        return loaded.slice(start, stop).fingerprint()


class Digits(ImageSource):
    """The 1,797 handwritten digits of 8x8 pixels from scikit-learn, which need no download.

    Grey values v in 0 .. 16 become round(255 v / 16). Images 4, 9, 14, ... of each class (counted from 0 in the order
    of scikit-learn) form the test part, so both parts are stratified: 1,442 training and 355 test images.

    Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.
    """

    name = "digits"
    image_shape = (1, 8, 8)
    num_classes = 10

    def load(self, part: Part) -> ImageSet:
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]
        labels = digits.target.astype(np.int64)
        rank_in_class = np.empty_like(labels)
        for label in range(self.num_classes):
            members = labels == label
            rank_in_class[members] = np.arange(members.sum())
        is_test = rank_in_class % 5 == 4
        rows = is_test if part == "test" else ~is_test
        return ImageSet(images[rows], labels[rows])


class Npz(ImageSource):
    """Images from an .npz file with the key `images` and, for data with classes, the key `labels`.

    `images` is uint8 of shape `(N, H, W)`, `(N, C, H, W)` or `(N, H, W, C)` with C 1 or 3. `labels` holds one integer
    of at least 0 per image. Its distinct values in the training file become the classes 0 .. K - 1 in ascending order,
    so labels may have gaps. The test file may only have labels of the training file.

    The name of a class is its original label, or its entry in `class_names` of the training file, a list of texts
    indexed by the original labels.

    Args:
        path: File of the training images.
        test: File of the test images, if any.
        name: Name of the data set in results; by default the file name without its suffix.
    """

    def __init__(self, path: str, test: str | None = None, name: str | None = None) -> None:
        self.path = Path(path).expanduser()
        self.test = Path(test).expanduser() if test is not None else None
        self._name = name or self.path.stem
        self._parts: dict[str, ImageSet] = {}
        self._values: list[int] = []
        self._class_names: tuple[str, ...] | None = None

    @property
    def name(self) -> str:
        return self._name

    @property
    def image_shape(self) -> tuple[int, int, int]:
        _, channels, height, width = self.load("train").images.shape
        return channels, height, width

    @property
    def num_classes(self) -> int:
        self.load("train")
        return len(self._values)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        self.load("train")
        return self._class_names

    def load(self, part: Part) -> ImageSet:
        if part not in self._parts:
            if part == "train":
                self._parts["train"] = self._read_train()
            elif self.test is None:
                raise NoTestImagesError(
                    f"data.source.test: {self.name} has no test images; set --data.source.test to their file"
                )
            else:
                self._parts["test"] = self._read_test(self.test)
        return self._parts[part]

    def _read_train(self) -> ImageSet:
        arrays = _read_arrays(self.path, "data.source.path")
        images, labels = _images(arrays, self.path), _labels(arrays, self.path)
        if labels is None:
            return ImageSet(images, None)
        values, labels = np.unique(labels, return_inverse=True)
        self._values = values.tolist()
        self._class_names = _class_names(arrays, self._values, self.path)
        return ImageSet(images, labels.astype(np.int64))

    def _read_test(self, path: Path) -> ImageSet:
        image_shape = self.image_shape
        arrays = _read_arrays(path, "data.source.test")
        images, labels = _images(arrays, path), _labels(arrays, path)
        if images.shape[1:] != image_shape:
            raise UserError(
                f"{path}: test images have shape {images.shape[1:]}, but training images {image_shape}; give the same "
                "shape"
            )
        if (labels is None) != (not self._values):
            raise UserError(
                f"{path}: only one of training and test file has the key 'labels'; add it to both, or to neither"
            )
        if labels is None:
            return ImageSet(images, None)
        values, labels = np.unique(labels, return_inverse=True)
        label_of = {value: label for label, value in enumerate(self._values)}
        if unknown := [value for value in values.tolist() if value not in label_of]:
            raise UserError(
                f"{path}: label {unknown[0]} does not occur in training, whose labels are {_listed(self._values)}; "
                "remove the images of other classes"
            )
        return ImageSet(images, np.array([label_of[value] for value in values.tolist()], np.int64)[labels])


def _read_arrays(path: Path, key: str) -> dict[str, np.ndarray]:
    try:
        arrays = read_npz(path, ("images", "labels", "class_names"))
    except FileNotFoundError as error:
        raise UserError(
            f"{key}: {path} does not exist; set --{key} to an .npz file with the keys images and labels"
        ) from error
    except UserError:
        raise
    except Exception as error:  # numpy, zipfile and zlib each have their own exceptions for a broken file
        raise UserError(f"{path}: cannot be read as an .npz file ({error}); write it again with numpy.savez") from error
    if "images" not in arrays:
        raise UserError(f"{path}: has no key 'images'; save it with numpy.savez(path, images=..., labels=...)")
    return arrays


def _images(arrays: dict[str, np.ndarray], path: Path) -> np.ndarray:
    """Return the images of a file as uint8 (N, C, H, W)."""
    images = arrays["images"]
    if images.dtype != np.uint8:
        raise UserError(f"{path}: images are {images.dtype}, not uint8 in [0, 255]; convert them before saving")
    if images.ndim == 3:
        images = images[:, None]
    if images.ndim == 4 and images.shape[1] not in (1, 3) and images.shape[3] in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise UserError(
            f"{path}: images have shape {arrays['images'].shape}; save them as (N, H, W), (N, C, H, W) or (N, H, W, C) "
            "with C 1 or 3"
        )
    if images.size == 0:
        raise UserError(f"{path}: holds no images, since their shape is {arrays['images'].shape}; give at least one")
    return np.ascontiguousarray(images)


def _labels(arrays: dict[str, np.ndarray], path: Path) -> np.ndarray | None:
    """Return the original labels of a file, or None."""
    labels, num_images = arrays.get("labels"), len(arrays["images"])
    if labels is None:
        return None
    if labels.shape != (num_images,) or labels.dtype.kind not in "iu":
        raise UserError(
            f"{path}: labels are {labels.dtype} of shape {labels.shape}; save integers of at least 0 of shape "
            f"({num_images},), one per image"
        )
    if labels.min() < 0:
        raise UserError(
            f"{path}: label {labels.min()} is negative; remove the images without a class, or the key 'labels'"
        )
    return labels


def _class_names(arrays: dict[str, np.ndarray], values: list[int], path: Path) -> tuple[str, ...]:
    """Return the names of the classes with the given original labels."""
    if "class_names" not in arrays:
        return tuple(map(str, values))
    names = arrays["class_names"]
    if names.ndim != 1 or names.dtype.kind != "U" or len(set(names.tolist())) < len(names):
        raise UserError(f"{path}: class_names: not a list of distinct texts; write it as numpy.array([...])")
    if values[-1] >= len(names):
        raise UserError(f"{path}: class_names: {len(names)} names, but labels up to {values[-1]}; give each a name")
    return tuple(str(names[value]) for value in values)


def _listed(values: list[int]) -> str:
    """Return a list of labels for a message, shortened if there are many."""
    if len(values) > 1 and values == list(range(len(values))):
        return f"0 .. {values[-1]}"
    return ", ".join(map(str, values[:10])) + (", ..." if len(values) > 10 else "")
