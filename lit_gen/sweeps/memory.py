"""The memory of worker processes and their children, as Linux shows it in /proc.

    memory of a worker = sum over its processes of PSS,    PSS = private pages + shared pages / number of sharers

The resident size (RSS) would count the pages that a data loader shares with its parent once per process, and a limit of
the address space would count memory that CUDA reserves and nobody uses.
"""

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from lit_gen.core.errors import UserError

SECONDS_BETWEEN_LOOKS = 1.0
"""Seconds between two looks at the memory of the workers."""

SIZES = {"TB": 10**12, "GB": 10**9, "MB": 10**6, "kB": 10**3, "TiB": 2**40, "GiB": 2**30, "MiB": 2**20, "KiB": 2**10}
"""Bytes of each unit of a memory limit."""

_PROC = Path("/proc")
_PSS = re.compile(rb"^Pss:\s+(\d+) kB", re.MULTILINE)
_RSS = re.compile(rb"^VmRSS:\s+(\d+) kB", re.MULTILINE)


def check_memory_limit(limit: int) -> None:
    """Raise a UserError if a memory limit is not positive, or this system does not show the memory of processes."""
    if limit < 1:
        raise UserError(f"--memory-limit: {limit} bytes is not a positive size; give one such as 4GB")
    if not (_PROC / "self" / "stat").exists():
        raise UserError("--memory-limit: needs the /proc of Linux; remove the option on this system")


def in_units(size: int) -> str:
    """Return a number of bytes exactly, in the largest unit that divides it, such as `4GB`; `_bytes` reads it."""
    return next((f"{size // unit}{name}" for name, unit in SIZES.items() if size % unit == 0), f"{size}B")


class MemoryWatch:
    """The memory of process groups, looked at every `SECONDS_BETWEEN_LOOKS`."""

    def __init__(self) -> None:
        self._looked = -SECONDS_BETWEEN_LOOKS
        self._processes: dict[int, tuple[int, int]] = {}
        self._sizes: dict[int, int] = {}

    def of(self, leader: int) -> int:
        """Return the bytes of the processes of a group and of all that descend from its leader."""
        now = time.monotonic()
        if now - self._looked >= SECONDS_BETWEEN_LOOKS:
            self._looked, self._processes, self._sizes = now, dict(_processes()), {}
        if leader not in self._sizes:
            self._sizes[leader] = sum(map(_size, self._family(leader)))
        return self._sizes[leader]

    def _family(self, leader: int) -> set[int]:
        family = {pid for pid, (_, group) in self._processes.items() if group == leader} | {leader}
        while children := {pid for pid, (parent, _) in self._processes.items() if parent in family} - family:
            family |= children
        return family


def _processes() -> Iterator[tuple[int, tuple[int, int]]]:
    """Yield (process id, (id of its parent, id of its group)) of all processes."""
    for name in os.listdir(_PROC):
        if name.isdecimal():
            try:
                fields = (_PROC / name / "stat").read_bytes().rpartition(b")")[2].split()
            except OSError:  # it has ended
                continue
            yield int(name), (int(fields[1]), int(fields[2]))


def _size(pid: int) -> int:
    """Return the bytes of a process; 0 if it has ended."""
    for file, pattern in (("smaps_rollup", _PSS), ("status", _RSS)):  # a container may forbid the first
        try:
            found = pattern.search((_PROC / str(pid) / file).read_bytes())
        except OSError:
            continue
        if found is not None:
            return 1024 * int(found[1])
    return 0
