"""Image files below a folder: their names, also for messages, and their pixels."""

import functools
import hashlib
import heapq
import os
import stat
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from lit_gen.core.errors import UserError

ENDINGS = (
    ".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif",
    ".tiff", ".webp",
)  # fmt: skip
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "QOI", "TIFF", "WEBP")
"""Formats that Pillow may recognise; others start programs (EPS) or are rarely images."""
IGNORED = ("desktop.ini", "thumbs.db")
MAX_PIXELS = 89_478_485
"""Maximum number of pixels of a file; Pillow warns above it."""


class Tree(NamedTuple):
    """Image files below a folder, in the order of the cache.

    Attributes:
        root: The folder.
        files: Names relative to the root, with slashes; bytes that are not UTF-8 are surrogates, as in `os.fsdecode`.
        sizes_and_times: Size in bytes and modification time in ns of each file; -1 for unreadable files.
        left_out: Line about the files that were skipped, or an empty string.
    """

    root: Path
    files: list[str]
    sizes_and_times: list[tuple[int, int]]
    left_out: str

    @classmethod
    def scan(cls, root: Path, key: str, without: Path | None = None) -> "Tree":
        """Find the images below a folder; each real folder is read once, even if several links lead to it.

        Args:
            root: The folder.
            key: Config key of the folder.
            without: Folder to exclude.

        Raises:
            UserError: If the root is not a folder or holds no images.
        """
        if not root.is_dir():
            raise UserError(f"{key}: {shown(root)} is not a folder; set --{key} to a folder of images")
        left_out = _LeftOut()
        with no_warning_of_size():
            names = [name for name in _walk(root, without, left_out) if _is_image(root, name, left_out)]
        # sorted by hash, so that the last images are a random sample of all classes
        names.sort(key=lambda name: hashlib.sha256(name.encode(errors="surrogateescape")).digest())
        tree = cls(root, names, [_size_and_time(root / name) for name in names], str(left_out))
        if not names:
            but = f" but {tree.left_out}" if tree.left_out else ""
            raise UserError(
                f"{key}: {shown(root)} holds no images ({', '.join(_endings())}){but}; set --{key} to a folder of "
                "images"
            )
        return tree

    def classes(self) -> list[str]:
        """Return the names of the direct subfolders; none if all images lie directly in the root.

        Raises:
            UserError: If there are images both in subfolders and directly in the root.
        """
        names = {name.split("/")[0] if "/" in name else "" for name in self.files}
        if names == {""}:
            return []
        if "" in names:
            loose = next(name for name in self.files if "/" not in name)
            raise UserError(
                f"{shown(self.root)}: holds images both in subfolders and next to them ({shown(loose)}); move them "
                "into one folder per class, or set --data.source.class_folders false"
            )
        return sorted(names)


@dataclass
class _LeftOut:
    """Files and folders below a folder that are skipped."""

    kinds: Counter[str] = field(default_factory=Counter)
    links_back: list[str] = field(default_factory=list)
    broken_links: list[str] = field(default_factory=list)
    closed_folders: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = []
        if total := self.kinds.total():
            kinds = sorted(self.kinds.items(), key=lambda item: (-item[1], item[0]))
            counts = [f"{shown(ending) or 'without a suffix'} {num:,}" for ending, num in kinds[:8]]
            more = ["..."] if len(kinds) > 8 else []
            parts.append(f"{_counted(total, 'file')} of other kinds ({', '.join(counts + more)})")
        for names, what in (
            (self.links_back, "link to a folder that is already read or contains this one"),
            (self.broken_links, "link without a target"),
            (self.closed_folders, "folder that cannot be opened"),
        ):
            if names:
                parts.append(f"{_counted(len(names), what)} (the first is {shown(min(names))})")
        return "; ".join(parts)


def _counted(num: int, what: str) -> str:
    noun, _, rest = what.partition(" ")
    return f"{num:,} {noun}{'' if num == 1 else 's'}{rest and ' '}{rest}"


def _walk(root: Path, without: Path | None, left_out: _LeftOut) -> Iterator[str]:
    """Yield all files below a folder that are not hidden, relative to it; folders first, then links to folders."""
    start = os.path.realpath(root)
    excluded = os.path.realpath(without) if without is not None else None
    seen = {start, *map(str, Path(start).parents)}
    folders, links = [("", start)], list[str]()
    while folders or links:
        if folders:
            inside, real = folders.pop()
        else:
            inside = heapq.heappop(links)
            real = os.path.realpath(root / inside)
            if real in seen or real == excluded:
                left_out.links_back.extend([inside.rstrip("/")] * (real != excluded))
                continue
            seen.add(real)
        try:
            entries = list(os.scandir(real))
        except OSError:
            left_out.closed_folders.append(inside.rstrip("/") or str(root))
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            name, place = inside + entry.name, os.path.join(real, entry.name)
            if entry.is_dir(follow_symlinks=False):
                if place not in seen and place != excluded:
                    seen.add(place)
                    folders.append((f"{name}/", place))
            elif os.path.isdir(place):
                heapq.heappush(links, f"{name}/")
            else:
                yield name


