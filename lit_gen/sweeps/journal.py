"""The journal of a sweep: one JSON line per event, written once and never changed.

It is ROOT/sweeps/NAME/journal.jsonl, and `sweeps.execution` writes it:

    {"event": "started",  "trial": id, "time": ..., "arguments": [...]}
    {"event": "finished", "trial": id, "time": ..., "result": path from the runs folder, "seconds": ...}
    {"event": "failed",   "trial": id, "time": ..., "error": one line, "log": path from the sweep's folder}
    {"event": "scored",   "trial": id, "time": ..., "images": images seen, "value": its metric during training}
    {"event": "stopped",  "trial": id, "time": ..., "reason": one line, "num_evaluations": ..., "seconds": ...}
    {"event": "proposed", "trial": id, "time": ..., "search": hash, "number": from 0, "coordinates": {name: quantile}}

A trial with several sampling seeds has `"results": [path, ...]` in addition; its `result` is the first of them.
A failed trial with `"again": true` is run again. Only trials with `early_terminate` are scored and stopped,
and only those with `method: bayes` are proposed.
Each line is flushed to the disk before the next trial starts. A power cut can leave an incomplete last line, which the
next writer removes. Several processes may write, also on several machines over shared storage: a lock of the file
system orders their lines, and each line names its writer in `by`.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lit_gen.core.errors import UserError
from lit_gen.core.files import append, read_regular
from lit_gen.core.records import TEXT, list_of, parse_json

JOURNAL_NAME = "journal.jsonl"
SECONDS_OF_PATIENCE = 30.0
"""Seconds to wait for another writer. One that was stopped in the middle of a line must not stop the others."""


def read_journal(path: Path) -> list[dict[str, Any]]:
    """Return all events, oldest first, without an incomplete last line; empty if there is no such file.

    Raises:
        UserError: If a line other than the last is not an event.
    """
    events = []
    lines = read_regular(path, 2**30).split(b"\n") if path.exists() else []
    for number, line in enumerate(lines, start=1):
        try:
            events.append(_event(parse_json(line)))
        except ValueError:
            if line and number < len(lines):
                raise UserError(f"{path}: line {number} is damaged; delete the line and run the sweep again") from None
    return events


def _event(event: Any) -> dict[str, Any]:
    """Return a value that is an event; raise a ValueError if it is not."""
    if not isinstance(event, dict) or not all(TEXT.fits(event.get(key)) for key in ("event", "trial")):
        raise ValueError("not an event")
    if not TEXT.fits(event.get("result", "")) or not list_of(TEXT, 1).fits(event.get("results", ["-"])):
        raise ValueError("not a path")
    return event


def results_of(event: dict[str, Any]) -> list[str]:
    """Return the paths of the results of an event, one per sampling seed; empty if it names none."""
    first = [event["result"]] if "result" in event else []
    results: list[str] = event.get("results", first)
    return results


def outcomes(events: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the last event of each trial that ended: finished, failed or stopped."""
    return {event["trial"]: event for event in events if event["event"] in ("finished", "failed", "stopped")}


class Journal:
    """One of the writers of a journal, which also reads what the others write.

    Args:
        path: The file; created if it does not exist.
        writer: Name of this writer; no other process may have it.
    """

    def __init__(self, path: Path, writer: str) -> None:
        self._path = path
        self.writer = writer
        self._lock = FileLock(path.with_name(f".{path.stem}.lock"), timeout=SECONDS_OF_PATIENCE)
        self._offset = self._num_lines = 0
        append(path, "")
        with self.locked() as alone:
            if alone:
                self._mend()

    @contextmanager
    def locked(self) -> Iterator[bool]:
        """Keep out other writers in the block; yields False if another one did not let go in time."""
        try:
            self._lock.acquire()
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            self._lock.release()

    def _mend(self) -> None:
        """Complete the last line if only its newline is missing, or else remove it."""
        with self._path.open("rb") as file:
            end = position = file.seek(0, os.SEEK_END)
            last = b""
            while position and b"\n" not in last:
                position = max(position - 4096, 0)
                file.seek(position)
                last = file.read(end - position)
        last = last[last.rfind(b"\n") + 1 :]
        if not last:
            return
        try:
            json.loads(last)
        except ValueError:
            os.truncate(self._path, end - len(last))
        else:
            append(self._path, "\n")

    def append(self, event: str, trial: str, **fields: Any) -> None:
        """Write one event and flush it to the disk.

        Raises:
            UserError: If it cannot be written; the journal then stays as before.
        """
        now = datetime.now(UTC).isoformat(timespec="seconds")
        line = json.dumps({"event": event, "trial": trial, "time": now, **fields, "by": self.writer}) + "\n"
        with self.locked() as alone:
            if alone:
                self._mend()
            append(self._path, line)

    def news(self) -> list[dict[str, Any]]:
        """Return the events since the last call, of all writers, oldest first; at first, all events.

        Raises:
            UserError: If a line is not an event.
        """
        with self._path.open("rb") as file:
            file.seek(self._offset)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        events = []
        for line in whole.split(b"\n")[:-1]:
            self._num_lines += 1
            try:
                events.append(_event(parse_json(line)))
            except ValueError:
                raise UserError(
                    f"{self._path}: line {self._num_lines} is damaged; delete the line and run the sweep again"
                ) from None
        return events
