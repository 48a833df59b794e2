"""Turn an error of the parser into one line that names the key, the value and the remedy.

jsonargparse raises an error for each level of a value, from the innermost outward, and repeats the inner ones in its
text. Each level that has a key begins with it, so the keys in their order are the dotted key of the value at fault.
"""

import importlib
import inspect
import re
import sys
from collections.abc import Iterator, Sequence

from lightning.pytorch.cli import LightningArgumentParser

from lit_gen.core.errors import UserError, class_names
from lit_gen.core.imports import REFUSED, may_be_named
from lit_gen.core.text import closest
from lit_gen.data.sources import ImageSource
from lit_gen.experiment import key_help
from lit_gen.experiment.trust import not_a
from lit_gen.families.base import GenerativeModel
from lit_gen.families.settings import LikelihoodMethod, Sampler
from lit_gen.metrics.feature_nets import FeatureNet

BASES: dict[str, type] = {
    "model": GenerativeModel,
    "sampler": Sampler,
    "data.source": ImageSource,
    "evaluation.feature_net": FeatureNet,
    "evaluation.likelihood_method": LikelihoodMethod,
}
"""Kinds of classes by the key that names one, for the choices in a message."""


def one_line(error: Exception, parser: LightningArgumentParser | None = None, options: Sequence[str] = ()) -> str:
    """Return an error of the parser, which takes many lines with the usage, as one: the key, the value, the reason.

    Args:
        error: The error.
        parser: The parser, for advice on a misspelt key.
        options: Options of the verb that are no keys, for the same.
    """
    message = _own_error(error) or _explain(error) or _explain_text(str(error), parser, options)
    message = re.sub(r": None is ", ": null is ", re.sub(r":  is ", ": an empty value is ", message))
    return " ".join(message.split())


def _explain_text(text: str, parser: LightningArgumentParser | None, options: Sequence[str]) -> str:
    """Return the key, the value and the reason as the text of an error tells them."""
    if "linked_targets" in text:  # the parser takes no function with arguments for a key of the model
        return "model: a function cannot stand as the class_path of a part; name the function alone, or a class"
    if not (found := re.search(r'Parser key "([^"]+)":\s*(.*)', text, re.DOTALL)):
        if unknown := re.search(r"[Uu]nrecognized arguments: (.*)", text):
            known = [] if parser is None else [name for action in parser._actions for name in action.option_strings]
            word = unknown.group(1).partition("=")[0]
            advice = closest(word, [*known, *options], "lit-gen fit --help lists the keys")
            return f"{unknown.group(1)}: no such key; {advice}"
        return " ".join(text.split())
    key, reason = found.group(1), found.group(2)
    nested: list[tuple[str, str]] = re.findall(r"NestedArg\(key='([^']+)', val='?(.*?)'?\)", reason)
    part, given = max(
        nested, key=lambda argument: len(argument[0]), default=("", "")
    )  # whole: a class within counts on
    if wrong := _of_a_name(reason):
        return f"{key}.{part}: {wrong}" if part else f"{key}: {wrong}"
    if part:
        advice = key_help.of_misspelt(parser, f"{key}.{part}") if parser is not None else ""
        return _of_a_part(key, part, given, reason) or f"{key}.{part}: no such key; {advice}"
    otherwise = (
        r"Parser key \"(\w+)\":\s*Type [^\n]* expects a function or a callable class: [^\n]*class_path='[\w.]*?(\w+)'"
    )
    if called := re.search(otherwise, reason):
        part, name = called.groups()
        return f"{key}.{part}: {name} is not called as a {part} is; choose another class"
    inner = re.findall(r'Parser key "([^"]+)":', reason)  # of a class that a file names with its arguments
    value = re.search(r"(?:Got|Given) value: ([^\n]*?)(?:\. Got|\n|$)", reason)
    if inner and value and (wanted := _wanted(reason)):
        return f"{key}.{'.'.join(inner)}: {value.group(1)} is not accepted; {wanted}"
    if unknown := re.search(r"dot import path string: (\S+)|Import path (\S+)", reason):
        return f"{key}: there is no class {unknown.group(1) or unknown.group(2)}{_choices(BASES.get(key))}"
    if value := re.search(r"Given value: (.*)", reason):
        lines = [line.strip(" -") for line in reason.splitlines() if line.strip().startswith("- ")]
        why = "; ".join(line for line in lines if "NoneType" not in line)
        return f"{key}: {value.group(1)} is not accepted: {' '.join((why or reason).split())}"
    if value := re.search(r"Expected a (.*?)\. Got value: (.*)", reason, re.DOTALL):
        kind = re.sub(r"<class '(\w+)'>", r"\1", value.group(1)).replace("typing.", "")
        return f"{key}: {value.group(2).strip()} is not accepted; expected {kind}"
    return f"{key}: {' '.join(reason.split())}"


def _of_a_name(reason: str) -> str | None:
    """Return the fault of an import path or of a file of settings; None if the fault is another."""
    if file := re.search(r"Expected a path but (\S+\.ya?ml) either", reason):
        return f"there is no file {file.group(1)}"
    named = r"(?:Expected (?:a path but |')|given class_path '|Got value: |, val=')([a-zA-Z_][\w.]*\.\w+)\b"
    for path in re.findall(named, reason):
        if not may_be_named(path):  # nor imported
            return f"{path} is {REFUSED}"
        module, _, name = path.rpartition(".")
        try:
            getattr(importlib.import_module(module), name)
        except ModuleNotFoundError as error:
            where = "; modules are searched in the current folder and in PYTHONPATH" if error.name == module else ""
            return f"{path} cannot be imported: {error}{where}"
        except (ImportError, AttributeError, SyntaxError) as error:
            return f"{path} cannot be imported: {error}"
        except Exception as error:  # whatever a module of the user's raises when it is imported
            return f"{path} cannot be imported: {type(error).__name__}: {' '.join(str(error).split())}"
        if base := re.search(r"subclass of (?:<class ')?(\w+)", reason):
            return f"{path} is not a {base.group(1)}"
    return None


