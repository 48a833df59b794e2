"""Read W&B sweep files into trials.

`wandb sweep FILE` and `wandb agent` accept the same files, and a trial gets the same arguments here as there:

- `${args}` is one `--key=value` per parameter, with Python's `str` of the value: `None`, `True`, `[1, 2]`, `0.001`.
  W&B stores values as JSON, which turns `2.0` into the integer `2`.
- Nested `parameters` become one argument with a dictionary, `--optimizer={'lr': 0.1}`; W&B does not join the keys with
  dots. A dotted key at the top level, `optimizer.lr: {values: [...]}`, becomes `--optimizer.lr=0.1`.
- `command` is the command line of `wandb agent`. The elements after `run` are the arguments, which may include fixed
  ones: `[${env}, lit-gen, run, --config=conf/experiment/digits.yaml, ${args}]`.
- A grid is the full product of the values, in the order of the file, last key fastest (W&B sorts the keys by name).
- W&B has no seed for `method: random`. Here, value i of a parameter depends only on (seed, i, name of the parameter): a
  larger `run_cap` or another parameter does not change the other values.
"""

import difflib
import functools
import hashlib
import json
import math
import os
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_gen.core.errors import UserError
from lit_gen.core.files import read_regular
from lit_gen.core.yaml import load_yaml, parse_yaml
from lit_gen.runs.directory import TRAINED_FIRST
from lit_gen.sweeps.distributions import Distribution, parse_distribution

# W&B's top-level keys; those of the second set need W&B's own programs.
_KEYS = {
    *("method", "parameters", "name", "description", "program", "command", "metric", "run_cap"),
    *("project", "entity", "early_terminate", "apiVersion", "kind"),
}
_FOREIGN_KEYS = {"metrics", "scheduler", "controller", "job", "image_uri"}
_ENDINGS = (".yaml", ".yml")
MAX_TRIALS = 100_000
"""Largest number of trials of a sweep file."""
MAX_FILES = 1000
"""Largest number of configuration files that one trial names, directly or through other files."""
_PARAMETER_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_MACRO = re.compile(r"\$\{(\w+)\}")
_ENVIRONMENT_MACRO = re.compile(r"\$\{envvar:([A-Z0-9_]*)\}")

# A tree of distributions: nested `parameters` are nested dictionaries.
Space = dict[str, "Distribution | Space"]


@dataclass(frozen=True)
class Trial:
    """One setting of the parameters of a sweep.

    Args:
        id: Hash of the fixed arguments, the parameters and the files they name; independent of the sweep file.
        parameters: The parameters as W&B stores them, in the order of the file.
        arguments: The arguments of `lit-gen run`.
        metric: `metric.name` of the sweep file.
    """

    id: str
    parameters: dict[str, Any]
    arguments: list[str]
    metric: str | None = None


@dataclass(frozen=True)
class Sweep:
    """The trials of one or several sweep files.

    Args:
        name: Name of the sweep's folder and of the group in W&B: `name` in the first file, or the name of that file.
        files: The sweep files.
        trials: The trials of all files in order, each once.
        notes: Lines for the user: descriptions of the files, keys that a local sweep ignores, runs to train first.
    """

    name: str
    files: list[Path]
    trials: list[Trial]
    notes: list[str]


