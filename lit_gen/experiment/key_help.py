"""Help on the keys of a configuration: `lit-gen fit --help` lists all, `--model.help EDM` those of one class.

A key such as `model.network` takes the classes that its annotation names: a class, one of several, or a function that
makes one, `Callable[[tuple[int, int, int], int], nn.Module]`, whose first two arguments the model gives.
"""

import collections.abc
import inspect
import shutil
import textwrap
import typing
from abc import ABC
from argparse import SUPPRESS, Action
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from importlib import import_module
from types import NoneType, UnionType
from typing import Any, NamedTuple

from jsonargparse import ArgumentParser
from torch.nn import Module

from lit_gen import families
from lit_gen.core.errors import UserError
from lit_gen.core.text import closest

LINKED = ("image_shape", "num_classes", "num_codes", "out_channels", "augment_dim", "channelwise")
"""Arguments that cannot be set: their values come from the data, the first stage or the model."""
FIRST_GROUPS = ("config", "model", "data", "budget", "sampler", "evaluation", "ema", "checkpoint", "grid")
LAST_GROUPS = ("trainer",)
TITLES = {"trainer": "Lightning's Trainer"}
TEXTS = {
    "model": "The model; --model.help lists them.",
    "seed_everything": "Seed of the initial weights, the order of the images and all noise in training.",
}
"""Descriptions that replace those of other packages."""
VALUES = {"seed_everything": "N"}
"""Placeholders that replace those of the types of other packages."""
OF_CLASSES = {
    "model": [
        ("--model.KEY VALUE", "A key of the class; --model.help EDM prints those of EDM."),
        ("--model.network CLASS", "The network of most models; --model.network.help lists them."),
        ("--model.network.channels N", "A key of the network; --model.network.help UNet prints those of UNet."),
    ],
    "sampler": [
        ("--sampler.steps N", "Steps of a diffusion sampler; --sampler.help Heun prints all keys of Heun."),
        ("--sampler.nfe N", "Network evaluations, in place of steps."),
    ],
}
"""Examples of the keys of classes; the list of all keys holds no other keys of classes."""


_OF_VALUES = ("builtins", "datetime", "pathlib", "torch")
"""Modules whose classes are values of a key, not settings with further keys."""


class Kind(NamedTuple):
    """The kind of class that a key takes.

    Attributes:
        base: A class whose subclasses the key takes.
        num_given: Number of first arguments that the caller of the class gives.
    """

    base: type
    num_given: int = 0


def asked_for(word: str) -> str | None:
    """Return the key whose classes a word asks about: `model` for `--model.help` and `--model.help=EDM`."""
    name = word.partition("=")[0]
    return name.removeprefix("--").removesuffix(".help") if name.startswith("--") and name.endswith(".help") else None


def find(parser: ArgumentParser, words: Sequence[str], verb: str) -> str | None:
    """Return the help that the words of a command line ask for; None if they ask for none.

    Raises:
        UserError: If the class does not exist, or the key does not take a class.
    """
    for index, word in enumerate(words):
        if word in ("-h", "--help"):
            return of_all(parser, verb)
        if (key := asked_for(word)) is not None:
            following = words[index + 1] if index + 1 < len(words) and "=" not in word else ""
            name = word.partition("=")[2] or ("" if following.startswith("-") else following)
            return of_class(parser, verb, key, name) if name else of_classes(parser, verb, key)
    return None


def of_all(parser: ArgumentParser, verb: str) -> str:
    """Return the help of `fit` or `run`: all keys by group, lit_gen's before the Trainer's."""
    does = {"run": "Train a model unless that is done, then score it.", "fit": "Train a model."}
    lines = [
        f"usage: lit-gen {verb} --config FILE [--KEY VALUE ...]",
        "",
        f"{does.get(verb, '')} FILE holds an experiment; keys on the command line override it.",
        "",
        f"  lit-gen {verb} --config conf/experiment/digits_edm.yaml --budget.num_images 20000",
        "",
        "The keys of a class are printed alone, and without its name the classes are listed:",
        *(f"  lit-gen {verb} --{example}" for example in ("model.help", "model.help EDM", "sampler.help Heun")),
        f"  lit-gen {verb} --model.network.help UNet",
    ]
    groups: dict[str, list[Action]] = {}
    titles: dict[str, str] = {}
    for group in parser._action_groups:
        for action in group._group_actions:
            name = action.dest.partition(".")[0]
            groups.setdefault(name, []).append(action)
            titles.setdefault(name, TITLES.get(name) or (group.title or "").partition(":")[0])
    last = [name for name in LAST_GROUPS if name in groups]
    for name in dict.fromkeys([*FIRST_GROUPS, *(name for name in groups if name not in last), *last]):
        entries = [entry for action in groups.get(name, []) for entry in _entry(action, group=name)]
        if entries := entries + OF_CLASSES.get(name, []):
            alone = titles[name] in ("options", "Linked arguments")
            lines += ["", name if alone else f"{name}: {titles[name]}", *_table(entries)]
    return "\n".join(lines)


