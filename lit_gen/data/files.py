"""Find, check, download and unpack the files of a data set, within limits that protect against hostile files."""

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
"""Maximum unpacked size of an official file in bytes; the largest, CIFAR-10, has 186 million."""
NPZ_LIMIT = 2**32
"""Maximum unpacked size in bytes of an array in a small .npz file."""
NPZ_RATIO = 32
"""Maximum unpacked size of an array in a large .npz file, as a multiple of the size of the file."""


def cache_home() -> Path:
    """Return the folder of downloads and caches: `$XDG_CACHE_HOME/lit_gen`, by default `~/.cache/lit_gen`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lit_gen"


def find(names: Iterable[str], folders: Sequence[Path]) -> Path | None:
    """Return the first existing file among `names`, searched folder by folder, or None."""
    return next((path for folder in folders for name in names if (path := folder / name).is_file()), None)


def check_md5(content: bytes, md5: str, what: str) -> None:
    """Compare content with the md5 of the official file.

    Raises:
        UserError: If the two differ; `what` names the file.
    """
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise UserError(
            f"{what}: not the official file, since its md5 is {found} and not {md5}; delete it to download it again, "
            "or set --data.source.checksum false to read custom files"
        )


def decompress(path: Path, limit: int = LIMIT) -> bytes:
    """Return the first `limit` bytes of the content of a file, unpacked if its name ends in .gz.

    Raises:
        UserError: If the archive is truncated or damaged.
    """
    with open_regular(path) as file:
        if path.suffix != ".gz":
            return file.read(limit)
        try:
            with gzip.open(file) as unpacked:
                return unpacked.read(limit)
        except (EOFError, OSError, zlib.error) as error:
            raise UserError(f"{path}: truncated or damaged ({error}); delete it and download it again") from error


class Bounded(io.RawIOBase):
    """Stream that raises a ValueError instead of returning more than `limit` bytes."""

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
    """Return the named arrays of an .npz file, without those that it lacks.

    An array may have `NPZ_LIMIT` bytes, or `NPZ_RATIO` times the size of the file if that is more.

    Raises:
        FileNotFoundError: If the file does not exist.
        UserError: If it is not a regular file.
        Exception: If it is damaged, or an array exceeds the limit: an exception of zipfile, zlib or numpy.
    """
    arrays = {}
    with open_regular(path) as file, zipfile.ZipFile(file) as archive:
        size = os.fstat(file.fileno()).st_size
        limit = max(NPZ_LIMIT, NPZ_RATIO * size)
        for name in archive.namelist():  # a damaged name must not make an optional array look missing
            archive.open(name).close()  # compares the two copies of the name
        for name in {f"{name}.npy" for name in names} & set(archive.namelist()):
            if (expanded := archive.getinfo(name).file_size) > limit:
                raise ValueError(
                    f"{name} unpacks to {expanded:,} bytes, but the limit for a file of {size:,} bytes is {limit:,}"
                )
            with archive.open(name) as member:
                arrays[name.removesuffix(".npy")] = np.lib.format.read_array(member, allow_pickle=False)
                if member.read(1):  # reading to the end compares the checksum
                    raise ValueError(f"{name} is longer than its header says")
    return arrays


def listed(folders: Iterable[Path]) -> str:
    """Return the distinct folders as a list for a message."""
    return ", ".join(map(str, dict.fromkeys(folders)))


def download(urls: Sequence[str], path: Path, md5: str, folders: Sequence[Path]) -> None:
    """Download a file from the first address that answers, and put it in place once its checksum is verified.

    Args:
        urls: Addresses of the file.
        path: Path of the downloaded file.
        md5: Checksum of its content.
        folders: Folders that were searched before, for the error message.

    Raises:
        UserError: If no address answers, the checksum differs, or the file cannot be written.
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
        f"data.source.root: could not download {path.name} ({'; '.join(problems)}), nor find it (searched "
        f"{listed(folders)}); check the network, or put {urls[0]} into a folder and name it with --data.source.root"
    )
