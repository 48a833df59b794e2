"""Find, check, download and unpack the files of a data set, within limits that a hostile file cannot exceed."""

import gzip
import hashlib
import io
import os
import urllib.request
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from lit_gen.core.errors import UserError
from lit_gen.core.files import open_regular, replacing

LIMIT = 2**30
"""Bytes that a compressed official file may unpack to; the largest, CIFAR-10, takes 186 million."""
NPZ_LIMIT = 2**32
"""Bytes that an array of a small .npz file may unpack to."""
NPZ_RATIO = 32
"""Bytes that an array may unpack to for each byte of a large .npz file."""


def cache_home() -> Path:
    """Where downloads and caches go: `$XDG_CACHE_HOME/lit_gen`, by default `~/.cache/lit_gen`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lit_gen"


def find(names: Iterable[str], folders: Sequence[Path]) -> Path | None:
    """The first existing file among `names`, searched folder by folder."""
    return next((path for folder in folders for name in names if (path := folder / name).is_file()), None)


def check_md5(content: bytes, md5: str, what: str) -> None:
    """Compares content with the md5 of the official file.

    Raises:
        UserError: They differ; `what` names the file.
    """
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise UserError(
            f"{what} is not the official file: its content has md5 {found}, expected {md5}. Delete it to have it "
            "downloaded again, or set --data.source.checksum false to read files of your own"
        )


def decompress(path: Path, limit: int = LIMIT) -> bytes:
    """Return the first `limit` bytes of a file's content, unpacked if its name ends in .gz.

    Raises:
        UserError: The archive is cut off or damaged.
    """
    with open_regular(path) as file:
        if path.suffix != ".gz":
            return file.read(limit)
        try:
            with gzip.open(file) as unpacked:
                return unpacked.read(limit)
        except (EOFError, OSError, zlib.error) as error:
            raise UserError(f"{path} is truncated or damaged ({error}): delete it and download it again") from error


class Bounded(io.RawIOBase):
    """A stream that ends with an error instead of giving more than `limit` bytes."""

    def __init__(self, stream: BinaryIO, limit: int) -> None:
        self.stream = stream
        self.limit = self.left = limit

    def read(self, size: int = -1) -> bytes:
        content = self.stream.read(self.left + 1 if size < 0 else min(size, self.left + 1))
        self.left -= len(content)
        if self.left < 0:
            raise ValueError(f"it unpacks to more than {self.limit:,} bytes, the limit")
        return content


def read_npz(path: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Return those of the named arrays that an .npz file holds.

    An array may take `NPZ_LIMIT` bytes, or `NPZ_RATIO` times the size of the file if that is more.

    Raises:
        FileNotFoundError: There is no such file.
        UserError: It is not a regular file.
        Exception: It is damaged, or an array exceeds the limit; one of the kinds of zipfile, zlib and numpy.
    """
    arrays = {}
    with open_regular(path) as file, zipfile.ZipFile(file) as archive:
        size = os.fstat(file.fileno()).st_size
        limit = max(NPZ_LIMIT, NPZ_RATIO * size)
        for name in archive.namelist():  # an optional array must not be missing since its name is damaged
            archive.open(name).close()  # compares the two places that hold the name
        for name in {f"{name}.npy" for name in names} & set(archive.namelist()):
            if (expanded := archive.getinfo(name).file_size) > limit:
                raise ValueError(
                    f"{name} unpacks to {expanded:,} bytes, but the limit for a file of {size:,} bytes is {limit:,}"
                )
            with archive.open(name) as member:
                arrays[name.removesuffix(".npy")] = np.lib.format.read_array(member, allow_pickle=False)
                if member.read(1):  # reads to the end, where the checksum is compared
                    raise ValueError(f"{name} is longer than its header says")
    return arrays


def listed(folders: Iterable[Path]) -> str:
    """Folders as a message names them, each once."""
    return ", ".join(map(str, dict.fromkeys(folders)))


def download(urls: Sequence[str], path: Path, md5: str, folders: Sequence[Path]) -> None:
    """Fetches a file from the first address that answers, checks it, and only then gives it its name.

    Args:
        urls: Its addresses.
        path: Where to put it.
        md5: Of its content.
        folders: Where it was looked for in vain, which the error tells.

    Raises:
        UserError: No address answers, the checksum differs, or the file cannot be written.
    """
    problems = []
    for url in urls:
        try:
            digest = hashlib.md5(usedforsecurity=False)
            with urllib.request.urlopen(url, timeout=30) as answer, replacing(path) as temporary:
                with temporary.open("wb") as file:
                    while block := answer.read(1 << 20):
                        digest.update(block)
                        file.write(block)
                if digest.hexdigest() != md5:
                    raise ValueError(f"checksum mismatch, md5 {digest.hexdigest()} instead of {md5}")
            return
        except (OSError, ValueError) as error:  # URLError is an OSError
            problems.append(f"{url}: {error}")
    raise UserError(
        f"could not download {path.name} ({'; '.join(problems)}), nor was it here (looked in {listed(folders)}): check "
        f"the network, or put {urls[0]} into a folder and name that with --data.source.root"
    )
