"""Build the objects of a parsed configuration; what is wrong with one is one line that names its key."""

import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from jsonargparse._util import import_object
from lightning.pytorch.cli import LightningArgumentParser

from lit_gen.errors import UserError
from lit_gen.trust import plain_key

WRONG_VALUE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What a constructor raises for a value that it does not check itself."""


def build(
    parser: LightningArgumentParser, config: Namespace, groups: dict[type, str], first: Sequence[Any]
) -> Namespace:
    """Return the objects of a configuration; a factory, such as that of a network, builds later, in the same way.

    Args:
        parser: The parser of the configuration.
        config: What it has parsed.
        groups: Classes whose arguments are keys of a group, with its name.
        first: Instantiators of the parser that are tried before.

    Raises:
        UserError: a constructor does not take its values; the message begins with a key.
    """
    keys = dict(_keys(config, "")) | groups

    def construct(made: type, *arguments: Any, **named: Any) -> Any:
        key = keys.get(made, "model")
        try:
            return made(*arguments, **named)
        except UserError as error:
            if str(error).startswith("-") or _first_word(str(error)) in config:
                raise
            raise UserError(f"{key}: {error}") from None
        except WRONG_VALUE as error:
            reason = " ".join(str(error).split())[:200]
            place = traceback.extract_tb(error.__traceback__)[-1]
            raise UserError(
                f"{key}: {made.__name__} cannot be built with these settings ({type(error).__name__}: {reason}; "
                f"{Path(place.filename).name}, line {place.lineno}); correct them"
            ) from error

    return parser.instantiate(config, instantiators=[*first, (construct, object, True)])


def _first_word(message: str) -> str:
    return message.partition(":")[0].partition(" ")[0].partition(".")[0]


def _keys(value: Any, key: str) -> Iterator[tuple[Any, str]]:
    """Yield the classes in a configuration with their keys, inner ones first, so that an outer one stays."""
    if isinstance(value, (Namespace, dict)):
        for name, part in vars(value).items() if isinstance(value, Namespace) else value.items():
            yield from _keys(part, f"{key}.{name}" if key else str(name))
        if isinstance(value.get("class_path"), str):
            yield import_object(value["class_path"]), plain_key(key)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _keys(part, key)
