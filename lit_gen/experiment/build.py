"""Build the objects of a parsed configuration; an error is one line that names the key."""

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
    """Return the objects of a configuration; a factory, such as that of a network, builds its object later.

    Args:
        parser: The parser of the configuration.
        config: The parsed configuration.
        groups: Names of the groups whose keys are the arguments of a class, by class.
        first: Instantiators that the parser tries first.

    Raises:
        UserError: If a constructor does not accept its values; the message begins with a key.
    """
    construct = _Constructor(dict(_keys(config, "")) | groups, frozenset(vars(config)))
    return parser.instantiate(config, instantiators=[*first, (construct, object, True)])


@dataclass(frozen=True)
class _Constructor:
    """Calls a class for the parser, or for a model that calls a factory.

    Attributes:
        keys: Keys by class.
        sections: First parts of all keys; a message that begins with one already names its key.
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
        except Exception as error:  # a constructor may raise anything for a value that it does not check
            reason = " ".join(str(error).split())[:200]
            if isinstance(error, ValueError) and reason:  # about a value, as from the optimizers of torch
                raise UserError(f"{key}: {reason}; choose another value") from error
            place = traceback.extract_tb(error.__traceback__)[-1]
            raise UserError(
                f"{key}: {made.__name__} cannot be built with these settings ({type(error).__name__}: {reason}; "
                f"{Path(place.filename).name}, line {place.lineno}); correct them"
            ) from error


def _first_word(message: str) -> str:
    return message.partition(":")[0].partition(" ")[0].partition(".")[0]


def _keys(value: Any, key: str) -> Iterator[tuple[Any, str]]:
    """Yield the classes in a configuration with their keys, inner ones first, so that the outermost key is kept."""
    if isinstance(value, (Namespace, dict)):
        for name, part in vars(value).items() if isinstance(value, Namespace) else value.items():
            yield from _keys(part, f"{key}.{name}" if key else str(name))
        if isinstance(value.get("class_path"), str):
            yield import_object(value["class_path"]), plain_key(key)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _keys(part, key)
