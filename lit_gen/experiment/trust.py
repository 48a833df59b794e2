"""Check what a configuration may call: classes of the kind that its key takes, and functions annotated to return one.

A configuration, or the run directory that it stands in, may come from someone else. jsonargparse imports whatever it
names, calls any function for a key such as `model.network`, builds any class for a value without a type, and lets
OmegaConf read the environment. Four rules hold instead, for every configuration that is read:

- Only packages in `core.imports.ALLOWED`, lit_gen and the user's own modules are imported. A function must come from
  lit_gen or the user, since torch has functions that return a module and execute their arguments.
- Before anything is built, `check_parsed` walks the parsed configuration and holds each class and function against
  the type of its key. Where a key has no type of class, nothing is built.
- `${...}` names another key, and nothing else (`keys_alone`).
- YAML is read within the limits of `core.yaml`, at any depth of a value.

The user's own modules, in the current folder and in PYTHONPATH, are imported: these are theirs to trust.
"""

import inspect
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import Namespace, _loaders_dumpers, _typehints, set_parsing_settings
from jsonargparse._parameter_resolvers import get_signature_parameters
from jsonargparse._util import import_object
from lightning.pytorch.cli import LightningArgumentParser
from omegaconf.basecontainer import BaseContainer
from omegaconf.errors import OmegaConfBaseException

from lit_gen.core.errors import UserError
from lit_gen.core.imports import ALLOWED, REFUSED, installed, is_of_a_package, may_be_named
from lit_gen.core.yaml import check_yaml
from lit_gen.experiment.names import current

set_parsing_settings(
    instantiate_subclass_spec_in_any=False,
    import_path_denylist=[*sorted(installed()), "lit_gen.__main__"],
    import_path_allowlist=list(ALLOWED),
    omegaconf_absolute_to_relative_paths=True,
)


class _BoundedLoader(_loaders_dumpers.get_yaml_default_loader()):  # type: ignore[misc]
    """The YAML loader of jsonargparse, with limits on the text; it replaces older class names with current ones."""

    def __init__(self, stream: str) -> None:
        try:
            check_yaml(stream)
        except UserError as error:
            raise yaml.YAMLError(str(error)) from None
        super().__init__(stream)

    def construct_scalar(self, node: yaml.Node) -> Any:
        value = super().construct_scalar(node)
        return current(value) if isinstance(value, str) else value


_loaders_dumpers.yaml_default_loader = _BoundedLoader  # type: ignore[assignment]

_all_subclass_paths = _typehints.get_all_subclass_paths


def _subclass_paths(*args: Any, **kwargs: Any) -> list[str]:
    """Return the classes that a bare name can refer to, without packages that a configuration may not name."""
    return [path for path in _all_subclass_paths(*args, **kwargs) if may_be_named(path)]


_typehints.get_all_subclass_paths = _subclass_paths


def check_parsed(parser: LightningArgumentParser, config: Namespace, linked: Collection[str]) -> None:
    """Raise a UserError unless every class and function in a parsed configuration is of the kind that its key takes.

    Nothing is called to find out what it returns. A null, which the parser accepts for any key, is refused if the type
    of the key does not include None.

    Args:
        parser: The parser, which knows the types of its keys.
        config: The parsed configuration.
        linked: Keys that are still null because their values come from other objects.
    """
    for action in parser._actions:
        hint = getattr(action, "_typehint", None)
        if hint is not None and action.dest in config:
            _check(config[action.dest], hint, action.dest, action.default, linked)


@contextmanager
def keys_alone() -> Iterator[None]:
    """Parse configurations in which `${KEY}` names another key: no resolver reads the environment, a file or the code.

    Raises:
        UserError: If an interpolation cannot be resolved.
    """
    resolvers, BaseContainer._resolvers = BaseContainer._resolvers, {}
    try:
        yield
    except OmegaConfBaseException as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"{plain_key(error.full_key or 'interpolation')}: {reason}; ${{KEY}} takes the value of another key, such "
            "as ${budget.num_images}, the only form"
        ) from None
    finally:
        BaseContainer._resolvers = resolvers


def plain_key(key: str) -> str:
    """Return a key as it is given on the command line: `model.network`, not `model.init_args.network`."""
    return ".".join(part for part in key.split(".") if part not in ("init_args", "dict_kwargs"))


