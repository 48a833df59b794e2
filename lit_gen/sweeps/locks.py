"""Locks of single trials: several processes, also on several machines over shared storage, share a sweep.

A lock is a file `TRIAL.GENERATION` that names its holder and holds a counter, its sign of life, which the holder
changes every few seconds:

    acquire     create `TRIAL.1`; only one process can
    take over   a holder is lost if its counter stood still for `lost_after` seconds; create `TRIAL.(g + 1)`, which
                again only one process can, and remove `TRIAL.g`
    release     remove the file
    clear       at the end of a sweep: take over and release the locks of lost holders

No clocks of two machines are compared: a process counts the seconds in which it has itself seen the counter stand
still. On the same machine, a holder whose process has ended is lost at once. A holder that was stopped and wakes up too
late finds that its file is gone, and gives the trial up.

The holder of a new lock must look at the journal before it runs the trial: the last holder may just have finished it.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from lit_gen.core.errors import UserError
from lit_gen.core.files import writing

SECONDS_BETWEEN_SIGNS = 3.0
SECONDS_UNTIL_LOST = 60.0
"""Seconds without a sign of life after which another process takes a trial over."""


@dataclass(frozen=True)
class Process:
    """A process as other processes see it.

    Args:
        host: Name of the machine.
        system: Boot of the machine and namespace of process ids; empty if unknown.
        pid: Process id.
        started: Time of its start in ticks since the boot, which tells it from a later process of the same id; None if
            unknown.
        token: A name that no other process has.
    """

    host: str
    system: str
    pid: int
    started: int | None
    token: str

    @staticmethod
    def this() -> "Process":
        """Return this process, with a new token."""
        pid = os.getpid()
        return Process(socket.gethostname(), _system(), pid, start_of(pid), uuid4().hex)

    def is_dead(self, host: str, system: str) -> bool:
        """Return whether the process is known to have ended, as seen from a machine."""
        if not system or (self.host, self.system) != (host, system):
            return False
        started = start_of(self.pid)
        if started is None:
            return not _is_hidden(self.pid)
        return self.started is not None and started != self.started


def _system() -> str:
    """Return what two processes share if each can see the other's process id; empty if unknown."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def start_of(pid: int) -> int | None:
    """Return the time of a process's start in ticks since the boot; None if it has ended or there is no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _is_hidden(pid: int) -> bool:
    """Return whether a process of another user exists, which /proc hides if it is mounted with hidepid."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return False


class _Held:
    """A lock of this process."""

    def __init__(self, path: Path, process: Process) -> None:
        self.path = path
        self._process = process
        self._beat = 0
        self.lost = False
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            self._write()
        except BaseException:  # a full disk
            os.close(self.descriptor)
            path.unlink(missing_ok=True)
            raise

    def _write(self) -> None:
        # the counter is padded: a write in place then never leaves a rest of an older one
        content = json.dumps(self._process.__dict__ | {"sign": f"{self._beat:012d}"}).encode()
        os.pwrite(self.descriptor, content, 0)
        os.fsync(self.descriptor)

    def give_sign(self) -> None:
        """Change the counter, unless another process has taken the lock over."""
        if not self.lost:
            self._beat += 1
            with suppress(OSError):  # storage that is away for a while
                self._write()
            self.check()

    def check(self) -> None:
        """Find out whether another process has taken the lock over."""
        try:
            found = _holder(self.path.read_bytes())
            self.lost = self.lost or (found is not None and found.token != self._process.token)
        except FileNotFoundError:
            self.lost = True
        except OSError:  # a stale handle of storage that came back
            with suppress(OSError):
                self.lost = not self.path.exists()

    def remove(self) -> None:
        """Remove the file, unless another process has taken the lock over."""
        self.check()
        if not self.lost:
            self.path.unlink(missing_ok=True)
        os.close(self.descriptor)


def _holder(content: bytes) -> Process | None:
    """Return the holder in the content of a lock; None if it is not whole."""
    try:
        fields = json.loads(content)
        fields.pop("sign")
        return Process(**fields)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


@dataclass
class _Watched:
    content: bytes
    looked: float
    still: float = 0.0


