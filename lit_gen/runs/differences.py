"""Differences between two runs, or between a run and this machine: settings, packages, code, data and device."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

ABSENT = "-"
"""Value of a key that one side does not have."""
ENVIRONMENT = ("packages", "python", "platform", "git_commit", "git_dirty", "device")
"""Entries of run.json about software, code and machine."""


class Difference(NamedTuple):
    """A key with two values.

    Attributes:
        key: Dotted key, as on the command line.
        first: Value on the first side.
        second: Value on the second side.
    """

    key: str
    first: Any
    second: Any


def flatten(value: Any, key: str = "") -> dict[str, Any]:
    """Return the values of a nested mapping by dotted key, as on the command line; lists stay whole."""
    if not isinstance(value, Mapping) or not value:
        return {key: value}
    found: dict[str, Any] = {}
    for name, part in value.items():
        own = key if name in ("init_args", "dict_kwargs", "class_path") else f"{key}.{name}" if key else str(name)
        found |= flatten(part, own)
    return found


def differences(first: Mapping[str, Any], second: Mapping[str, Any], *sections: str) -> list[Difference]:
    """Return the dotted keys in which two mappings differ.

    Args:
        first: A mapping, such as a configuration.
        second: The other.
        *sections: Outermost keys that are compared; all without any.
    """
    sides = [
        flatten({key: value for key, value in side.items() if not sections or key in sections})
        for side in (first, second)
    ]
    keys = dict.fromkeys([*sides[0], *sides[1]])
    pairs = (Difference(key, *(side.get(key, ABSENT) for side in sides)) for key in keys)
    return [pair for pair in pairs if pair.first != pair.second]


def text_of(value: Any) -> str:
    """Return a value as a cell of a table."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def to_lines(found: list[Difference], width: int = 60) -> list[str]:
    """Return differences as aligned lines of key, first and second value; longer values are cut."""

    def cut(text: str) -> str:
        return text if len(text) <= width else f"{text[: width - 3]}..."

    rows = [(each.key, cut(text_of(each.first)), cut(text_of(each.second))) for each in found]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(2)]
    return [f"  {key:{widths[0]}}  {first:{widths[1]}}  {second}" for key, first, second in rows]
