"""Read and write files safely: writes are atomic, and reads accept only regular files of bounded size."""

import errno
import io
import os
import re
import shutil
import stat
import zipfile
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
"""Remedies for file-system errors, by error number."""


@contextmanager
def replacing(path: str | Path, flush: bool = True) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; when the block ends, the file written there replaces `path`.

    The temporary name holds the process id and has the suffix of `path`, since some writers choose a format by it. The
    file is flushed to disk before the rename, so that after a kill or a power cut `path` is either the old file or the
    new one. If the block raises, the temporary file and any folders created for it are removed and `path` is unchanged.
    If `path` is a symbolic link, its target is replaced.

    Args:
        path: The file; missing folders are created.
        flush: Wait until the file is on disk. Without it, a power cut can leave an empty file; a kill cannot.

    Raises:
        UserError: If the file cannot be written (full disk, missing permission), or is a device or a folder.
    """
    with staged(path) as temporary:
        yield temporary
        publish(temporary, path, flush)


@contextmanager
def staged(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path as `replacing` does, but leave the replacement of `path` to a later call of `publish`."""
    with writing(path), _folders_of(_target(path)) as target:
        temporary = temporary_path(target)
        try:
            yield temporary
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def temporary_path(path: Path) -> Path:
    """Return a path for a file that will replace `path`; no other thread, process or machine uses it."""
    return path.with_name(f".{path.stem}.{os.getpid()}.{uuid4().hex[:8]}.tmp{path.suffix}")


def publish(temporary: Path, path: str | Path, flush: bool = True) -> None:
    """Replace `path` by a completely written file, once it is on disk."""
    with writing(path):
        if flush:
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        os.replace(temporary, _target(path))


def remove_temporaries(folder: Path) -> None:
    """Remove temporary files that killed processes left directly in a folder.

    Use it only for folders that one process at a time writes to, such as those of a run in training: if several
    machines share a folder, a process that does not exist here may be running on another machine.
    """
    for path in folder.glob(".*.tmp*"):
        if (found := re.search(r"\.(\d+)\.[0-9a-f]{8}\.tmp(\.[^.]*)?$", path.name)) and not _lives(int(found[1])):
            path.unlink(missing_ok=True)


def write_atomically(path: str | Path, content: str | bytes) -> None:
    """Write a text (UTF-8) or binary file atomically; raises as `replacing` does."""
    data = content.encode() if isinstance(content, str) else content
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_arrays(path: str | Path, **arrays: Any) -> None:
    """Write arrays to an .npz file atomically; raises as `replacing` does."""
    import numpy as np  # imported late: every command imports this module at start-up

    with replacing(path) as temporary:
        np.savez_compressed(temporary, **arrays)


def read_arrays(path: str | Path, most_bytes: int = 256 * MEBIBYTE) -> dict[str, Any]:
    """Return the arrays of an .npz file by name; no object in it is unpickled.

    Raises:
        UserError: If the file is larger than 64 MiB or not a regular file.
        FileNotFoundError: If the file does not exist.
        Exception: If it is damaged (zipfile, zlib and numpy raise many), or its arrays have more than `most_bytes`.
    """
    import numpy as np  # imported late: every command imports this module at start-up

    with zipfile.ZipFile(io.BytesIO(read_regular(path))) as archive:
        if (size := sum(each.file_size for each in archive.infolist())) > most_bytes:
            raise ValueError(f"{size:,} bytes; the limit is {most_bytes:,}")
        contents = {name.removesuffix(".npy"): archive.read(name) for name in archive.namelist()}
    return {
        name: np.lib.format.read_array(io.BytesIO(content), allow_pickle=False) for name, content in contents.items()
    }


def append(path: str | Path, content: str | bytes) -> None:
    """Append content to a file completely or not at all, and wait until it is on disk.

    Raises:
        UserError: If the file cannot be written; its previous content is then unchanged.
    """
    data = content.encode() if isinstance(content, str) else content
    with writing(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            length = os.fstat(descriptor).st_size
            try:
                while data:  # a nearly full disk accepts a first piece and fails at the next
                    data = data[os.write(descriptor, data) :]
                os.fsync(descriptor)
            except BaseException:
                os.ftruncate(descriptor, length)
                raise
        finally:
            os.close(descriptor)


@contextmanager
def writing_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`, which becomes `path` when the block ends; removed if the block raises.

    Raises:
        UserError: If `path` exists and is not an empty folder, or cannot be written.
    """
    path = Path(path)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise UserError(f"{path}: exists and is not an empty folder; choose another path")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.{uuid4().hex[:8]}.tmp")
        temporary.mkdir()
        try:
            yield temporary
            os.rename(temporary, path)  # replaces an empty folder
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turn file-system errors in the block, which writes `path`, into a UserError with the path and a remedy.

    Raises:
        UserError: If the disk is full, the folder is not writable, the name is too long, and so on.
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
    """Return the reason of an error and, if known, the remedy, without the path."""
    reason = error.strerror or str(error)
    return f"{reason}; {REMEDIES[error.errno]}" if error.errno in REMEDIES else reason


def _of_storage(error: BaseException | None) -> OSError | None:
    """Return the file-system error that an exception is or was caused by: torch.save raises exceptions of its own."""
    while error is not None and not (isinstance(error, OSError) and error.errno in REMEDIES):
        error = error.__context__
    return error


def _target(path: str | Path) -> Path:
    """Return the file to replace: the target if the path is a symbolic link."""
    path = Path(path)
    if path.is_symlink():
        path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: not a regular file; choose another path")
    return path


@contextmanager
def _folders_of(path: Path) -> Iterator[Path]:
    """Create the folders of a file; if the block raises, remove those that were created."""
    made = [folder for folder in path.parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield path
    except BaseException:
        for folder in made:
            with suppress(OSError):  # another process has put a file there
                folder.rmdir()
        raise


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # the process belongs to another user
        return True
    return True


@contextmanager
def open_regular(path: str | Path) -> Iterator[BufferedReader]:
    """Open a regular file for reading bytes.

    Raises:
        UserError: If the path is a FIFO, a device, a folder or another special file.
        OSError: If the file cannot be opened.
        ValueError: If the name is not a valid file name.
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
        UserError: If the path is a FIFO, a device, a folder or another special file, cannot be read, or the file is
            larger than `limit`.
        FileNotFoundError: If the file does not exist.
    """
    try:
        with open_regular(path) as file:
            content = file.read(limit + 1)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:  # ValueError: not a valid file name
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}); check it") from None
    if len(content) > limit:
        raise UserError(f"{path}: larger than {limit:,} bytes, the limit for such a file; give a smaller one")
    return content


def read_text(path: str | Path, limit: int = 64 * MEBIBYTE) -> str:
    """Return the text of a regular UTF-8 file; raises as `read_regular` does, or a UserError if it is not UTF-8."""
    try:
        return read_regular(path, limit).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); restore the file") from None
