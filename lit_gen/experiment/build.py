"""Build the objects of a parsed configuration; what is wrong with one is one line that names its key."""

import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from jsonargparse._util import import_object
from lightning.pytorch.cli import LightningArgumentParser

from lit_gen.core.errors import UserError
from lit_gen.experiment.trust import plain_key


def build(
    parser: LightningArgumentParser, config: Namespace, groups: dict[type, str], first: Sequence[Any] = ()
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
    construct = _Constructor(dict(_keys(config, "")) | groups, frozenset(vars(config)))
    return parser.instantiate(config, instantiators=[*first, (construct, object, True)])


@dataclass(frozen=True)
class _Constructor:
    """Calls a class, for the parser or, as a part of a factory, for a model.

    Attributes:
        keys: The classes of a configuration with their keys.
        sections: First parts of all keys; a message that begins with one names its key already.
    """

    keys: dict[Any, str]
    sections: frozenset[str]

    def __call__(self, made: type, *arguments: Any, **named: Any) -> Any:
        key = self.keys.get(made, "model")
        try:
            return made(*arguments, **named)
        except UserError as error:
            if str(error).startswith("-") or _first_word(str(error)) in self.sections:
                raise
            raise type(error)(f"{key}: {error}") from None
        except Exception as error:  # whatever a constructor raises for a value that it does not check itself
            reason = " ".join(str(error).split())[:200]
            if isinstance(error, ValueError) and reason:  # said of a value, as by the optimizers of torch
                raise UserError(f"{key}: {reason}; choose another value") from error
            place = traceback.extract_tb(error.__traceback__)[-1]
            raise UserError(
                f"{key}: {made.__name__} cannot be built with these settings ({type(error).__name__}: {reason}; "
                f"{Path(place.filename).name}, line {place.lineno}); correct them"
            ) from error


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
