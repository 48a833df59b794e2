"""Check the files and the arguments of a configuration before the parser reads them.

The parser opens any path that a value names, even a FIFO, and silently keeps the later of two keys. So each file, and
each file that it names, is read here first.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from lit_gen.core.errors import UserError
from lit_gen.core.imports import REFUSED, may_be_named
from lit_gen.core.yaml import load_yaml, parse_yaml

ENDINGS = (".yaml", ".yml")
MAX_LEVELS = 16
"""Largest number of parts of a dotted key, `init_args` included: each class within another doubles the parsing time."""


def check_config(file: Path) -> None:
    """Raise a UserError if a file is not a configuration, or if the parser would misread it.

    Raises:
        UserError: If the file, or one that it names, cannot be read within the limits of `load_yaml`; if it does not
            hold keys; if it gives both a file or class of a group and a dotted key of that group, of which the parser
            would keep only the later; or if a class may not be named.
    """
    config = _load(file)
    if not isinstance(config, dict):
        raise UserError(f"{file}: expected keys with values, such as model: ..., got {str(config)[:60]}")
    for key in config:
        if not isinstance(key, str):
            raise UserError(f"{file}: {key}: no such key; lit-gen fit --help lists the keys")
        parts = key.split(".")
        for group in (".".join(parts[:end]) for end in range(1, len(parts))):
            if isinstance(config.get(group), str):
                raise UserError(
                    f"{file}: {key} conflicts with {group}: {config[group]}; give --{key} on the command line, or "
                    f"write the keys of {group} below it"
                )
    _check_values(config, file, "", (file.resolve(),))


def check_argument(word: str) -> None:
    """Raise a UserError if an argument `--key=value` names a file or class that `check_config` refuses."""
    key, _, value = word.lstrip("-").partition("=")
    content: Any = value
    if value.startswith(("{", "[")):
        with suppress(UserError):  # the parser reports the error
            content = parse_yaml(value, key)
    _check_values(content, None, key, ())


@contextmanager
def opening(file: Path, key: str) -> Iterator[None]:
    """Mark the experiment that a key names as open, so that those that it names cannot lead back to it.

    Raises:
        UserError: If the experiment is open already.
    """
    above, file = _opened.get(), file.resolve()
    if file in above:
        raise UserError(f"{key}: {file} leads back to itself; name another experiment")
    token = _opened.set((*above, file))
    try:
        yield
    finally:
        _opened.reset(token)


_opened: ContextVar[tuple[Path, ...]] = ContextVar("opened", default=())


def _load(file: Path) -> Any:
    try:
        return load_yaml(file)
    except FileNotFoundError:
        raise UserError(f"{file}: not found; give the path of a configuration") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read ({error}); give the path of a configuration") from None


def _check_values(content: Any, file: Path | None, key: str, above: tuple[Path, ...]) -> None:
    """Check each value of a file that names a class or a file."""
    prefix = f"{file}: " if file is not None else ""
    for name, value in _texts(content, key):
        if name.count(".") >= MAX_LEVELS:
            raise UserError(f"{prefix}{_named(name)}: more than {MAX_LEVELS} levels, the limit; use fewer")
        if name.rpartition(".")[2] == "class_path" and "." in value and not may_be_named(value):
            raise UserError(f"{prefix}{_named(name)}: {value} is {REFUSED}")
        for path in {(file.parent if file is not None else Path()) / value, Path(value)}:
            mode = _mode(path)
            if mode is None or stat.S_ISDIR(mode):
                continue
            if not stat.S_ISREG(mode):
                raise UserError(f"{prefix}{_named(name)}: {value} is not a regular file; give an ordinary file")
            if path.suffix in ENDINGS and name not in ("config", *NAMES_OF_EXPERIMENTS):
                if path.resolve() in above:
                    raise UserError(f"{prefix}{_named(name)}: {value} includes itself; copy its content instead")
                _check_values(_load(path), path, name, (*above, path.resolve()))


NAMES_OF_EXPERIMENTS = ("first_stage.run", "reflow.teacher")
"""Keys whose file is another experiment, which is checked when it is read."""


def _mode(path: Path) -> int | None:
    with suppress(OSError, ValueError):
        return os.stat(path).st_mode
    return None


def _named(key: str) -> str:
    return ".".join(part for part in key.split(".") if part not in ("init_args", "class_path"))


def _texts(content: Any, key: str) -> Iterator[tuple[str, str]]:
    """Yield the texts in a configuration with their dotted keys."""
    if isinstance(content, dict):
        for name, value in content.items():
            yield from _texts(value, f"{key}.{name}" if key else str(name))
    elif isinstance(content, list):
        for value in content:
            yield from _texts(value, key)
    elif isinstance(content, str):
        yield key, content
