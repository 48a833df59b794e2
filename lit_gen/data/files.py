"""Finding, checking, downloading and unpacking the official files of a data set."""

import gzip
import hashlib
import os
import urllib.request
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from lit_gen.core.files import replacing
from lit_gen.errors import UserError


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


def decompress(path: Path) -> bytes:
    """The content of a file, unpacked if its name ends in .gz.

    Raises:
        UserError: The archive is cut off or damaged.
    """
    content = path.read_bytes()
    if path.suffix != ".gz":
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, OSError, zlib.error) as error:
        raise UserError(f"{path} is truncated or damaged ({error}): delete it and download it again") from error


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
