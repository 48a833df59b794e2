"""Reword the errors of jsonargparse as one line: the key, what is wrong with its value, and what to do.

jsonargparse raises an error for each level of a value, from the innermost outward, and repeats the inner ones in its
text. The keys of the levels, outermost first, are the dotted key of the value at fault; the innermost text is the
reason. `ROWS` holds a pattern and a wording for each reason that the parser is known to give.
"""

import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from lightning.pytorch.cli import LightningArgumentParser
from torch.nn import Module

from lit_gen.core.errors import UserError
from lit_gen.core.imports import REFUSED, may_be_named
from lit_gen.core.text import closest
from lit_gen.experiment import key_help
from lit_gen.experiment.trust import not_a

LISTED = "lit-gen fit --help lists the keys"
MAX_LETTERS = 80
"""Letters of a value that a message repeats."""


@dataclass(frozen=True)
class Refusal:
    """The error of a parser that refuses a value.

    Attributes:
        key: Dotted key of the value; empty if the error names none.
        reason: Text of the innermost error.
        text: Text of the outermost error, with all the inner ones.
        parser: The parser, for the keys and classes that exist.
        options: Options of the verb that are not keys.
        verb: The verb, for the command that lists keys.
    """

    key: str
    reason: str
    text: str
    parser: LightningArgumentParser | None = field(default=None, compare=False, repr=False)
    options: Sequence[str] = field(default=(), compare=False)
    verb: str = field(default="fit", compare=False)

    @classmethod
    def of(
        cls,
        error: BaseException,
        parser: LightningArgumentParser | None = None,
        options: Sequence[str] = (),
        verb: str = "fit",
    ) -> "Refusal":
        """Return the refusal that an error and its causes describe."""
        keys: list[str] = []
        reason = outer = ""
        for cause in _causes(error):
            reason = str(cause).strip(" -\n")
            if (named := re.match(r'Parser key "([^"]+)":', reason)) and reason != outer:
                keys.append(named[1])
                outer = reason
        return cls(".".join(keys), reason, str(error), parser, options, verb)

    @property
    def given_key(self) -> str:
        """The dotted key as it was given, for an error that is raised before the parser reaches its last part."""
        outermost = re.match(r'Parser key "([^"]+)":', self.text)
        nested = re.findall(r"NestedArg\(key='([^']+)'", self.text)
        given = f"{outermost[1]}.{max(nested, key=len)}" if outermost and nested else ""
        return max(self.key, given, key=len)

    @property
    def level(self) -> str:
        """The part of the text that concerns the last part of the key."""
        lines = self.text.splitlines()
        named = [number for number, line in enumerate(lines) if "Parser key " in line]
        if not named:
            return self.text
        indent = _indent(lines[named[-1]])
        inner = lines[named[-1] + 1 :]
        end = next((number for number, line in enumerate(inner) if line and _indent(line) <= indent), len(inner))
        return "\n".join(inner[:end])


Wording = Callable[[re.Match[str], Refusal], str | None]


class Row(NamedTuple):
    """The wording of one kind of error.

    Attributes:
        name: The kind of error.
        searched: Text in which the pattern is searched: the innermost reason, or the text of all levels.
        pattern: Regular expression.
        wording: The message for a match; None leaves the error to the rows below.
    """

    name: str
    searched: Literal["reason", "text"]
    pattern: str
    wording: Wording


def one_line(
    error: Exception, parser: LightningArgumentParser | None = None, options: Sequence[str] = (), verb: str = "fit"
) -> str:
    """Return the message of an error of the parser.

    Args:
        error: The error.
        parser: The parser, for the keys and classes that exist.
        options: Options of the verb that are not keys.
        verb: The verb.
    """
    own = next((str(cause) for cause in _causes(error) if isinstance(cause, UserError)), None)
    return " ".join((own or reword(Refusal.of(error, parser, options, verb))[1]).split())