class TrialLocks:
    """The locks of the trials that this process runs, and those of others as it sees them; a context manager.

    Args:
        folder: Folder of the locks; created if it does not exist.
        lost_after: Seconds without a sign of life after which a holder is lost.
        between_signs: Seconds between two signs of life of this process.
        process: This process.
        clock: Clock of this process in seconds.
    """

    def __init__(
        self,
        folder: Path,
        lost_after: float = SECONDS_UNTIL_LOST,
        between_signs: float = SECONDS_BETWEEN_SIGNS,
        process: Process | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._lost_after = lost_after
        self._between_signs = between_signs
        self.process = process or Process.this()
        self._clock = clock
        self._held: dict[str, _Held] = {}
        self._watched: dict[Path, _Watched] = {}
        self._mutex = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._give_signs, daemon=True)

    def __enter__(self) -> "TrialLocks":
        with writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join()
        for trial in list(self._held):
            self.release(trial)

    def _give_signs(self) -> None:
        while not self._closed.wait(self._between_signs):
            self.give_signs()

    def give_signs(self) -> None:
        """Change the counters of the locks of this process; a thread does it every few seconds."""
        with self._mutex:
            for held in self._held.values():
                held.give_sign()

    def acquire(self, trial: str) -> bool:
        """Take the lock of a trial if it is free or its holder is lost, and return whether this process has it now.

        Raises:
            UserError: If the file cannot be created.
        """
        below = self._files_of(trial)
        if trial in self._held or not all(self._is_lost(path) for path in below):
            return False
        generation = max((int(path.suffix[1:]) for path in below), default=0) + 1
        with writing(self._folder):
            try:
                held = _Held(self._folder / f"{trial}.{generation}", self.process)
            except FileExistsError:  # another process was faster
                return False
        # a process that saw an older state of the folder may have created another file; then nobody has the lock
        if set(self._files_of(trial)) - set(below) != {held.path} or not all(map(self._is_lost, below)):
            held.remove()
            return False
        for path in below:
            path.unlink(missing_ok=True)
            self._watched.pop(path, None)
        with self._mutex:
            self._held[trial] = held
        return True

    def release(self, trial: str) -> None:
        """Give up the lock of a trial."""
        with self._mutex:
            held = self._held.pop(trial, None)
        if held is not None:
            with suppress(OSError):
                held.remove()

    def clear(self) -> None:
        """Remove the locks of lost holders, such as a process that was killed right after its trial had finished.

        Each is taken over and released: to remove the file of another process would be a race with a third one that
        takes the same trial over.
        """
        for trial in {path.stem for path in self._folder.iterdir() if path.suffix[1:].isdecimal()}:
            with suppress(UserError):  # a full disk
                if self.acquire(trial):
                    self.release(trial)

    def lost(self) -> list[str]:
        """Return the trials whose locks other processes have taken over, because this one gave no signs of life."""
        with self._mutex:
            return [trial for trial, held in self._held.items() if held.lost]

    def of_others(self) -> dict[str, str]:
        """Return the trials that other processes hold, with the name of the machine; without those of lost holders.

        Call it every few seconds: it also watches the signs of life.
        """
        found: dict[str, str] = {}
        paths = set()
        for path in self._folder.iterdir():
            if not path.suffix[1:].isdecimal() or path.stem in self._held:
                continue
            paths.add(path)
            if not self._is_lost(path) and path in self._watched:
                holder = _holder(self._watched[path].content)
                found[path.stem] = "another process" if holder is None else holder.host
        for path in self._watched.keys() - paths:
            del self._watched[path]
        return found

    def _files_of(self, trial: str) -> list[Path]:
        return [path for path in self._folder.glob(f"{trial}.*") if path.suffix[1:].isdecimal()]

    def _is_lost(self, path: Path) -> bool:
        """Look at a lock of another process, and return whether its holder is lost or has released it."""
        try:
            content = path.read_bytes()
        except OSError:  # released, or the handle is stale
            self._watched.pop(path, None)
            return not path.exists()
        now = self._clock()
        seen = self._watched.get(path)
        if seen is None or seen.content != content:
            seen = self._watched[path] = _Watched(content, now)
        # only time in which this process looked counts: it may have been stopped itself, together with the holder
        seen.still += min(now - seen.looked, 2 * self._between_signs)
        seen.looked = now
        holder = _holder(content)
        if holder is not None and holder.is_dead(self.process.host, self.process.system):
            return True
        return seen.still >= self._lost_after