def not_a(name: str, kind: str) -> str:
    """Return the message about a class or function that is not of a kind."""
    article = "an" if kind[0] in "AEIOU" else "a"
    return f"{name} is not {article} {kind}; give a class of that kind, or a function annotated to return one"


def _check(value: Any, hint: Any, key: str, default: Any, linked: Collection[str]) -> None:
    """Check a value, and what is in it, against the type of its key."""
    if value is default or key in linked:
        return
    if value is None and not _takes_null(hint):
        raise UserError(f"{key}: null is not accepted; expected {_name(hint)}")
    found = list(_kinds(hint))
    if not found:  # nothing is made of the value
        return
    kinds = tuple(kind for kind in found if kind is not None)
    if isinstance(value, (Namespace, dict)) and "class_path" in value:
        made = import_object(value["class_path"])
        _check_made(made, kinds, key, value["class_path"])
        parameters = _parameters(made)
        for name, argument in _items(value.get("init_args") or {}):
            if name in parameters:
                parameter = parameters[name]
                _check(argument, parameter.annotation, f"{key}.{name}", parameter.default, linked)
    elif isinstance(value, (Namespace, dict)):
        for name, part in _items(value):
            _check(part, hint, f"{key}.{name}", default, linked)
    elif isinstance(value, (list, tuple, set)):
        for part in value:
            _check(part, hint, key, default, linked)
    elif callable(value) and not isinstance(value, kinds):
        _check_made(value, kinds, key, f"{value.__module__}.{getattr(value, '__qualname__', type(value).__name__)}")


@cache
def _parameters(made: Any) -> dict[str, Any]:
    return {parameter.name: parameter for parameter in get_signature_parameters(made)}


def _takes_null(hint: Any) -> bool:
    """Return whether a type includes None; True for an annotation that is not a type, which may."""
    if get_origin(hint) in (Union, UnionType, Annotated):
        return any(map(_takes_null, get_args(hint)))
    if get_origin(hint) is Literal:
        return None in get_args(hint)
    return get_origin(hint) is None and (not isinstance(hint, type) or hint in (NoneType, object, Any))


def _name(hint: Any) -> str:
    """Return a type as a message names it."""
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    names = ("..." if get_origin(part) is Callable else getattr(part, "__name__", str(part)) for part in parts)
    return " or ".join(kind.__name__ for kind in _kinds(hint) if kind) or " or ".join(names)


def _check_made(made: Any, kinds: tuple[type, ...], key: str, name: str) -> None:
    if not isinstance(made, type) and is_of_a_package(str(getattr(made, "__module__", ""))):
        raise UserError(f"{key}: the function {name} is {REFUSED}")
    returned = made if isinstance(made, type) else _return_type(made)
    if not (isinstance(returned, type) and issubclass(returned, kinds)):
        if not kinds:
            raise UserError(f"{key}: {name} would be called, which this key does not support; remove it")
        raise UserError(f"{key}: {not_a(name, ' or '.join(dict.fromkeys(kind.__name__ for kind in kinds)))}")


def _return_type(function: Any) -> Any:
    with suppress(Exception):  # an annotation may name what does not exist
        if inspect.isroutine(function):
            returned = get_type_hints(function).get("return")
            return get_origin(returned) or returned
    return None


def _items(value: Namespace | dict[str, Any]) -> list[tuple[str, Any]]:
    return list((vars(value) if isinstance(value, Namespace) else value).items())


def _kinds(hint: Any) -> Iterator[type | None]:
    """Yield the classes whose instances a type accepts; None for functions that do not return one."""
    origin, arguments = get_origin(hint) or hint, get_args(hint)
    if origin is Callable:
        returned: list[type | None] = [kind for kind in _kinds(arguments[-1]) if kind] if arguments else []
        yield from returned or [None]
    elif isinstance(hint, TypeVar):
        yield from _kinds(hint.__bound__)
    elif origin in (Literal, type):
        return
    elif isinstance(origin, type) and origin.__module__.partition(".")[0] not in sys.stdlib_module_names:
        yield origin
    else:
        for argument in arguments:
            yield from _kinds(argument)