def reword(refusal: Refusal) -> tuple[str, str]:
    """Return the name of the row that applies to a refusal, and its message in one line."""
    for row in ROWS:
        searched = refusal.reason if row.searched == "reason" else refusal.text
        if (match := re.search(row.pattern, searched, re.DOTALL)) and (message := row.wording(match, refusal)):
            return row.name, " ".join(message.split())
    return "other", " ".join(refusal.text.split())


def _unknown_option(match: re.Match[str], refusal: Refusal) -> str:
    if refusal.key:
        return _no_such_key(f"{refusal.key}.{match[1].lstrip('-').partition('=')[0]}", refusal)
    return f"{match[1]}: no such key; {closest(match[1].partition('=')[0], _options(refusal), LISTED)}"


def _argument_of_the_caller(match: re.Match[str], refusal: Refusal) -> str | None:
    """Return the message about an argument that the caller of a factory gives; None if the class does not have it.

    The parser gives the same reason for an argument that the class does not have.
    """
    argument, module, name = match.groups()
    made = getattr(sys.modules.get(module), name, None)
    if made is None or argument not in inspect.signature(made).parameters:
        return None
    return f"{refusal.key}: {name} cannot be called as a {_last(refusal.key)}; choose another class"


def _unnamed_class(match: re.Match[str], refusal: Refusal) -> str | None:
    """Return the message about an argument that is given without its class; None if the class is named."""
    base = _base(refusal)
    if base is None or not re.search(rf"given class_path '[\w.]*\.{base.__name__}'", refusal.text):
        return None
    names = ", ".join(_class_names(base))
    return f"{refusal.key}.{match[1]}: name the class with it, --{refusal.key} CLASS (one of {names})"


def _unknown_key(match: re.Match[str], refusal: Refusal) -> str:
    group = match[1] or refusal.key
    return _no_such_key(f"{group}.{match[2]}" if group else match[2], refusal)


def _no_such_class(match: re.Match[str], refusal: Refusal) -> str:
    base = _base(refusal)
    names = _networks(refusal) if base is None else _class_names(base)
    advice = f"choose one of {', '.join(names)}"
    if not names:
        advice = "give a class of lit_gen or torch by its name, or any by its import path"
    elif base is None:
        advice += ", or give the import path of another"
    return f"{refusal.key}: unknown class {_shown(match[1])}; {closest(match[1], names, advice)}"


def _not_a_class(match: re.Match[str], refusal: Refusal) -> str:
    return f"{refusal.key}: {_shown(match[1])} is not a class; give the name of one"


def _another_kind(match: re.Match[str], refusal: Refusal) -> str:
    return f"{refusal.key}: {not_a(match[1], _last(match[2]))}"


def _refused_import(match: re.Match[str], refusal: Refusal) -> str:
    return f"{refusal.key}: {match[1]} is {REFUSED}"


def _no_class_of_a_kind(match: re.Match[str], refusal: Refusal) -> str:
    return f"{refusal.key}: {_shown(match[2])} is not a {match[1]}; name a class of that kind"


def _abstract_class(match: re.Match[str], refusal: Refusal) -> str:
    base = _base(refusal)
    choices = f" (one of {', '.join(_class_names(base))})" if base is not None else ""
    return f"{refusal.key}: {_last(match[1])} is abstract; name another class, --{refusal.key} CLASS{choices}"


def _wrong_value(match: re.Match[str], refusal: Refusal) -> str:
    return f"{refusal.key}: {_shown(match[1])} is not accepted; {_wanted(refusal)}"


def _called_otherwise(match: re.Match[str], refusal: Refusal) -> str:
    return f"{refusal.key}: {_last(match[1])} cannot be called as a {_last(refusal.key)}; choose another class"


def _missing_key(match: re.Match[str], refusal: Refusal) -> str | None:
    key = match[1].partition(",")[0]
    return None if refusal.key else f"{key}: this key has no default; give it in a file, or as --{key} VALUE"


def _function_with_arguments(match: re.Match[str], refusal: Refusal) -> str:
    return "model: a function cannot be given as class_path; name the function alone, or a class"


def _missing_file(match: re.Match[str], refusal: Refusal) -> str:
    return f"{refusal.key}: the file {match[1]} does not exist; give the path of a file, or name a class"


