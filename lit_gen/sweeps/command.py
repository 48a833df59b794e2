"""The `command` of a sweep file and its macros: from parameters to the arguments of `lit-gen run`."""

import json
import os
import re
from pathlib import Path
from typing import Any

from lit_gen.core.errors import UserError

JSON_FILE = "${args_json_file}"
"""The macro for the path of a file that holds the parameters as JSON."""
_MACRO = re.compile(r"\$\{(\w+)\}")
_ENVIRONMENT_MACRO = re.compile(r"\$\{envvar:([A-Z0-9_]*)\}")


def command_tail(config: dict[str, Any], path: Path) -> list[str]:
    """Return the elements of `command` after `run`, with the macros for arguments."""
    example = "write it as [${env}, lit-gen, run, ${args}]"
    command = config.get("command", ["run", "${args}"])
    if not isinstance(command, list):
        raise UserError(f"{path}: command: expected a list, got {command!r:.200}; {example}")
    parts = [_ENVIRONMENT_MACRO.sub(lambda match: os.environ.get(match[1], match[1]), str(part)) for part in command]
    if "run" not in parts:
        raise UserError(f"{path}: command: a local sweep needs the element `run` of `lit-gen run`; {example}")
    tail = parts[parts.index("run") + 1 :]
    for part in tail:
        macro = _MACRO.fullmatch(part)
        if macro and macro[1] not in (known := [*_MACROS, "args_json", "args_json_file"]):
            raise UserError(f"{path}: command: {part} is not known after `run`; choose from {', '.join(known)}")
    return tail


_MACROS = {
    "args": lambda key, value: [f"--{key}={value}"],
    "args_no_equals": lambda key, value: [f"--{key}", str(value)],
    "args_no_hyphens": lambda key, value: [f"{key}={value}"],
    "args_no_boolean_flags": lambda key, value: (
        [f"--{key}={value}"] if not isinstance(value, bool) else [f"--{key}"] if value else []
    ),
    "args_append_hydra": lambda key, value: [f"+{key}={value}"],
    "args_override_hydra": lambda key, value: [f"++{key}={value}"],
}


def arguments_of(command: list[str], parameters: dict[str, Any]) -> list[str]:
    """Return the arguments of a trial: the elements of the command with its parameters in place of the macros.

    `JSON_FILE` stays: only who runs the trial knows the folder of the sweep.
    """
    arguments: list[str] = []
    for part in command:
        if part == "${args_json}":
            arguments.append(json.dumps(parameters))
        elif part != JSON_FILE and (macro := _MACRO.fullmatch(part)):
            for key, value in parameters.items():
                arguments += _MACROS[macro[1]](key, value)
        else:
            arguments.append(part)
    return arguments