def _of_a_part(key: str, part: str, value: str, reason: str) -> str | None:
    """Return the fault of a value for a part of a key, such as `network.channels` of `model`; None if it is unknown."""
    base = BASES.get(key)
    if "is abstract" in reason or (base and f"class_path '{base.__module__}.{base.__name__}'" in reason):
        choices = f" (one of {', '.join(class_names(base))})" if base else ""
        return f"{key}.{part}: name the class with it, --{key} CLASS{choices}"
    if kinds := re.findall(r"Expected an? <class '(int|float|bool|str)'>", reason):
        return f"{key}.{part}: {value} is not accepted; expected {' or '.join(dict.fromkeys(kinds))}"
    if wanted := _wanted(reason):
        return f"{key}.{part}: {value} is not accepted; {wanted}"
    if kind := re.search(r"Expected a <class '(?:\w+\.)*(?!NoneType)(\w+)'>\. Got value: ", reason):
        return f"{key}.{part}: {value} is not accepted; expected a {kind.group(1).lower()}"
    if f"dot import path string: {value}" in reason:
        bases = re.findall(r"Subtypes: \[<class '(lit_gen[\w.]*)\.(\w+)'>", reason)[1:]
        base = getattr(sys.modules[bases[-1][0]], bases[-1][1]) if bases else None
        choices = _choices(base) or "; give a class of lit_gen or torch by its name, or any by its import path"
        return f"{key}.{part}: there is no class {value}{choices}"
    return None


def _wanted(reason: str) -> str | None:
    """Return the choices or the numbers that a key accepts; None if the fault is another."""
    if literal := re.search(r"Literal\[([^\]]*)\]\S* Got value: ", reason):
        return f"choose one of {literal.group(1)}".replace("'", "")
    items = re.search(r"tuple\[(.*?)\]", reason)
    return f"expected [{items.group(1)}]" if items and re.search(r"Expected a (tuple|<class 'tuple)", reason) else None


def _choices(base: type | None) -> str:
    return f"; choose one of {', '.join(class_names(base))}" if base is not None else ""


def _own_error(error: BaseException) -> str | None:
    """Return the message of a class of ours, which the parser wraps in its own; None if no class of ours raised it."""
    return next((str(cause) for cause in _causes(error) if isinstance(cause, UserError)), None)


def _innermost(error: BaseException) -> tuple[str, str]:
    """Return the dotted key of the value at fault, empty if there is none, and the innermost reason."""
    keys: list[str] = []
    reason = outer = ""
    for cause in _causes(error):
        reason = str(cause).strip(" -\n")
        if (named := re.match(r'Parser key "([^"]+)":', reason)) and reason != outer:
            keys.append(named.group(1))
            outer = reason
    return ".".join(keys), reason


def _explain(error: BaseException) -> str | None:
    """Return one line for a value of the wrong type or an unknown key, however deep in a file; None for all others."""
    key, reason = _innermost(error)
    if other := re.match(
        r"Expected '(.+?)' to be a (?:subclass of|function that returns) (?:<class ')?([\w.]+)", reason
    ):
        return f"{key}: {not_a(other.group(1), other.group(2).rpartition('.')[2])}"
    if other := re.match(r"Import path (\S+) does not correspond to a subclass of (\w+)", reason):
        return f"{key}: {not_a(*other.groups())}"
    if denied := re.match(r"Importing '(.+?)' is not allowed", reason):
        return f"{key}: {denied.group(1)} is {REFUSED}"
    if none := re.match(r"Not a valid subclass of (\w+)\. Got value: ([^\n]*)", reason):
        return f"{key}: {none.group(2)[:80]} is not a {none.group(1)}; name a class of that kind"
    if "NestedArg(" in str(error):
        return None
    if re.fullmatch(r"Expected an instantiatable class, but \S+ is abstract", reason):
        return f"{key}: names no class; give one that is not abstract, --{key} CLASS"
    if unknown := re.fullmatch(
        r"(?:Group '([\w.]+)' does not accept option|Option) '([^']*)'(?: is not accepted)?", reason
    ):
        group, name = unknown.group(1) or key, unknown.group(2)
        if other_call := _called_otherwise(str(error), name):
            return f"{key}: {other_call} is not called as a {key.rpartition('.')[2]} is; choose another class"
        return f"{group + '.' if group else ''}{name}: no such key; lit-gen fit --help lists the keys"
    if "." not in key:
        return None
    if wrong := re.fullmatch(r"Expected an? (?:<class '(?:\w+\.)*(\w+)'>|(\S+))\. Got value: (.*)", reason, re.DOTALL):
        kind = wrong.group(1) or wrong.group(2).replace("typing.", "")
        return f"{key}: {' '.join(wrong.group(3).split())[:80]} is not accepted; expected {kind}"
    return None


def _called_otherwise(text: str, argument: str) -> str | None:
    """Return the class of a factory's key that has the argument, but for what the factory gives; None if there is none.

    The parser says of both, an argument that a class lacks and one that the factory's call takes up, that it is not
    accepted.
    """
    refused = rf"expects a function or a callable class: Option '{argument}' .*?class_path='(\w[\w.]*)\.(\w+)'"
    found = re.search(refused, text)
    made = getattr(sys.modules.get(found.group(1)), found.group(2), None) if found else None
    return found.group(2) if found and made and argument in inspect.signature(made).parameters else None


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__