def load_sweep(files: Sequence[Path | str], seed: int = 0, count: int | None = None, name: str | None = None) -> Sweep:
    """Read sweep files and list their trials.

    Args:
        files: Sweep files; a union of grids takes several files.
        seed: Seed of the random searches.
        count: Largest number of trials per file, as `wandb agent --count`; a random search needs it or `run_cap`.
        name: Name of the sweep; if None, the name in the first file.

    Raises:
        UserError: If a file cannot be read or does not follow the format; the message names file and key.
    """
    if not files:
        raise UserError("SWEEP.yaml: missing; give at least one sweep file, such as sweeps/quickstart.yaml")
    if count is not None and count < 1:
        raise UserError(f"--count: {count} is not a positive number; give 1 or more")
    paths = [Path(file) for file in files]
    trials: dict[str, Trial] = {}
    notes = []
    configs = [_read(path) for path in paths]
    settings_of = functools.cache(_settings_of)
    for path, config in zip(paths, configs, strict=True):
        listed = list(_trials(config, path, seed, count))
        for trial in listed:
            trials.setdefault(trial.id, trial)
        if (distinct := len({trial.id for trial in listed})) < len(listed):
            advice = ""
            if config["method"] == "random":
                exhausted = distinct >= _num_draws(_space(config["parameters"], f"{path}: parameters"))
                advice = "; these are all: add values to parameters for more" if exhausted else ""
                advice = advice or "; raise run_cap or --count for more"
            notes.append(f"{path}: {len(listed)} settings give {distinct} distinct trials{advice}")
        if config.get("description"):
            notes.append(f"{path}: {' '.join(config['description'].split())}")
        if "early_terminate" in config:
            notes.append(f"{path}: early_terminate needs wandb agent; every trial runs to its end here")
    notes += dict.fromkeys(note for trial in trials.values() for note in _trained_first(trial, settings_of))
    return Sweep(_folder_name(name or configs[0].get("name") or paths[0].stem), paths, list(trials.values()), notes)


def option(arguments: Sequence[str], key: str) -> str | None:
    """Return the last value of `--key=value` or `--key value` in the arguments; None if there is none."""
    value = None
    for index, argument in enumerate(arguments):
        if argument.startswith(f"--{key}="):
            value = argument.partition("=")[2]
        elif argument == f"--{key}" and index + 1 < len(arguments):
            value = arguments[index + 1]
    return value


def _trained_first(trial: Trial, settings_of: Callable[[str | None], dict[str, Any]]) -> Iterator[str]:
    """Yield a note for each experiment that a trial trains first, with the number of images of both."""
    file, budget, default = option(trial.arguments, "config"), "budget.num_images", "the default number of"
    config = settings_of(file)
    for key in TRAINED_FIRST:
        first = str(option(trial.arguments, key) or config.get(key))
        if first.endswith(_ENDINGS):
            of_first = option(trial.arguments, f"{key}.{budget}") or config.get(f"{key}_overrides.{budget}")
            of_first = of_first or settings_of(first).get(budget, default)
            own = option(trial.arguments, budget) or config.get(budget, default)
            yield f"{file}: first {first}: {of_first} images ({key}.{budget}), then itself: {own} images ({budget})"


def _settings_of(file: str | None) -> dict[str, Any]:
    """Return the values of a configuration file by dotted key; empty if unreadable, which the trial will report."""
    try:
        return dict(_leaves(load_yaml(str(file)), ""))
    except (OSError, ValueError, UserError):
        return {}


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _leaves(part, f"{key}.{name}" if key else str(name))
    else:
        yield key, value


def _folder_name(name: str) -> str:
    cleaned = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")
    if len(cleaned) > 100:
        raise UserError(f"--name: {cleaned:.20}... has {len(cleaned)} letters; give one of at most 100")
    if not cleaned:
        raise UserError(f"--name: {name!r:.200} holds no letter or digit to name a folder with; give one that does")
    return cleaned


def _read(path: Path) -> dict[str, Any]:
    try:
        config = load_yaml(path)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such sweep file; check the path") from None
    except (OSError, ValueError) as error:  # ValueError: an impossible file name
        raise UserError(f"{path}: cannot read the sweep file: {error}") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: not a mapping; give one with the keys `method` and `parameters`")
    _check_keys(config, path)
    _check_values(config, path)
    _check_metric(config, path)
    return config


def _check_keys(config: dict[str, Any], path: Path) -> None:
    for key in config:
        if key in _FOREIGN_KEYS:
            raise UserError(f"{path}: {key}: local sweeps do not support this key; use `wandb sweep` and `wandb agent`")
        if key not in _KEYS:
            close = difflib.get_close_matches(str(key), _KEYS, n=1)
            raise UserError(f"{path}: unknown key {key!r:.99}; " + (f"did you mean {close[0]}?" if close else _known()))


