"""Read and write files safely: writes are whole or absent, reads take regular files of bounded size only."""

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any
from uuid import uuid4

from lit_gen.core.errors import UserError

MEBIBYTE = 2**20
_ROOM = "free some space and run the same command again"
_PLACE = "choose a place that you may write to"
REMEDIES = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: "raise the limit on the size of a file (ulimit -f) and run the same command again",
    errno.EIO: "check the disk",
    errno.EACCES: _PLACE,
    errno.EPERM: _PLACE,
    errno.EROFS: _PLACE,
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EEXIST: "choose another path",
    errno.EISDIR: "choose another path",
    errno.ENOTDIR: "choose another path",
    errno.ENOENT: "choose another path",
    errno.ELOOP: "choose another path",
}
"""The remedy for each error of the file system, by its number."""


@contextmanager
def replacing(path: str | Path, flush: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends, the file written there replaces `path`.

    The temporary name holds the process id and ends as `path` does, since some writers look at the ending. It
    is flushed to the disk before the rename, so a reader, a kill or a power cut sees the old file or the new one. If
    the block raises, the temporary file and the folders made for it are removed and `path` is untouched. A link is
    followed: the file that it names is replaced, not the link.

    Args:
        path: The file; its folders are made.
        flush: Wait until the disk has the file; without it a power cut, but no kill, can leave it empty.

    Raises:
        UserError: the file cannot be written (a full disk, a folder without permission), or is a device or a folder.
    """
    with staged(path) as temporary:
        yield temporary
        publish(temporary, path, flush)


@contextmanager
def staged(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path as `replacing` does, and leave it to `publish` to replace `path` later."""
    with writing(path), _folders_of(_target(path)) as target:
        temporary = temporary_path(target)
        try:
            yield temporary
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def temporary_path(path: Path) -> Path:
    """Return where this process writes a file that shall replace `path`; no thread or other machine does so there."""
    return path.with_name(f".{path.stem}.{os.getpid()}.{uuid4().hex[:8]}.tmp{path.suffix}")


def publish(temporary: Path, path: str | Path, flush: bool = True) -> None:
    """Let a file that is completely written replace `path`, after the disk has it."""
    with writing(path):
        if flush:
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        os.replace(temporary, _target(path))


def remove_temporaries(folder: Path) -> None:
    """Remove what killed processes of this machine left half written in a folder, but not below it.

    For folders in which one process at a time writes, such as those of a run that is trained: in a folder that several
    machines share, a process that is unknown here may live there.
    """
    for path in folder.glob(".*.tmp*"):
        if (found := re.search(r"\.(\d+)\.[0-9a-f]{8}\.tmp(\.[^.]*)?$", path.name)) and not _lives(int(found[1])):
            path.unlink(missing_ok=True)


def write_atomically(path: str | Path, content: str | bytes) -> None:
    """Write a text (UTF-8) or binary file whole or not at all; raise as `replacing`."""
    data = content.encode() if isinstance(content, str) else content
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_arrays(path: str | Path, **arrays: Any) -> None:
    """Write an .npz file of arrays whole or not at all; raise as `replacing`."""
    import numpy as np  # the command asks this module for other things before it does anything

    with replacing(path) as temporary:
        np.savez_compressed(temporary, **arrays)


def append(path: str | Path, content: str | bytes) -> None:
    """Append to a file, whole or not at all, and wait until the disk has it.

    Raises:
        UserError: it cannot be written; the file then ends as before.
    """
    data = content.encode() if isinstance(content, str) else content
    with writing(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            length = os.fstat(descriptor).st_size
            try:
                while data:  # a nearly full disk takes a part; the error comes with the rest
                    data = data[os.write(descriptor, data) :]
                os.fsync(descriptor)
            except BaseException:
                os.ftruncate(descriptor, length)
                raise
        finally:
            os.close(descriptor)


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turn errors of the file system in the block, which writes `path`, into one line that names it and a remedy.

    Raises:
        UserError: the disk is full, the folder takes no files, the name is too long, and so on.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if (reason := _of_storage(error)) is None:
            raise
        raise UserError(f"{path}: cannot be written: {explain(reason)}") from None


def explain(error: OSError) -> str:
    """Return what went wrong and, where it is known, what to do, without the path."""
    reason = error.strerror or str(error)
    return f"{reason}; {REMEDIES[error.errno]}" if error.errno in REMEDIES else reason


def _of_storage(error: BaseException | None) -> OSError | None:
    """Return the error of the file system that an exception is, or was raised for: torch.save raises its own."""
    while error is not None and not (isinstance(error, OSError) and error.errno in REMEDIES):
        error = error.__context__
    return error


def _target(path: str | Path) -> Path:
    """Return the file to replace: of a link, what it names."""
    path = Path(path)
    if path.is_symlink():
        path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: not a regular file; choose another path")
    return path


@contextmanager
def _folders_of(path: Path) -> Iterator[Path]:
    """Make the folders of a file; if the block raises, remove those that were made."""
    made = [folder for folder in path.parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield path
    except BaseException:
        for folder in made:
            with suppress(OSError):  # another process has put something there
                folder.rmdir()
        raise


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


@contextmanager
def open_regular(path: str | Path) -> Iterator[BufferedReader]:
    """Open a regular file to read bytes.

    Raises:
        UserError: the path is a FIFO, a device, a folder or another special file.
        OSError: it cannot be opened.
        ValueError: no file can have this name.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO without a writer would block
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(f"{path}: not a regular file; give an ordinary file")
    with os.fdopen(descriptor, "rb") as file:
        yield file


def read_regular(path: str | Path, limit: int = 64 * MEBIBYTE) -> bytes:
    """Return the content of a regular file of at most `limit` bytes.

    Raises:
        UserError: the path is a FIFO, a device, a folder or another special file, cannot be read, or the file is larger
            than `limit`.
        FileNotFoundError: there is no such file.
    """
    try:
        with open_regular(path) as file:
            content = file.read(limit + 1)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:  # ValueError: of a name that no file can have
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}); check it") from None
    if len(content) > limit:
        raise UserError(f"{path}: larger than {limit:,} bytes, the limit for such a file; give a smaller one")
    return content


def read_text(path: str | Path, limit: int = 64 * MEBIBYTE) -> str:
    """Return the text of a regular UTF-8 file; raise as `read_regular`, or a UserError if it is not UTF-8."""
    try:
        return read_regular(path, limit).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); restore the file") from None
