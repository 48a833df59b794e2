"""Read and write files safely: writes are whole or absent, reads take regular files of bounded size only."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lit_gen.errors import UserError

MEBIBYTE = 2**20


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends, the file written there replaces `path`.

    The temporary name holds the process id and ends as `path` does, since some writers look at the ending. It
    is flushed to the disk before the rename, so a reader, a kill or a power cut sees the old file or the new one. If
    the block raises, the temporary file is removed and `path` is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: str | Path, content: str | bytes) -> None:
    """Write a text (UTF-8) or binary file whole or not at all."""
    data = content.encode() if isinstance(content, str) else content
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def read_regular(path: str | Path, limit: int = 64 * MEBIBYTE) -> bytes:
    """Return the content of a regular file of at most `limit` bytes.

    Raises:
        UserError: the path is a FIFO, a device, a folder or another special file, or the file is larger than `limit`.
        FileNotFoundError: there is no such file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO without a writer would block
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise UserError(f"{path}: not a regular file; give an ordinary file")
        content = file.read(limit + 1)
    if len(content) > limit:
        raise UserError(f"{path}: larger than {limit:,} bytes, the limit for such a file; give a smaller one")
    return content


def read_text(path: str | Path, limit: int = 64 * MEBIBYTE) -> str:
    """Return the text of a regular UTF-8 file; raise as `read_regular`, or a UserError if it is not UTF-8."""
    try:
        return read_regular(path, limit).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); restore the file") from None
