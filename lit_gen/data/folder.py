"""Folders of images, resized once into a file of uint8 pixels that is memory-mapped."""

import hashlib
import io
import json
import logging
import math
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple
from uuid import uuid4

import numpy as np
from PIL import ImageColor
from rich.console import Console
from rich.progress import track

from lit_gen.core.errors import NoTestImagesError, UserError
from lit_gen.core.files import open_regular, read_regular, write_atomically
from lit_gen.data.files import cache_home
from lit_gen.data.image_files import Tree, no_warning_of_size, read_pixels, shown
from lit_gen.data.sources import ImageSet, ImageSource, Part

META, IMAGES, LABELS = "meta.json", "images.u8", "labels.npy"
CACHE_VERSION = 3
CHUNK = 512  # images decoded at a time, which bounds the memory of a build
VERIFIED = 2**29
"""Maximum size in bytes of a pixel file whose checksum is verified on every opening; larger files only if touched."""
TRAINING = {"train", "training"}
OTHERS = {"test", "testing", "val", "valid", "validation"}

logger = logging.getLogger(__name__)


class _Cache(NamedTuple):
    """Cache whose files have been verified."""

    folder: Path
    images: np.ndarray
    labels: np.ndarray
    skipped: list[str]


class Folder(ImageSource):
    """Images below a folder, resized and cropped to squares.

    The shorter side is resized to `resolution` (bicubic, antialiased) and the image is cropped at its centre. The
    result is cached under a key of the path, names, sizes and times of the files. Pixels are then read on demand, so
    the data may exceed the memory. A damaged cache is built again. Images are ordered by the hash of their names.

    Files with the usual suffixes are read, as well as files without a suffix whose content Pillow recognises; a warning
    counts the others. Hidden files and folders, `Thumbs.db` and `desktop.ini` are ignored. Symbolic links are followed,
    but each folder is read once, and links to a parent folder of the root are skipped.

    Args:
        root: Folder of the training images. Each direct subfolder is a class; if all images lie directly in the root,
            there are no labels.
        test: Folder of the test images, if any, with the same classes. It may lie below `root`; its images are then not
            used for training.
        resolution: Height and width of the images.
        channels: 3 for colour, 1 for grey.
        class_folders: Use the subfolders as classes. If false, there are no labels.
        on_error: Action for a file that cannot be read as an image: stop, or skip it and report the number of such
            files.
        cache: Folder of the cache; by default in the user's cache folder.
        name: Name of the data set in results; by default the name of the folder.
        background: Colour behind transparent pixels, as a name or `#rrggbb`.
    """

    def __init__(
        self,
        root: str,
        test: str | None = None,
        resolution: int = 64,
        channels: Literal[1, 3] = 3,
        class_folders: bool = True,
        on_error: Literal["raise", "skip"] = "raise",
        cache: str | None = None,
        name: str | None = None,
        background: str = "white",
    ) -> None:
        if resolution < 1:
            raise UserError(f"data.source.resolution: {resolution} is not a size in pixels; give at least 1")
        self.root = Path(root).expanduser()
        self.test = Path(test).expanduser() if test is not None else None
        self.resolution = resolution
        self.channels = channels
        self.class_folders = class_folders
        self.on_error = on_error
        self.cache = Path(cache).expanduser() if cache is not None else cache_home() / "folders"
        self.background = _colour(background)
        if self.test is not None and self.root.resolve().is_relative_to(self.test.resolve()):
            raise UserError(
                f"data.source.test: {shown(self.test)} holds the training images of {shown(self.root)}; give a folder "
                "of test images only"
            )
        self._name = name or shown(self.root.resolve().name)
        self._trees: dict[str, Tree] = {}
        self._classes: list[str] | None = None
        self._reported: set[str] = set()

    @property
    def name(self) -> str:
        return self._name

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.channels, self.resolution, self.resolution

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of their labels."""
        if self._classes is None:
            self._classes = self._find_classes() if self.class_folders else []
        return self._classes

    @property
    def class_names(self) -> tuple[str, ...] | None:
        return tuple(map(shown, self.classes)) or None

    def skipped(self, part: Part) -> list[str]:
        """Return the files that were skipped because they cannot be read."""
        return list(map(shown, self._cached(part).skipped))

    def prepare(self) -> None:
        self._cached("train")
        if self.test is not None:
            self._cached("test")

    def load(self, part: Part) -> ImageSet:
        cache = self._cached(part)
        return ImageSet(cache.images, cache.labels if self.classes else None)

    def fingerprint(self, loaded: ImageSet, part: Part, start: int, stop: int) -> str:
        folder = self._cached(part).folder
        path = folder / f"fingerprint-{start}-{stop}"
        record = _read_record(path, folder.name)
        if record is None:
            record = {"fingerprint": super().fingerprint(loaded, part, start, stop)}
            _remove(path)
            _write_record(path, folder.name, record)
        return str(record["fingerprint"])

    def _tree(self, part: Part) -> Tree:
        if part not in self._trees:
            root = self.root if part == "train" else self.test
            if root is None:
                raise NoTestImagesError(
                    f"data.source.test: {self.name} has no test images; set --data.source.test to their folder"
                )
            key, without = ("data.source.root", self.test) if part == "train" else ("data.source.test", None)
            tree = self._trees[part] = Tree.scan(root, key, without)
            if tree.left_out:
                logger.warning("%s: skipped %s", shown(root), tree.left_out)
        return self._trees[part]

    def _find_classes(self) -> list[str]:
        """Return the names of the classes.

        Raises:
            UserError: If the folders are the training and test parts of a data set, not classes.
        """
        names = self._tree("train").classes()
        train = [name for name in names if name.lower() in TRAINING]
        others = [name for name in names if name.lower() in OTHERS]
        if self.test is not None and self.test.resolve().parent == self.root.resolve():
            test = self.test if set(names) == {*train, *others} else None
        else:
            test = self.root / sorted(others)[0] if others else None
        if train and test is not None:
            raise UserError(
                f"data.source.root: {', '.join(map(shown, train + others))} of {shown(self.root)} would become classes;"
                f" set --data.source.root {shown(self.root / train[0])} --data.source.test {shown(test)}, or rename the"
                " folders if they are classes"
            )
        return names

    def _cached(self, part: Part) -> _Cache:
        """Return the cache of one part, after building it if it is missing or damaged."""
        tree = self._tree(part)
        settings = [CACHE_VERSION, self.resolution, self.channels, self.background, self.classes]
        key = json.dumps([*settings, str(tree.root.resolve()), tree.files, tree.sizes_and_times])
        folder = self.cache / hashlib.sha256(key.encode()).hexdigest()[:32]
        cache = _open(folder)
        if cache is None:
            if folder.exists():
                logger.warning("%s: the cache is damaged; building it again", folder)
            self._build(tree, folder)
            cache = _open(folder)
        if cache is None:
            raise UserError(f"{folder}: does not hold what was written; check the disk, or set --data.source.cache")
        if cache.skipped and self.on_error == "raise":  # built when skipping was allowed
            raise UserError(_unreadable(tree.root / cache.skipped[0], "the cache was built without it"))
        if cache.skipped and part not in self._reported:
            self._reported.add(part)
            logger.warning(
                "%s: skipped %d of %d files that cannot be read as images; the first is %s",
                shown(tree.root), len(cache.skipped), len(tree.files), shown(cache.skipped[0]),
            )  # fmt: skip
        return cache

    def _build(self, tree: Tree, folder: Path) -> None:
        self.cache.mkdir(parents=True, exist_ok=True)
        temporary = self.cache / f"build-{uuid4().hex}"  # tempfile would deny access to other users
        temporary.mkdir()
        try:
            self._write(tree, temporary, folder.name)
            if _open(folder) is None:
                _remove(folder)
                try:
                    temporary.rename(folder)
                except OSError:
                    if not folder.is_dir():  # otherwise another process has built the same cache
                        raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _write(self, tree: Tree, folder: Path, key: str) -> None:
        """Write the files of a cache into an empty folder."""
        label_of = {name: label for label, name in enumerate(self.classes)}
        labels: list[int] = []
        skipped: list[str] = []
        count, digest = 0, hashlib.sha256()
        with open(folder / IMAGES, "wb") as file:
            for name, pixels in self._decode(tree):
                if pixels is None:
                    skipped.append(name)
                    continue
                count += 1
                content = pixels.tobytes()
                file.write(content)
                digest.update(content)
                if label_of:
                    label = label_of.get(name.split("/")[0] if "/" in name else "")
                    if label is None:
                        raise UserError(
                            f"{shown(tree.root / name)}: belongs to none of the {len(label_of)} classes of "
                            f"{shown(self.root)}; give training and test images the same subfolders"
                        )
                    labels.append(label)
            file.flush()
            os.fsync(file.fileno())
        if not count:
            raise UserError(
                f"{shown(tree.root)}: none of its {len(skipped)} files can be read as an image; repair them"
            )
        if tree is self._trees["train"] and (empty := set(range(self.num_classes)) - set(labels)):
            raise UserError(
                f"{shown(tree.root / self.classes[min(empty)])}: holds no file that can be read as an image; repair "
                "the files, or remove the folder"
            )
        np.save(folder / LABELS, np.array(labels, dtype=np.int64))
        record = {
            "shape": [count, *self.image_shape],
            "skipped": skipped,
            "images": digest.hexdigest(),
            "labels": hashlib.sha256((folder / LABELS).read_bytes()).hexdigest(),
            "time": (folder / IMAGES).stat().st_mtime_ns,
        }
        _write_record(folder / META, key, record)

    def _decode(self, tree: Tree) -> Iterator[tuple[str, np.ndarray | None]]:
        """Yield name and pixels `(C, H, W)` of every file; None for a file to skip."""

        def decode(name: str) -> np.ndarray | None:
            try:
                return read_pixels(tree.root / name, self.resolution, self.channels, self.background)
            except Exception as error:  # decoders raise many kinds of exception for damaged files
                if self.on_error == "raise":
                    raise UserError(_unreadable(tree.root / name, shown(str(error)))) from error
                return None

        chunks = range(0, len(tree.files), CHUNK)
        with no_warning_of_size(), ThreadPoolExecutor() as pool:  # decoding releases the interpreter's lock
            what, console = f"resizing {len(tree.files):,} images", Console(stderr=True)
            for start in track(chunks, what, console=console, disable=not console.is_terminal):
                names = tree.files[start : start + CHUNK]
                yield from zip(names, pool.map(decode, names), strict=True)


def _colour(text: str) -> tuple[int, int, int]:
    with suppress(ValueError):
        colour = ImageColor.getrgb(text)
        if len(colour) == 3:
            return colour
    raise UserError(f"data.source.background: {text} is not a colour; give a name such as white, or #rrggbb")


def _open(folder: Path) -> _Cache | None:
    """Return a cache, or None if it does not exist or one of its files has changed."""
    try:
        record = _read_record(folder / META, folder.name)
        if record is None or (images := _map(folder / IMAGES, record)) is None:
            return None
        content = read_regular(folder / LABELS, 1024 + 8 * len(images))
        if hashlib.sha256(content).hexdigest() != record["labels"]:
            return None
        return _Cache(folder, images, np.load(io.BytesIO(content)), record["skipped"])
    except (OSError, UserError):
        return None


def _map(path: Path, record: dict[str, Any]) -> np.ndarray | None:
    """Return the memory-mapped pixels; None if they are not those that were written.

    The checksum is verified for files of up to `VERIFIED` bytes, and for larger ones if they were touched since.
    """
    shape = tuple(record["shape"])
    with open_regular(path) as file:
        status = os.fstat(file.fileno())
        if status.st_size != math.prod(shape):
            return None
        touched = status.st_mtime_ns != record["time"]
        if touched or status.st_size <= VERIFIED:
            if hashlib.file_digest(file, "sha256").hexdigest() != record["images"]:
                return None
            if touched:  # copied unchanged: restoring the time saves the next verification
                with suppress(OSError):
                    os.utime(path, ns=(status.st_atime_ns, record["time"]))
    # copy-on-write: torch gets writable arrays, and the file does not change
    return np.memmap(path, np.uint8, "c", shape=shape)


def _write_record(path: Path, key: str, values: dict[str, Any]) -> None:
    """Write values as JSON, with a checksum over the values, the file name and the key of the cache."""
    write_atomically(path, json.dumps(values | {"check": _check(path, key, values)}))


def _read_record(path: Path, key: str) -> dict[str, Any] | None:
    """Return the values that `_write_record` wrote, or None if the file is missing or damaged."""
    try:
        values = json.loads(read_regular(path, 2**30))
        return values if values.pop("check") == _check(path, key, values) else None
    except (OSError, UserError, ValueError, TypeError, AttributeError, KeyError, RecursionError):
        return None


def _check(path: Path, key: str, values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps([path.name, key, values], sort_keys=True).encode()).hexdigest()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _unreadable(path: Path, why: str) -> str:
    return (
        f"{shown(path)}: cannot be read as an image ({why}); repair or delete it, or set --data.source.on_error skip "
        "to skip such files"
    )
