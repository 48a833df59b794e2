"""The journal of a sweep: one JSON line per event, written once and never changed.

    {"event": "started",  "trial": id, "time": ..., "arguments": [...]}
    {"event": "finished", "trial": id, "time": ..., "result": path from the runs folder, "seconds": ...}
    {"event": "failed",   "trial": id, "time": ..., "error": one line, "log": path from the sweep's folder}

A trial with several sampling seeds has `"results": [path, ...]` in addition; its `result` is the first of them.
Each line is flushed to the disk before the next trial starts. A power cut can leave an incomplete last line, which the
next process removes.
"""

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lit_gen.core.errors import UserError
from lit_gen.core.files import append, read_regular
from lit_gen.core.records import TEXT, list_of, parse_json

JOURNAL_NAME = "journal.jsonl"


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
    """Return the last finished or failed event of each trial."""
    return {event["trial"]: event for event in events if event["event"] in ("finished", "failed")}


class Journal:
    """The writer of a journal; the lock of the sweep keeps out a second one.

    Args:
        path: The file; created if it does not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        append(path, "")
        self._mend()

    def _mend(self) -> None:
        """Complete the last line if only its newline is missing, or else remove it."""
        content = self._path.read_bytes()
        last = content[content.rfind(b"\n") + 1 :]
        if not last:
            return
        try:
            json.loads(last)
        except ValueError:
            os.truncate(self._path, len(content) - len(last))
        else:
            append(self._path, "\n")

    def append(self, event: str, trial: str, **fields: Any) -> None:
        """Write one event and flush it to the disk.

        Raises:
            UserError: If it cannot be written; the journal then stays as before.
        """
        now = datetime.now(UTC).isoformat(timespec="seconds")
        line = json.dumps({"event": event, "trial": trial, "time": now, **fields}) + "\n"
        append(self._path, line)
