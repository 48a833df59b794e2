"""Images that other software made, in the form of a data set: a folder, an .npz, an .npy or a .pt, or an array.

| form | content |
| --- | --- |
| folder | one picture per image, in the order of their paths; direct subfolders named like classes are labels |
| .npz | `images` or, as ADM writes it, `arr_0`; labels, if any, in `labels` or `arr_1` |
| .npy, .pt | one array or tensor; a .pt is read without running its code |

Arrays are (N, C, H, W), (N, H, W, C) or, with one channel, (N, H, W): uint8, or float in [-1, 1]. Nothing is resized or
cropped: what differs in shape is refused.
"""

import hashlib
import logging
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.core.files import open_regular
from lit_gen.core.pixels import quantise, to_float
from lit_gen.data.files import NPZ_LIMIT, NPZ_RATIO, read_npz
from lit_gen.data.image_files import ENDINGS, Tree, exact_pixels, no_warning_of_size, shown
from lit_gen.data.module import ImageDataModule
from lit_gen.data.sources import ImageSet

FORMS = "a folder of pictures, an .npz, an .npy or a .pt"
CHUNK = 1024
"""Number of float images that are quantised at once."""

logger = logging.getLogger(__name__)


def read_given(path: Path, data: ImageDataModule, num_images: int | None = None) -> ImageSet:
    """Read images of the shape of a data set.

    Args:
        path: The folder or the file.
        data: The data that the images are like.
        num_images: Number of images, the first ones; all if not given.

    Raises:
        UserError: If the file does not exist or has another form, or its images are too few or unlike the data.
    """
    path = path.expanduser()
    if path.is_dir():
        return _read_folder(path, data, num_images)
    if not path.exists():
        raise UserError(f"{shown(path)}: does not exist; give {FORMS}")
    suffix = path.suffix.lower()
    if suffix.lstrip(".") and suffix in ENDINGS:
        raise UserError(
            f"{shown(path)}: a single picture; a grid of tiles does not say where its tiles begin, or how they were "
            f"enlarged; give {FORMS}"
        )
    read = {".npz": _read_npz, ".npy": _read_npy, ".pt": _read_pt, ".pth": _read_pt}.get(suffix)
    if read is None:
        raise UserError(f"{shown(path)}: not a known form of images; give {FORMS}")
    try:
        images, labels = read(path)
    except UserError:
        raise
    except Exception as error:  # numpy, zipfile, zlib and pickle each have their own exceptions for a broken file
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{shown(path)}: cannot be read ({reason}); save it again") from None
    return arrange(images, labels, data, num_images, shown(path))


def arrange(
    images: Any, labels: Any, data: ImageDataModule, num_images: int | None = None, name: str = "images"
) -> ImageSet:
    """Return images as the data stores them, (N, C, H, W), with labels if the data has some.

    Args:
        images: An array or a tensor.
        labels: Their classes (N,), or None.
        data: The data that the images are like.
        num_images: Number of images, the first ones; all if not given.
        name: Name of the images in messages.

    Raises:
        UserError: If shape, type or values are not those of the data, or there are too few images.
    """
    images = images.detach().cpu().numpy() if isinstance(images, Tensor) else np.asarray(images)
    images = _channels_first(images, data, name)
    num = _number(len(images), num_images, name)
    chosen = _stored(images[:num], data, name)
    if labels is None or not data.num_classes:
        return ImageSet(chosen, None)
    labels = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise UserError(
            f"{name}: labels are {labels.dtype} of shape {labels.shape}; give whole numbers of shape ({len(images)},)"
        )
    if labels.min() < 0 or labels.max() >= data.num_classes:
        raise UserError(
            f"{name}: labels from {labels.min()} to {labels.max()}, but {data.name} has the classes 0 to "
            f"{data.num_classes - 1}; number them like the data"
        )
    return ImageSet(chosen, labels[:num].astype(np.int64))


def content_hash(given: ImageSet) -> str:
    """Return the SHA-256 (hex) of the images as a set, with their labels: it does not depend on their order."""
    labels = [b""] * len(given.images) if given.labels is None else [label.tobytes() for label in given.labels]
    each = (
        hashlib.sha256(np.ascontiguousarray(image).tobytes() + label).digest()
        for image, label in zip(given.images, labels, strict=True)
    )
    digest = hashlib.sha256(f"{given.images.shape} {given.images.dtype}".encode())
    for one in sorted(each):
        digest.update(one)
    return digest.hexdigest()


def _number(found: int, asked: int | None, name: str) -> int:
    """Return how many images to take."""
    if found < 2:
        raise UserError(f"{name}: {found} images are too few to be scored; give at least 2")
    if asked is not None and asked > found:
        raise UserError(f"evaluation.num_samples: {asked} images, but {name} holds {found}; give at most {found}")
    return found if asked is None else asked


def _channels_first(images: np.ndarray, data: ImageDataModule, name: str) -> np.ndarray:
    """Return a view (N, C, H, W)."""
    channels, height, width = data.image_shape
    if images.ndim == 4 and images.shape[1:] == (channels, height, width):
        return images
    if images.ndim == 4 and images.shape[1:] == (height, width, channels):
        return images.transpose(0, 3, 1, 2)
    if images.ndim == 3 and channels == 1 and images.shape[1:] == (height, width):
        return images[:, None]
    raise UserError(
        f"{name}: an array of shape {tuple(images.shape)}, but {data.name} has images of {channels}x{height}x{width}; "
        f"give (N, {channels}, {height}, {width}) or (N, {height}, {width}, {channels})"
    )