def _check_values(config: dict[str, Any], path: Path) -> None:
    if "method" not in config:
        raise UserError(f"{path}: method is missing; set it to grid or random")
    if config["method"] == "bayes":
        raise UserError(f"{path}: method: bayes is not supported locally yet; use `wandb sweep` and `wandb agent`")
    if config["method"] not in ("grid", "random"):
        raise UserError(f"{path}: method: unknown method {config['method']!r:.200}; known: grid, random")
    cap = config.get("run_cap")
    if cap is not None and (isinstance(cap, bool) or not isinstance(cap, int) or cap < 1):
        raise UserError(f"{path}: run_cap: expected a whole number of at least 1, got {cap!r:.40}")
    for key in ("name", "description", "project", "entity"):
        if not isinstance(config.get(key), str | None):
            raise UserError(f"{path}: {key}: expected text, got {config[key]!r:.200}; put it into quotes")


def _known() -> str:
    return f"known: {', '.join(sorted(_KEYS))}"


def _check_metric(config: dict[str, Any], path: Path) -> None:
    if "metric" not in config:
        return
    metric = config["metric"]
    if not isinstance(metric, dict) or not isinstance(metric.get("name"), str):
        raise UserError(f"{path}: metric: expected a mapping with a `name`, got {metric!r:.200}")
    if metric.get("goal", "minimize") not in ("minimize", "maximize"):
        raise UserError(f"{path}: metric.goal: expected minimize or maximize, got {metric['goal']!r:.200}")


def _trials(config: dict[str, Any], path: Path, seed: int, count: int | None) -> Iterator[Trial]:
    space = _space(config.get("parameters"), f"{path}: parameters")
    command = _command(config, path)
    limits = [limit for limit in (count, config.get("run_cap")) if limit is not None]
    if config["method"] == "grid":
        limits.append(_grid_size(space))
    elif not limits:
        raise UserError(f"{path}: method: random needs an end; set run_cap in the file, or pass --count")
    if (number := min(limits)) > MAX_TRIALS:
        much = f"{number:,}" if number < 10**15 else f"about 10^{math.log10(number):.0f}"
        raise UserError(
            f"{path}: parameters: {much} trials, and the limit is {MAX_TRIALS:,}; give fewer values, or a run_cap or "
            "--count within the limit"
        )
    for index in range(number):
        setting = _grid_setting(space, index) if config["method"] == "grid" else _draw(space, f"{seed}/{index}")
        parameters = {key: _through_json(value) for key, value in setting.items()}
        try:
            key = json.dumps([command, parameters, _contents(command, parameters)], sort_keys=True, default=str)
        except TypeError as error:  # of keys that are no texts
            raise UserError(f"{path}: parameters: a value that JSON cannot hold ({error}); use texts as keys") from None
        identity = hashlib.sha256(key.encode()).hexdigest()[:12]
        arguments = _arguments(command, parameters)
        yield Trial(identity, parameters, arguments + _place(config, arguments), config.get("metric", {}).get("name"))


def _place(config: dict[str, Any], arguments: list[str]) -> list[str]:
    """Return the arguments that log a trial in the file's project and entity, unless its own arguments name others."""
    keys = [key for key in ("project", "entity") if config.get(key) and option(arguments, f"wandb.{key}") is None]
    return [f"--wandb.{key}={config[key]}" for key in keys]


def _contents(command: list[str], parameters: dict[str, Any]) -> dict[str, str]:
    """Return hashes of the configuration files that a trial names, directly or through other files.

    They are part of its id: an edited file makes another trial. A name in a file is relative to the file or, as for the
    teacher of a reflow, to the working directory.
    """
    words = [word.rpartition("=")[2] for word in command] + _texts(parameters)
    files = [word for word in words if word.endswith(_ENDINGS)]
    hashes: dict[str, str] = {}
    while files:
        file = files.pop()
        if file in hashes or not os.path.isfile(file):
            continue
        if len(hashes) == MAX_FILES:
            raise UserError(
                f"{next(iter(hashes))}: names more than {MAX_FILES} configuration files, by way of others; name fewer"
            )
        content = read_regular(file)
        hashes[file] = hashlib.sha256(content).hexdigest()
        for name in _files_named_in(content):
            files += [os.path.normpath(os.path.join(os.path.dirname(file), name)), os.path.normpath(name)]
    return hashes