def _failed_import(match: re.Match[str], refusal: Refusal) -> str | None:
    """Return the message about a class that cannot be imported; None if each class in the text can."""
    for path in dict.fromkeys(re.findall(_IMPORT_PATH, refusal.text)):
        if not may_be_named(path):
            return f"{refusal.given_key}: {path} is {REFUSED}"
        if error := _import_error(path):
            return f"{refusal.given_key}: {path} cannot be imported: {error}"
    return None


def _other(match: re.Match[str], refusal: Refusal) -> str:
    return f"{match[1]}: {match[2]}"


_IMPORT_PATH = r"(?:Expected (?:a path but |')|given class_path '|Got value: |, val=')([a-zA-Z_][\w.]*\.\w+)\b"
ROWS = (
    Row("unknown option", "reason", r"^[Uu]nrecognized arguments: (.*)", _unknown_option),
    Row(
        "argument of the caller",
        "text",
        r"expects a function or a callable class: Option '(\w+)' .*?class_path='(\w[\w.]*)\.(\w+)'",
        _argument_of_the_caller,
    ),
    Row("argument without a class", "reason", r"^Option '([^']*)' is not accepted$", _unnamed_class),
    Row(
        "unknown key",
        "reason",
        r"^(?:Group '([\w.]+)' does not accept option|Option) '([^']*)'(?: is not accepted)?$",
        _unknown_key,
    ),
    Row("unknown class", "reason", r"^Expected a dot import path string:\s*(.*)", _no_such_class),
    Row("value for a class", "reason", r"^Expected an import path or a subclass spec, but got\s*(.*)", _not_a_class),
    Row(
        "class of another kind",
        "reason",
        r"^Expected '(.+?)' to be a subclass of (?:<class ')?([\w.]+)",
        _another_kind,
    ),
    Row(
        "function of another kind",
        "reason",
        r"^Expected '(.+?)' to be a function that returns (?:<class ')?([\w.]+)",
        _another_kind,
    ),
    Row(
        "import path of another kind",
        "reason",
        r"^Import path (\S+) does not correspond to a subclass of ([\w.]+)",
        _another_kind,
    ),
    Row("refused import", "reason", r"^Importing '(.+?)' is not allowed", _refused_import),
    Row(
        "list for a class",
        "reason",
        r"^Not a valid subclass of (\w+)\. Got value: ([^\n]*)",
        _no_class_of_a_kind,
    ),
    Row("abstract class", "reason", r"^Expected an instantiatable class, but (\S+) is abstract$", _abstract_class),
    Row(
        "value that is not a choice",
        "reason",
        r"^Expected a (?:typing\.)?Literal\[.*\]\. Got value:\s*(.*)",
        _wrong_value,
    ),
    Row("list of another length", "reason", r"^Expected a tuple with \d+ elements\. Got value:\s*(.*)", _wrong_value),
    Row("value of another type", "reason", r"^Expected an? \S+(?: '[\w.]+'>)?\. Got value:\s*(.*)", _wrong_value),
    Row(
        "function of other arguments",
        "text",
        r"the following arguments are required: .*?class_path='([\w.]+)'",
        _called_otherwise,
    ),
    Row("missing key", "reason", r"^the following arguments are required: (.*)", _missing_key),
    Row("function with arguments", "text", "unexpected keyword argument 'linked_targets'", _function_with_arguments),
    Row("missing file", "text", r"Expected a path but (\S+\.ya?ml) either", _missing_file),
    Row("malformed import path", "reason", r"^Unexpected import path format:\s*(.*)", _no_such_class),
    Row("failed import", "text", _IMPORT_PATH, _failed_import),
    Row("other", "text", r'^Parser key "([^"]+)":\s*(.*)', _other),
)
"""Wordings in the order in which they are tried."""


