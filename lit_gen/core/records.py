"""Read JSON files that may be damaged or untrusted; each file is validated as a whole when it is read."""

import json
import math
import reprlib
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from lit_gen.core.errors import UserError
from lit_gen.core.files import MEBIBYTE, read_text
from lit_gen.core.text import is_printable

Item = TypeVar("Item")
Content = TypeVar("Content")

MAX_DEPTH = 32
MAX_LETTERS = 1000
MAX_DIGITS = 20
LARGEST = 1e100
"""Largest magnitude of a valid number; arithmetic of reports on such numbers cannot overflow."""


class Kind(NamedTuple):
    """Kind of value of a field: a description for messages, and a test."""

    description: str
    fits: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    return _is_number(value) and math.isfinite(value) and abs(value) <= LARGEST


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_LETTERS and is_printable(value)


TEXT = Kind(f"printable text of at most {MAX_LETTERS} letters", _is_text)
COUNT = Kind(
    "a whole number from 0 to 2^63 - 1",
    lambda value: isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63,
)
NUMBER = Kind("a finite number", _is_finite)
AMOUNT = Kind("a finite number of at least 0", lambda value: _is_finite(value) and value >= 0)
POSITIVE = Kind("a finite number above 0", lambda value: _is_finite(value) and value > 0)
SCORE = Kind(
    "a number, not finite or at most 1e100",
    lambda value: _is_number(value) and (not math.isfinite(value) or abs(value) <= LARGEST),
)
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
RECORD = Kind("an object", lambda value: isinstance(value, dict))
LIST = Kind("a list", lambda value: isinstance(value, list))


def up_to(most: int, least: int = 0) -> Kind:
    """Return the kind of the whole numbers from `least` to `most`."""
    return Kind(f"a whole number from {least} to {most:,}", lambda value: COUNT.fits(value) and least <= value <= most)


def optional(kind: Kind) -> Kind:
    """Return the kind that also allows null."""
    return Kind(f"{kind.description}, or null", lambda value: value is None or kind.fits(value))


def either(*kinds: Kind) -> Kind:
    """Return the kind of the values of any of the given kinds."""
    return Kind(" or ".join(kind.description for kind in kinds), lambda value: any(kind.fits(value) for kind in kinds))


def list_of(kind: Kind, least: int = 0, most: int = 10_000) -> Kind:
    """Return the kind of lists with `least` to `most` items of a kind."""
    return Kind(
        f"a list of {least} to {most} items, each {kind.description}",
        lambda value: isinstance(value, list) and least <= len(value) <= most and all(map(kind.fits, value)),
    )


RECORDS = Kind("a list of objects", lambda value: isinstance(value, list) and all(map(RECORD.fits, value)))


def values_of(kind: Kind) -> Kind:
    """Return the kind of objects with texts as keys and values of a kind."""
    return Kind(
        f"an object whose values are each {kind.description}",
        lambda value: isinstance(value, dict) and all(_is_text(key) and kind.fits(value[key]) for key in value),
    )


def parse_json(text: str | bytes) -> Any:
    """Return the content of a JSON text.

    Raises:
        ValueError: If the text is not JSON, is nested too deeply, or holds a whole number with too many digits.
    """
    try:
        value = json.loads(text, parse_int=_integer)
    except RecursionError:
        raise ValueError(f"nested more than {MAX_DEPTH} levels deep") from None
    level, depth = [value], 0
    while level:
        below = (part.values() if isinstance(part, dict) else part for part in level if isinstance(part, dict | list))
        level, depth = [item for items in below for item in items], depth + 1
        if depth > MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} levels deep")
    return value


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a whole number of {len(text)} digits")
    return int(text)


def read_json(path: Path, remedy: str, limit: int = 16 * MEBIBYTE) -> Any:
    """Read a JSON file.

    Args:
        path: A regular file.
        remedy: Instruction at the end of error messages.
        limit: Maximum size of the file in bytes.

    Raises:
        UserError: If the file is not regular, not readable, or not valid JSON; the message names it.
        FileNotFoundError: If the file does not exist.
    """
    try:
        return parse_json(read_text(path, limit))
    except FileNotFoundError:
        raise
    except UserError as error:
        raise UserError(f"{str(error).rpartition(';')[0]}; {remedy}") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); {remedy}") from None


def read_record(path: Path, remedy: str, limit: int = 16 * MEBIBYTE) -> dict[str, Any]:
    """Read a JSON file that holds an object; raises as `read_json` does, or a UserError for any other value."""
    value = read_json(path, remedy, limit)
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected an object, got {reprlib.repr(value)}; {remedy}")
    return value


def check_texts(value: Any, path: Path, remedy: str, key: str = "") -> None:
    """Raise a UserError if a key or text anywhere in the value is too long or not printable.

    Args:
        value: Content of a file.
        path: The file.
        remedy: Instruction at the end of error messages.
        key: Dotted key of the value.
    """
    if isinstance(value, dict):
        for name, item in value.items():
            check_texts(name, path, remedy, key)
            check_texts(item, path, remedy, f"{key}.{name}" if key else name)
    elif isinstance(value, list):
        for item in value:
            check_texts(item, path, remedy, key)
    elif isinstance(value, str) and not _is_text(value):
        where = f"{key}: " if key else ""
        raise UserError(f"{path}: {where}expected {TEXT.description}, got {reprlib.repr(value)}; {remedy}")


def read_each(items: Iterable[Item], read: Callable[[Item], Content], consequence: str) -> list[Content]:
    """Return the contents of the items that can be read, and warn about each damaged item and the consequence.

    Raises:
        UserError: If all items are damaged.
    """
    contents, errors = [], []
    for item in items:
        try:
            contents.append(read(item))
        except UserError as error:
            errors.append(str(error))
    if errors and not contents:
        raise UserError(errors[0] + (f" (and {len(errors) - 1} more; none can be read)" if len(errors) > 1 else ""))
    for damage in errors:
        warnings.warn(f"{damage}; {consequence}", stacklevel=3)
    return contents


def look_up(record: Any, key: str) -> Any:
    """Return the value of a dotted key such as `protocol.num_samples`; None if it is missing."""
    for part in key.split("."):
        record = record.get(part) if isinstance(record, dict) else None
    return record


def check_fields(
    record: Mapping[str, Any], fields: Mapping[str, Kind], required: frozenset[str], path: Path, remedy: str
) -> None:
    """Raise a UserError unless every present field has its kind, and every required field is present.

    Args:
        record: Content of a file.
        fields: Kinds by dotted key; an object comes before its fields.
        required: Keys of the required fields.
        path: The file.
        remedy: Instruction at the end of error messages.
    """
    for key, kind in fields.items():
        *parents, name = key.split(".")
        holder = look_up(record, ".".join(parents)) if parents else record
        present = isinstance(holder, Mapping) and name in holder
        if (present or key in required) and not (present and kind.fits(holder[name])):
            got = f"got {reprlib.repr(holder[name])}" if present else "which is missing"
            raise UserError(f"{path}: {key}: missing or of a wrong type: expected {kind.description}, {got}; {remedy}")