@functools.lru_cache
def _files_named_in(content: bytes) -> list[str]:
    """Return the configuration files that a file names; none if it is not YAML, which the trial will report."""
    try:
        return [text for text in _texts(parse_yaml(content.decode(), "")) if text.endswith(_ENDINGS)]
    except (UserError, ValueError):
        return []


def _texts(value: Any) -> list[str]:
    """Return all texts in a value, at any depth."""
    if isinstance(value, dict | list):
        return [text for item in (value.values() if isinstance(value, dict) else value) for text in _texts(item)]
    return [value] if isinstance(value, str) else []


def _space(entries: Any, where: str) -> Space:
    if not isinstance(entries, dict) or not entries:
        raise UserError(f"{where}: expected a mapping of at least one parameter, got {entries!r:.200}")
    space: Space = {}
    for key, entry in entries.items():
        if not isinstance(key, str) or not _PARAMETER_NAME.fullmatch(key):
            raise UserError(f"{where}: {key!r:.200} cannot name a parameter; use letters, digits, `_`, `.` and `-`")
        here = f"{where}.{key}"
        if not isinstance(entry, dict):
            raise UserError(f"{here}: expected a mapping such as `values: [...]` or `value: ...`, got {entry!r:.200}")
        if "parameters" in entry:
            if len(entry) > 1:
                raise UserError(f"{here}: nested `parameters` stand alone; remove the other keys")
            space[key] = _space(entry["parameters"], f"{here}.parameters")
        else:
            space[key] = parse_distribution(entry, here)
    return space


def _grid_size(space: Space) -> int:
    """Return the number of settings of a grid, without listing them."""
    return math.prod(_grid_size(child) if isinstance(child, dict) else child.num_values for child in space.values())


def _num_draws(space: Space) -> float:
    """Return the number of distinct settings that a random search can draw; infinite if one parameter is continuous."""
    return math.prod(_num_draws(child) if isinstance(child, dict) else child.num_draws for child in space.values())


def _grid_setting(space: Space, index: int) -> dict[str, Any]:
    """Return setting number `index` of a grid, the last key fastest."""
    setting = dict.fromkeys(space)
    for name, child in reversed(space.items()):
        index, place = divmod(index, _grid_size({name: child}))
        setting[name] = _grid_setting(child, place) if isinstance(child, dict) else child.value(place)
    return setting


def _draw(space: Space, key: str) -> dict[str, Any]:
    return {
        name: _draw(child, f"{key}/{name}") if isinstance(child, dict) else child.sample(random.Random(f"{key}/{name}"))
        for name, child in space.items()
    }


def _through_json(value: Any) -> Any:
    """Return a value as W&B's server returns it: its JSON writes a whole float below 1e21 as an integer."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e21:
        return int(value)
    if isinstance(value, list):
        return [_through_json(item) for item in value]
    if isinstance(value, dict):
        return {key: _through_json(item) for key, item in value.items()}
    return value


def _command(config: dict[str, Any], path: Path) -> list[str]:
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
        if macro and macro[1] not in _MACROS:
            raise UserError(f"{path}: command: {part} is not known after `run`; choose from {', '.join(_MACROS)}")
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


def _arguments(command: list[str], parameters: dict[str, Any]) -> list[str]:
    arguments: list[str] = []
    for part in command:
        if macro := _MACRO.fullmatch(part):
            for key, value in parameters.items():
                arguments += _MACROS[macro[1]](key, value)
        else:
            arguments.append(part)
    return arguments