def _no_such_key(key: str, refusal: Refusal) -> str:
    group, _, name = key.rpartition(".")
    if refusal.parser is not None and any(key_help.names_at(refusal.parser, above) for above in _prefixes(group)):
        found = re.search(r"class_path[ =]'[\w.]*?(\w+)'", refusal.level)
        named = (refusal.key, found[1]) if found else ("", "")
        return f"{key}: no such key; {key_help.of_misspelt(refusal.parser, key, refusal.verb, *named)}"
    prefix = f"--{group}." if group else "--"
    known = [option.removeprefix(prefix) for option in _options(refusal) if option.startswith(prefix)]
    return f"{key}: no such key; {closest(name, known, LISTED)}"


def _options(refusal: Refusal) -> list[str]:
    actions = [] if refusal.parser is None else refusal.parser._actions
    return [*(name for action in actions for name in action.option_strings), *refusal.options]


def _base(refusal: Refusal) -> type | None:
    """Return the class of lit_gen whose subclasses the key takes; None for a class of torch, or if it is unknown.

    A key such as `model.augment` takes other classes for each model; the text then names the class.
    """
    try:
        kinds = key_help.kinds_at(refusal.parser, refusal.key) if refusal.parser is not None else []
    except UserError:
        return None
    bases = list(dict.fromkeys(kind.base for kind in kinds))
    if len(bases) > 1:
        bases = [base for base in bases if f"{base.__module__}.{base.__name__}" in refusal.level]
    return next((base for base in bases if base is not Module and base.__module__.startswith("lit_gen.")), None)


def _networks(refusal: Refusal) -> list[str]:
    """Return the names of the networks of lit_gen if the key takes a network."""
    with suppress(UserError):
        if refusal.parser is not None and any(k.base is Module for k in key_help.kinds_at(refusal.parser, refusal.key)):
            return _class_names(Module)
    return []


def _class_names(base: type) -> list[str]:
    return sorted(key_help.choices([key_help.Kind(base)]))


def _wanted(refusal: Refusal) -> str:
    """Return the choices, types or items that the key accepts, as the end of a message."""
    level = refusal.level if "Expected a" in refusal.level else refusal.reason
    names = re.findall(r"Expected an? <class '(?:\w+\.)*(\w+)'>", level)
    items = [f"[{found}]" for found in re.findall(r"Subtypes: .*?tuple\[(.*?)\]", level)]
    lengths = [f"a list of {number} values" for number in re.findall(r"Expected a tuple with (\d+) elements", level)]
    lists = items or lengths or ["a list"] * ("tuple" in names)
    types = [_TYPES.get(name, f"a {name.lower()}") for name in names if name not in ("NoneType", "tuple")]
    literals = re.findall(r"Expected a (?:typing\.)?Literal\[(.*?)\](?:\.|\n|$)", level)
    values = (value.strip(" '") for literal in literals for value in literal.split(","))
    choices = ", ".join(dict.fromkeys(values))
    if choices and not (types or lists):
        return f"choose one of {choices}"
    named = [choices if "," not in choices else f"one of {choices}"] if choices else []
    return f"expected {' or '.join(dict.fromkeys([*types, *lists, *named]))}"


_TYPES = {name: name for name in ("int", "float", "bool", "str")} | {"dict": "a mapping"}
"""Types that a message names otherwise than by their names with an article."""


def _import_error(path: str) -> str:
    """Return the reason that a class cannot be imported; empty if it can."""
    module, _, name = path.rpartition(".")
    try:
        getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        where = "; modules are searched in the current folder and in PYTHONPATH" if error.name == module else ""
        return f"{error}{where}"
    except (ImportError, AttributeError, SyntaxError) as error:
        return str(error)
    except Exception as error:  # a module of the user may raise anything when it is imported
        return f"{type(error).__name__}: {error}"
    return ""


def _shown(value: str) -> str:
    """Return a value for a message: in one line, shortened, null and the empty text by name."""
    text = " ".join(value.split())[:MAX_LETTERS]
    return {"": "an empty value", "None": "null"}.get(text, text)


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _prefixes(key: str) -> Iterable[str]:
    parts = key.split(".")
    return (".".join(parts[:end]) for end in range(len(parts), 0, -1))


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__