def of_classes(parser: ArgumentParser, verb: str, key: str) -> str:
    """Return the list of the classes that a key takes, each with its summary.

    Raises:
        UserError: If the key does not take a class.
    """
    found = choices(kinds_at(parser, key))
    entries = [(name, _summary(found[name])) for name in sorted(found)]
    lines = [f"classes of --{key}; lit-gen {verb} --{key}.help CLASS prints the keys of one", *_table(entries)]
    return "\n".join(lines)


def of_class(parser: ArgumentParser, verb: str, key: str, name: str) -> str:
    """Return the keys of one class.

    Raises:
        UserError: If the key does not take the class.
    """
    kinds = kinds_at(parser, key)
    found = choices(kinds)
    cls = found.get(name) or _imported(name, kinds)
    if cls is None:
        advice = closest(name, found, f"lit-gen {verb} --{key}.help lists the classes")
        raise UserError(f"{key}: unknown class {name}; {advice}")
    given = max(kind.num_given for kind in kinds if issubclass(cls, kind.base))
    first = list(inspect.signature(cls).parameters.values())[:given]
    skipped = {*LINKED, *(parameter.name for parameter in first if parameter.default is parameter.empty)}
    own = ArgumentParser(exit_on_error=False, add_help=False)
    own.add_class_arguments(cls, key, skip=skipped, as_group=False)
    entries = [entry for action in own._actions for entry in _entry(action)]
    return "\n".join([f"{cls.__name__}: {_summary(cls)}", *(_table(entries) or ["  no keys"])])


def of_misspelt(parser: ArgumentParser, key: str, verb: str = "fit", parent: str = "", name_of_parent: str = "") -> str:
    """Return the advice on a dotted key with a part that does not exist.

    Args:
        parser: The parser.
        key: The key.
        verb: The verb of the command.
        parent: The key above the misspelt part, if its class is known.
        name_of_parent: Name of that class.
    """

    def command(above: str) -> str:
        if above == parent:
            return f"lit-gen {verb} --{above}.help {name_of_parent} lists the keys of {name_of_parent}"
        return f"lit-gen {verb} --{above}.help CLASS lists those of a class"

    parts = key.split(".")
    listed = parts[0]
    for end in range(1, len(parts)):
        above, name = ".".join(parts[:end]), parts[end]
        if known := names_at(parser, above):
            listed = above
            if name not in known:
                near = closest(name, known, "")
                return f"{near} {command(above)}".strip()
    return command(listed)


def names_at(parser: ArgumentParser, key: str) -> list[str]:
    """Return the names of the arguments of all classes that a key takes; empty if it does not take a class."""
    try:
        kinds = kinds_at(parser, key)
    except UserError:
        return []
    return sorted({name for cls in choices(kinds).values() for name in _annotations(cls) if name not in LINKED})


def kinds_at(parser: ArgumentParser, key: str) -> list[Kind]:
    """Return the kinds of class that a dotted key takes, whichever class its parents are.

    Raises:
        UserError: If the key does not take a class.
    """
    parts = key.split(".")
    actions = {action.dest: action for action in parser._actions}
    for end in range(len(parts), 0, -1):
        if (action := actions.get(".".join(parts[:end]))) is not None:
            kinds = list(dict.fromkeys(_kinds(getattr(action, "_typehint", None))))
            for part in parts[end:]:
                annotations = [_annotations(cls).get(part) for cls in choices(kinds).values()]
                kinds = list(dict.fromkeys(kind for annotation in annotations for kind in _kinds(annotation)))
            if kinds:
                return kinds
    raise UserError(f"{key}.help: {key} does not take a class; lit-gen fit --help lists the keys")


def choices(kinds: Iterable[Kind]) -> dict[str, type]:
    """Return the classes of some kinds that can be named, by name; for networks, the classes of lit_gen."""
    found: dict[str, type] = {}
    for base, _ in kinds:
        classes = _networks() if base is Module else [cls for cls in _below(base) if cls is not base or _is_ours(base)]
        found |= {cls.__name__: cls for cls in classes if not (inspect.isabstract(cls) or cls.__name__[0] == "_")}
    return found


def _networks() -> list[type]:
    """Return the public networks of all families."""
    public = (value for family in families.FAMILIES for value in vars(family).values())
    classes = (value for value in public if isinstance(value, type))
    return [cls for cls in classes if ".networks" in cls.__module__ and issubclass(cls, Module)]