def _is_image(root: Path, name: str, left_out: _LeftOut) -> bool:
    """Return whether a file is an image by its suffix or, without one, by its content; record it if not."""
    base = name.rpartition("/")[2].lower()
    ending = os.path.splitext(base)[1].rstrip(".")
    if ending in _endings():
        return True
    if base in IGNORED:
        return False
    path = root / name
    if not ending and path.is_symlink() and not path.exists():
        left_out.broken_links.append(name)
        return False
    if not ending and path.is_file():
        try:
            with Image.open(path, formats=_formats()):
                return True
        except Image.DecompressionBombError:
            return True  # decoding reports it
        except Exception:  # decoders raise many kinds of exception for what they cannot read
            pass
    left_out.kinds[ending] += 1
    return False


def _size_and_time(path: Path) -> tuple[int, int]:
    """Return the size and time of a file; -1 for a broken link, which is reported later as an unreadable file."""
    try:
        status = path.stat()
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


@functools.cache
def _endings() -> tuple[str, ...]:
    """Return the suffixes that this build of Pillow can read."""
    return tuple(ending for ending in ENDINGS if ending in Image.registered_extensions())


@functools.cache
def _formats(ending: str = "") -> tuple[str, ...]:
    """Return the formats allowed for a suffix; TGA, which has no signature, only for .tga."""
    Image.init()
    return tuple(name for name in (*FORMATS, *(["TGA"] if ending == ".tga" else [])) if name in Image.OPEN)


def shown(path: str | Path) -> str:
    """Return a path for messages and JSON, with bytes that are not UTF-8 and unprintable characters escaped."""
    text = str(path).encode(errors="surrogateescape").decode(errors="backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def read_pixels(path: Path, resolution: int, channels: int, background: tuple[int, int, int]) -> np.ndarray:
    """Return the pixels of a file, resized by the shorter side and cropped at the centre: uint8 (C, H, W).

    Raises:
        Exception: If it is not a regular file, or cannot be read as an image of at most `MAX_PIXELS` pixels.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("it is not a regular file")
    with Image.open(path, formats=_formats(path.suffix.lower())) as file:
        if file.width * file.height > MAX_PIXELS:
            raise ValueError(f"its {file.width} x {file.height} pixels exceed {MAX_PIXELS:,}, the limit")
        image = _on_background(_eight_bits(ImageOps.exif_transpose(file), file.format), background)
    image = image.convert("RGB" if channels == 3 else "L")
    image = ImageOps.fit(image, (resolution, resolution), Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(resolution, resolution, channels).transpose(2, 0, 1)


def exact_pixels(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """Return the pixels of a file of exactly this shape, uint8 (C, H, W), unchanged.

    Raises:
        ValueError: If it has another size, number of channels or depth, or transparent pixels.
        Exception: If it is not a regular file, or cannot be read as an image.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("it is not a regular file")
    channels, height, width = shape
    with Image.open(path, formats=_formats(path.suffix.lower())) as file:
        if (file.height, file.width) != (height, width):
            raise ValueError(f"it has {file.height}x{file.width} pixels, not {height}x{width}")
        image = file.convert("RGB" if "transparency" not in file.info else "RGBA") if file.mode == "P" else file
        image = image.convert("L") if image.mode == "1" else image
        if image.mode != (expected := "RGB" if channels == 3 else "L"):
            raise ValueError(f"its pixels are of type {image.mode}, not {expected}")
        return np.asarray(image).reshape(height, width, channels).transpose(2, 0, 1)


@contextmanager
def no_warning_of_size() -> Iterator[None]:
    """Silence the warning of Pillow about large images, since `read_pixels` refuses them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def _eight_bits(image: Image.Image, file_format: str | None) -> Image.Image:
    """Convert 16-bit grey values v to round(v / 257), which PIL would clip at 255; return other images unchanged.

    Raises:
        ValueError: If the range of the values is not known.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and file_format in ("PNG", "PPM")):
        values = np.asarray(image).astype(np.uint32)
        grey = Image.fromarray(((values + 128) // 257).astype(np.uint8))
        if (transparent := image.info.get("transparency")) is not None:
            grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
        return grey
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of type {image.mode}, whose range is not known; convert them to 8 or 16 bits")
    return image


def _on_background(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """Composite an image with transparent pixels on a colour; return other images unchanged."""
    if image.mode not in ("LA", "PA", "RGBA", "RGBa") and "transparency" not in image.info:
        return image
    coloured = image.convert("RGBA")
    opacity = coloured.getchannel("A")
    if opacity.getextrema()[0] == 255:
        image.info.pop("transparency", None)  # Pillow would warn about it
        return image
    canvas = Image.new("RGB", image.size, background)
    canvas.paste(coloured.convert("RGB"), mask=opacity)
    return canvas