def _stored(images: np.ndarray, data: ImageDataModule, name: str) -> np.ndarray:
    """Return images (N, C, H, W) in the data type of the data."""
    floating = images.dtype.kind == "f"
    if not floating and (images.dtype != np.uint8 or not data.source.quantised):
        wanted = "uint8, or floats in [-1, 1]" if data.source.quantised else "floats"
        raise UserError(f"{name}: values of type {images.dtype}; give {wanted}")
    if floating:
        low, high = float(images.min()), float(images.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise UserError(f"{name}: some values are not finite; give images without nan and inf")
        if not data.source.quantised:
            return np.ascontiguousarray(images, np.float32)
        if low < -1 or high > 1 or low >= 0:
            raise UserError(
                f"{name}: float values from {low:g} to {high:g}, but [-1, 1] is black to white; give uint8, or rescale "
                "and clamp them"
            )
        chunks = (
            torch.from_numpy(np.array(images[start : start + CHUNK], np.float32))
            for start in range(0, len(images), CHUNK)
        )
        images = torch.cat([quantise(chunk) for chunk in chunks]).numpy()
    if data.source.num_levels == 2:  # rounded to black and white, like the samples of a model
        images = data.source.stored(to_float(torch.from_numpy(np.array(images)))).numpy()
    return np.require(images, requirements=["C", "W"])  # a mapped file is copied


def _read_npz(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    arrays = read_npz(path, ("images", "labels", "arr_0", "arr_1"))
    images, labels = ("images", "labels") if "images" in arrays else ("arr_0", "arr_1")
    if images not in arrays:
        raise UserError(f"{shown(path)}: has neither the key 'images' nor 'arr_0'; save it with numpy.savez")
    return arrays[images], arrays.get(labels)


def _read_npy(path: Path) -> tuple[np.ndarray, None]:
    with open_regular(path):  # else a FIFO would block
        return np.load(
            path, mmap_mode="r", allow_pickle=False
        ), None  # mapped: a header cannot ask for more than the file


def _read_pt(path: Path) -> tuple[np.ndarray, None]:
    with open_regular(path) as file:
        size = path.stat().st_size
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                unpacked = sum(entry.file_size for entry in archive.infolist())
            if unpacked > max(NPZ_LIMIT, NPZ_RATIO * size):
                raise UserError(f"{shown(path)}: unpacks to {unpacked:,} bytes; save the tensor without compression")
        file.seek(0)
        try:
            found = torch.load(file, map_location="cpu", weights_only=True)
        except Exception:  # torch's own message recommends to run the code of the file
            raise UserError(
                f"{shown(path)}: not a tensor that can be read without running code; save it with torch.save(images, "
                "path)"
            ) from None
    if not isinstance(found, Tensor) or found.layout != torch.strided or found.device.type != "cpu":
        seen = f"a {type(found).__name__}" if not isinstance(found, Tensor) else f"a tensor on {found.device}"
        raise UserError(f"{shown(path)}: holds {seen}, not a plain tensor; save one with torch.save(images, path)")
    if found.numel() * found.element_size() > found.untyped_storage().nbytes():
        raise UserError(f"{shown(path)}: its shape {tuple(found.shape)} exceeds its values; save images.contiguous()")
    return found.to(torch.float32).numpy() if found.dtype == torch.bfloat16 else found.numpy(), None


def _read_folder(root: Path, data: ImageDataModule, num_images: int | None) -> ImageSet:
    """Read the pictures below a folder, in the order of their paths."""
    if not data.source.quantised:
        raise UserError(f"{shown(root)}: a folder, which cannot hold points; give an .npz or an .npy")
    tree = Tree.scan(root, "IMAGES")
    if tree.left_out:
        logger.warning("%s: skipped %s", shown(root), tree.left_out)
    names = sorted(tree.files)
    labels = _labels(root, names, data)
    num = _number(len(names), num_images, shown(root))
    if labels is not None and num < len(names):
        raise UserError(
            f"evaluation.num_samples: the first {num} of {len(names)} images in folders of classes leave out classes; "
            "remove it, or give an .npz"
        )
    images = np.empty((num, *data.image_shape), np.uint8)
    with no_warning_of_size():
        for row, name in zip(images, names[:num], strict=True):
            row[:] = _read_picture(root / name, data)
    return arrange(images, labels, data, num, shown(root))


def _read_picture(path: Path, data: ImageDataModule) -> np.ndarray:
    try:
        return exact_pixels(path, data.image_shape)
    except (Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        reason = shown(" ".join(str(error).split()))[:200]
        raise UserError(f"{shown(path)}: {reason}; give images like those of {data.name}") from None


def _labels(root: Path, names: list[str], data: ImageDataModule) -> np.ndarray | None:
    """Return the classes of pictures in folders that are named like classes; None if the data has none."""
    folders = [name.split("/")[0] if "/" in name else None for name in names]
    if not data.num_classes or set(folders) == {None}:
        return None
    classes = data.class_names or tuple(map(str, range(data.num_classes)))
    if unknown := [folder for folder in folders if folder not in classes]:
        what = f"the folder {shown(unknown[0])}" if unknown[0] else "a picture outside of the folders of classes"
        listed = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
        raise UserError(
            f"{shown(root)}: {what} belongs to no class of {data.name}; name the folders like its classes ({listed}), "
            "or put all pictures into one"
        )
    return np.array([classes.index(str(folder)) for folder in folders])
