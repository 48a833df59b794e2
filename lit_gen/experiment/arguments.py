"""Arguments of a command line, in the order that the parser needs."""

import ast
import contextlib
import json
import re
from collections.abc import Sequence
from typing import Any

from lit_gen.experiment import names


def normalise_arguments(arguments: Sequence[str]) -> list[str]:
    """Return arguments in the order that the parser needs; `wandb agent` gives them in any order.

    A configuration file comes first (given later, it would discard what comes before it), then parents before their
    parts (`--sampler` before `--sampler.steps`); a sweep's null, which arrives as the text `None`, also in a list or
    dictionary in Python's notation, becomes null.
    """
    pairs: list[str] = []
    words = list(arguments)
    while words:
        word = words.pop(0)
        if word.startswith("-") and "=" not in word and words and not re.match(r"--?[a-zA-Z]", words[0]):
            word = f"{word}={words.pop(0)}"
        key, equals, value = word.partition("=")
        pairs.append(_with_null(f"{key}{equals}{names.current(value)}"))
    if any("+=" in pair for pair in pairs):
        return sorted(pairs, key=lambda pair: not is_config(pair))

    def depth(pair: str) -> tuple[bool, int]:
        return not is_config(pair), pair.partition("=")[0].count(".")

    return sorted(pairs, key=depth)


def as_arguments(settings: dict[str, Any]) -> list[str]:
    """Return the arguments that set keys to values; strings are given as on the command line."""
    return [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in settings.items()]


def _with_null(pair: str) -> str:
    key, equals, value = pair.partition("=")
    if value == "None":
        return f"{key}=null"
    if value.startswith(("[", "{")) and "None" in value:
        with contextlib.suppress(ValueError, SyntaxError):  # YAML's own notation stays as it is
            return f"{key}={json.dumps(ast.literal_eval(value))}"
    return pair


def is_config(pair: str) -> bool:
    """Return whether an argument names a configuration file."""
    return pair.partition("=")[0] in ("--config", "-c")
