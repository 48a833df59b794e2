"""Any tree of image files, resized once into a file of uint8 pixels that is mapped into memory, not read."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple
from uuid import uuid4

import numpy as np
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import track

from lit_gen.data.files import cache_home
from lit_gen.data.sources import ImageSet, ImageSource, Part
from lit_gen.errors import NoTestImagesError, UserError

ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
CACHE_VERSION = 2
CHUNK = 512  # images decoded at a time: bounds the memory of a build

logger = logging.getLogger(__name__)


class _Tree(NamedTuple):
    """The image files below a folder, in the order of the cache."""

    root: Path
    files: list[str]
    sizes_and_times: list[tuple[int, int]]

    @classmethod
    def scan(cls, root: Path, key: str) -> "_Tree":
        if not root.is_dir():
            raise UserError(f"{root} is not a folder: set --{key} to a folder of images")
        found = []
        for folder, folders, files in os.walk(root, followlinks=True):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in files:
                if name.lower().endswith(ENDINGS) and not name.startswith("."):
                    path = Path(folder, name)
                    found.append((path.relative_to(root).as_posix(), _size_and_time(path)))
        if not found:
            raise UserError(f"{root} holds no images ({', '.join(ENDINGS)}): set --{key} to a folder that does")
        # sorted by hash, so that the last images are a random sample of all classes
        found.sort(key=lambda entry: hashlib.sha256(entry[0].encode()).digest())
        return cls(root, [name for name, _ in found], [stat for _, stat in found])

    def classes(self) -> list[str]:
        """Names of the first level of folders; none if all images lie directly in the root."""
        names = {name.split("/")[0] if "/" in name else "" for name in self.files}
        if names == {""}:
            return []
        if "" in names:
            loose = next(name for name in self.files if "/" not in name)
            raise UserError(
                f"{self.root} holds images both in subfolders and beside them ({loose}): move them into folders, one "
                "for each class, or set --data.source.class_folders false"
            )
        return sorted(names)


class Folder(ImageSource):
    """The images below a folder, resized and cropped to squares.

    The shorter side is resized to `resolution` (bicubic, antialiased) and the middle is cut out. That is done once,
    into a cache whose key depends on the place, names, sizes and times of the files; afterwards pixels are read as they
    are needed, so the data may exceed the memory. The order of images is that of the hashes of their names.

    Args:
        root: Folder with the training images. Each folder on its first level is a class; images that all lie directly
            in it have no labels.
        test: Folder with the test images, if there is a test part; the same classes.
        resolution: Height and width of the images.
        channels: 3 for colour, 1 for grey values.
        class_folders: False: ignore the names of folders, no labels.
        on_error: What to do about a file that cannot be read as an image: stop, or leave it out and report how many.
        cache: Folder of the cache; by default in the user's cache folder.
        name: What results call the data set; by default the folder's name.
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
    ) -> None:
        if resolution < 1:
            raise UserError(f"data.source.resolution is {resolution}: expected at least 1")
        self.root = Path(root).expanduser()
        self.test = Path(test).expanduser() if test is not None else None
        self.resolution = resolution
        self.channels = channels
        self.class_folders = class_folders
        self.on_error = on_error
        self.cache = Path(cache).expanduser() if cache is not None else cache_home() / "folders"
        self._name = name or self.root.resolve().name
        self._trees: dict[str, _Tree] = {}
        self._classes: list[str] | None = None
        self._caches: dict[str, Path] = {}

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
            self._classes = self._tree("train").classes() if self.class_folders else []
        return self._classes

    def skipped(self, part: Part) -> list[str]:
        """The files left out because they cannot be read."""
        return list(json.loads((self._cached(part) / "meta.json").read_text())["skipped"])

    def prepare(self) -> None:
        self._cached("train")
        if self.test is not None:
            self._cached("test")

    def load(self, part: Part) -> ImageSet:
        folder = self._cached(part)
        shape = tuple(json.loads((folder / "meta.json").read_text())["shape"])
        try:
            # copy-on-write: the arrays look writable, as torch likes them, and the file stays as it is
            images = np.memmap(folder / "images.u8", np.uint8, "c", shape=shape)
            labels = np.load(folder / "labels.npy") if self.classes else None
        except (OSError, ValueError) as error:
            raise UserError(
                f"the cache {folder} is damaged ({error}): delete that folder to have it built again"
            ) from error
        return ImageSet(images, labels)

    def fingerprint(self, loaded: ImageSet, part: Part, start: int, stop: int) -> str:
        path = self._cached(part) / f"fingerprint-{start}-{stop}"
        if not path.is_file():
            _write(path, super().fingerprint(loaded, part, start, stop))
        return path.read_text()

    def _tree(self, part: Part) -> _Tree:
        if part not in self._trees:
            root = self.root if part == "train" else self.test
            if root is None:
                raise NoTestImagesError(f"{self.name} has no test images: name their folder with --data.source.test")
            self._trees[part] = _Tree.scan(root, "data.source.root" if part == "train" else "data.source.test")
        return self._trees[part]

    def _cached(self, part: Part) -> Path:
        """The cache of one part, built if it does not exist."""
        if part not in self._caches:
            tree = self._tree(part)
            settings = [CACHE_VERSION, self.resolution, self.channels, self.classes]
            key = json.dumps([*settings, str(tree.root.resolve()), tree.files, tree.sizes_and_times])
            folder = self.cache / hashlib.sha256(key.encode()).hexdigest()[:32]
            if not folder.is_dir():
                self._build(tree, folder)
            skipped = json.loads((folder / "meta.json").read_text())["skipped"]
            if skipped and self.on_error == "raise":  # built when skipping was allowed
                raise UserError(_unreadable(tree.root / skipped[0], "the cache was built without it"))
            if skipped:
                logger.warning(
                    "%s: left out %d of %d files that cannot be read as images, the first is %s",
                    tree.root, len(skipped), len(tree.files), skipped[0],
                )  # fmt: skip
            self._caches[part] = folder
        return self._caches[part]

    def _build(self, tree: _Tree, folder: Path) -> None:
        label_of = {name: label for label, name in enumerate(self.classes)}
        self.cache.mkdir(parents=True, exist_ok=True)
        temporary = self.cache / f"build-{uuid4().hex}"  # tempfile would shut out all other users
        temporary.mkdir()
        labels: list[int] = []
        skipped: list[str] = []
        count = 0
        try:
            with open(temporary / "images.u8", "wb") as file:
                for name, pixels in self._decode(tree):
                    if pixels is None:
                        skipped.append(name)
                        continue
                    count += 1
                    file.write(pixels.tobytes())
                    if label_of:
                        label = label_of.get(name.split("/")[0] if "/" in name else "")
                        if label is None:
                            raise UserError(
                                f"{tree.root / name} belongs to none of the {len(label_of)} classes of {self.root}: "
                                "training and test images need the same folders"
                            )
                        labels.append(label)
            if not count:
                raise UserError(f"none of the {len(skipped)} files in {tree.root} can be read as an image")
            np.save(temporary / "labels.npy", np.array(labels, dtype=np.int64))
            meta = {"shape": [count, *self.image_shape], "skipped": skipped}
            (temporary / "meta.json").write_text(json.dumps(meta))
            try:
                temporary.rename(folder)
            except OSError:
                if not folder.is_dir():  # else another process was faster, with the same result
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _decode(self, tree: _Tree) -> Iterator[tuple[str, np.ndarray | None]]:
        """Pixels `(C, H, W)` of every file in turn; None for a file to be left out."""

        def decode(name: str) -> np.ndarray | None:
            try:
                with Image.open(tree.root / name) as file:
                    image = _eight_bits(ImageOps.exif_transpose(file), file.format)
                image = image.convert("RGB" if self.channels == 3 else "L")
                image = ImageOps.fit(image, (self.resolution, self.resolution), Image.Resampling.BICUBIC)
            except Exception as error:  # decoders raise many kinds of exception for damaged files
                if self.on_error == "raise":
                    raise UserError(_unreadable(tree.root / name, str(error))) from error
                return None
            return np.asarray(image).reshape(self.resolution, self.resolution, self.channels).transpose(2, 0, 1)

        chunks = range(0, len(tree.files), CHUNK)
        with ThreadPoolExecutor() as pool:  # decoding releases the interpreter's lock
            what, console = f"resizing {len(tree.files):,} images", Console(stderr=True)
            for start in track(chunks, what, console=console, disable=not console.is_terminal):
                names = tree.files[start : start + CHUNK]
                yield from zip(names, pool.map(decode, names), strict=True)


def _size_and_time(path: Path) -> tuple[int, int]:
    """What the cache knows a file by; a link that leads nowhere is a file that cannot be read, which is said later."""
    try:
        stat = path.stat()
    except OSError:
        return -1, -1
    return stat.st_size, stat.st_mtime_ns


def _eight_bits(image: Image.Image, file_format: str | None) -> Image.Image:
    """An image of 16-bit grey values v as one of round(v / 257); any other as it is. PIL itself would clip at 255.

    Raises:
        ValueError: the range of the values is not known.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and file_format in ("PNG", "PPM")):
        values = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of type {image.mode}, whose range is not known; convert them to 8 or 16 bits")
    return image


def _unreadable(path: Path, why: str) -> str:
    return (
        f"{path} cannot be read as an image ({why}): repair or delete it, or set --data.source.on_error skip to leave "
        "such files out"
    )


def _write(path: Path, text: str) -> None:
    """Writes a file that is never seen half written."""
    temporary = path.with_name(f"{path.name}.{uuid4().hex}")
    temporary.write_text(text)
    temporary.replace(path)
