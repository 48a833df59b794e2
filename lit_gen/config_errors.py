"""Where in a configuration an error of the parser lies, and why: read from the chain of its causes.

jsonargparse raises an error for each level of a value, from the innermost outward, and repeats the inner ones in its
text. Each level that has a key begins with it, so the keys in their order are the dotted key of the value at fault.
"""

import inspect
import re
import sys
from collections.abc import Iterator

from lit_gen.core.imports import REFUSED
from lit_gen.errors import UserError
from lit_gen.trust import not_a


def own_error(error: BaseException) -> UserError | None:
    """Return the complaint of a class itself, which comes wrapped."""
    return next((cause for cause in _causes(error) if isinstance(cause, UserError)), None)


def innermost(error: BaseException) -> tuple[str, str]:
    """Return the dotted key of the value at fault, empty if there is none, and the innermost reason."""
    keys: list[str] = []
    reason = outer = ""
    for cause in _causes(error):
        reason = str(cause).strip(" -\n")
        if (named := re.match(r'Parser key "([^"]+)":', reason)) and reason != outer:
            keys.append(named.group(1))
            outer = reason
    return ".".join(keys), reason


def explain(error: BaseException) -> str | None:
    """Return one line for a value of the wrong type or an unknown key, however deep in a file; None for all others."""
    key, reason = innermost(error)
    if other := re.match(
        r"Expected '(.+?)' to be a (?:subclass of|function that returns) (?:<class ')?([\w.]+)", reason
    ):
        return f"{key}: {not_a(other.group(1), other.group(2).rpartition('.')[2])}"
    if other := re.match(r"Import path (\S+) does not correspond to a subclass of (\w+)", reason):
        return f"{key}: {not_a(*other.groups())}"
    if denied := re.match(r"Importing '(.+?)' is not allowed", reason):
        return f"{key}: {denied.group(1)} is {REFUSED}"
    if none := re.match(r"Not a valid subclass of (\w+)\. Got value: ([^\n]*)", reason):
        return f"{key}: {none.group(2)[:80]} is no {none.group(1)}; name a class of that kind"
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
