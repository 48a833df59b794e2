"""Hashes of the configuration files that a trial names, which are part of its identity."""

import hashlib
import os
from collections.abc import Iterator
from typing import Any

from lit_gen.core.errors import UserError
from lit_gen.core.files import read_regular
from lit_gen.core.yaml import parse_yaml

ENDINGS = (".yaml", ".yml")
MAX_FILES = 1000
"""Largest number of configuration files that one trial names, directly or through other files."""


class NamedFiles:
    """The configuration files that the trials of a sweep name; each is read once.

    An edited file makes another trial. A name in a file is relative to the file or, as for the teacher of a reflow, to
    the working directory.
    """

    def __init__(self) -> None:
        self._files: dict[str, tuple[str, list[str]] | None] = {}
        self._hashes: dict[tuple[str, ...], dict[str, str]] = {}

    def hashes(self, command: list[str], parameters: dict[str, Any]) -> dict[str, str]:
        """Return the hashes of the files that a trial names, directly or through other files.

        Raises:
            UserError: If a trial names more than `MAX_FILES`, or a file is not regular.
        """
        words = [word.rpartition("=")[2] for word in command] + list(_texts(parameters))
        named = tuple(word for word in words if word.endswith(ENDINGS))
        if named not in self._hashes:
            self._hashes[named] = self._collected(named)
        return self._hashes[named]

    def _collected(self, named: tuple[str, ...]) -> dict[str, str]:
        hashes: dict[str, str] = {}
        waiting = list(named)
        while waiting:
            name = waiting.pop()
            if name in hashes or (found := self._read(name)) is None:
                continue
            if len(hashes) == MAX_FILES:
                raise UserError(
                    f"{next(iter(hashes))}: names more than {MAX_FILES} configuration files, by way of others; name "
                    "fewer"
                )
            hashes[name], others = found
            waiting += others
        return hashes

    def _read(self, name: str) -> tuple[str, list[str]] | None:
        """Return the hash of a file and the files that it may name; None for a missing file."""
        if name not in self._files:
            self._files[name] = None
            if os.path.isfile(name):
                content = read_regular(name)
                others = [
                    os.path.normpath(path)
                    for other in _files_named_in(content)
                    for path in (os.path.join(os.path.dirname(name), other), other)
                ]
                self._files[name] = hashlib.sha256(content).hexdigest(), others
        return self._files[name]


def _files_named_in(content: bytes) -> list[str]:
    """Return the configuration files that a file names; none if it is not YAML, which the trial will report."""
    try:
        return [text for text in _texts(parse_yaml(content.decode(), "")) if text.endswith(ENDINGS)]
    except (UserError, ValueError):
        return []


def _texts(value: Any) -> Iterator[str]:
    """Yield all texts in a value, at any depth."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)
    elif isinstance(value, str):
        yield value