def _is_ours(cls: type) -> bool:
    """Return whether a base class can be chosen: those of other packages do nothing."""
    return cls.__module__.startswith("lit_gen.")


def _below(base: type) -> Iterator[type]:
    if ABC not in base.__bases__:
        yield base
    below: list[type] = type.__subclasses__(base)
    for child in below:
        yield from _below(child)


def _imported(path: str, kinds: Iterable[Kind]) -> type | None:
    module, _, name = path.rpartition(".")
    try:
        cls = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return None
    return cls if isinstance(cls, type) and any(issubclass(cls, kind.base) for kind in kinds) else None


@cache
def _annotations(cls: type) -> dict[str, Any]:
    """Return the annotations of the arguments of a class, and of those that it passes to its bases."""
    found: dict[str, Any] = {}
    for base in cls.__mro__:
        if "__init__" in vars(base):
            parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
            hints = typing.get_type_hints(vars(base)["__init__"])
            named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
            found = {name: hints.get(name) for name in named if name != "self"} | found
            if not any(p.kind == p.VAR_KEYWORD for p in parameters):
                break
    return found


def _kinds(annotation: Any, num_given: int = 0) -> Iterator[Kind]:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is collections.abc.Callable:
        yield from _kinds(arguments[1], len(arguments[0]) if isinstance(arguments[0], list) else 0)
    elif origin in (typing.Union, UnionType, list):
        for argument in arguments:
            yield from _kinds(argument, num_given)
    elif isinstance(annotation, type) and annotation is not NoneType and annotation.__module__ not in _OF_VALUES:
        yield Kind(annotation, num_given)


def _entry(action: Action, group: str = "") -> Iterator[tuple[str, str]]:
    """Yield an option with its value, and its help with its default; nothing for an option that is not a key."""
    option = next((name for name in action.option_strings if name.startswith("--")), "")
    linked = type(action).__name__ == "ActionLink"
    if not option or linked or action.dest in ("help", "print_config") or option.endswith(".help"):
        return
    if type(action).__name__ == "ActionConfigFile" or action.dest == group == "config":
        yield "--config FILE", "The file of an experiment, or of a run."
        return
    annotation = getattr(action, "_typehint", None) or action.type
    if action.dest == group and annotation is None:  # the file of a whole group
        return
    kinds = list(_kinds(annotation))
    text = " ".join((action.help or "").split()).replace("%%", "%")
    text = text.partition(" Default: ``")[0]
    if action.dest in TEXTS:
        text = TEXTS[action.dest]
    elif kinds:
        text += f" --{action.dest}.help lists the classes."
    default = _default(action.default)
    told = "" if not default or "(default: " in text else f" (default: {default})"
    yield f"{option} {VALUES.get(action.dest) or _value(annotation, kinds)}", text + told


def _value(annotation: Any, kinds: Sequence[Kind]) -> str:
    """Return the placeholder of the value of an option: N for a number, CLASS, or the choices."""
    if kinds:
        return "CLASS"
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return "{" + ",".join(str(value) for value in arguments) + "}"
    if origin in (typing.Union, UnionType):
        return "|".join(dict.fromkeys(_value(part, ()) for part in arguments if part is not NoneType))
    if origin in (list, tuple):
        return "[...]"
    if origin is dict:
        return "{...}"
    return {int: "N", float: "X", bool: "BOOL", str: "TEXT"}.get(annotation, "VALUE")


def _default(value: Any) -> str:
    if value is None or value is SUPPRESS:
        return ""
    if isinstance(value, dict) and "class_path" in value:
        return str(value["class_path"]).rpartition(".")[2]
    return str(value).lower() if isinstance(value, bool) else str(value)


def _summary(cls: type) -> str:
    """Return the first paragraph of the docstring of a class, as a sentence."""
    text = (inspect.getdoc(cls) or "").strip().partition("\n\n")[0]
    return " ".join(text.split()).rstrip(":.") + "." if text else ""


def _table(entries: Sequence[tuple[str, str]]) -> list[str]:
    """Return two columns that fit the terminal; a long first entry has a separate line."""
    width = shutil.get_terminal_size((120, 24)).columns
    first = min(max((len(name) for name, _ in entries), default=0), 38)
    lines = []
    for name, text in entries:
        wrapped = textwrap.wrap(text, max(width - first - 5, 30))
        if len(name) > first:
            lines.append(f"  {name}")
        elif wrapped:
            lines.append(f"  {name:{first}}  {wrapped.pop(0)}")
        else:
            lines.append(f"  {name}")
        lines += [" " * (first + 4) + line for line in wrapped]
    return lines
