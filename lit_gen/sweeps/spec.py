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

import functools
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_gen.core.errors import UserError
from lit_gen.core.yaml import load_yaml
from lit_gen.runs.directory import TRAINED_FIRST
from lit_gen.sweeps.bayes import Search
from lit_gen.sweeps.command import arguments_of, command_tail
from lit_gen.sweeps.hyperband import Hyperband, parse_early_terminate
from lit_gen.sweeps.named_files import ENDINGS, NamedFiles
from lit_gen.sweeps.objective import Objective, parse_objective
from lit_gen.sweeps.schema import read_config
from lit_gen.sweeps.search_space import Space, draw, grid_setting, grid_size, num_draws, parse_space, through_json
from lit_gen.sweeps.trial import Trial, option

MAX_TRIALS = 100_000
"""Largest number of trials of a sweep file."""
SettingsOf = Callable[[str | None], dict[str, Any]]
"""Function from the name of a configuration file to its values by dotted key."""


@dataclass(frozen=True)
class Sweep:
    """The trials of one or several sweep files.

    Args:
        name: Name of the sweep's folder and of the group in W&B: `name` in the first file, or the name of that file.
        files: The sweep files.
        trials: The trials of all files in order, each once.
        notes: Lines for the user: descriptions of the files, runs to train first.
        searches: Files whose trials are proposed one after the other, with `method: bayes`.
    """

    name: str
    files: list[Path]
    trials: list[Trial]
    notes: list[str]
    searches: list[Search] = field(default_factory=list)


@dataclass(frozen=True)
class _Maker:
    """Function from a setting of the parameters of a file to the trial."""

    config: dict[str, Any]
    path: Path
    command: list[str]
    objective: Objective | None
    hyperband: Hyperband | None
    named_files: NamedFiles
    settings_of: SettingsOf

    def __call__(self, setting: dict[str, Any]) -> Trial:
        parameters = {key: through_json(value) for key, value in setting.items()}
        try:
            hashes = self.named_files.hashes(self.command, parameters)
            key = json.dumps([self.command, parameters, hashes], sort_keys=True, default=str)
        except TypeError as error:  # of keys that are no texts
            where = f"{self.path}: parameters"
            raise UserError(f"{where}: a value that JSON cannot hold ({error}); use texts as keys") from None
        identity = hashlib.sha256(key.encode()).hexdigest()[:12]
        arguments = arguments_of(self.command, parameters)
        arguments += _place(self.config, arguments)
        trial = Trial(identity, parameters, arguments, self.objective, self.hyperband)
        _check_monitored(trial, self.settings_of)
        return trial


def load_sweep(files: Sequence[Path | str], seed: int = 0, count: int | None = None, name: str | None = None) -> Sweep:
    """Read sweep files and list their trials.

    Args:
        files: Sweep files; a union of grids takes several files.
        seed: Seed of the searches.
        count: Largest number of trials per file, as `wandb agent --count`; random and bayes need it or `run_cap`.
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
    configs = [read_config(path) for path in paths]
    searches = []
    settings_of, named_files = functools.cache(_settings_of), NamedFiles()
    for path, config in zip(paths, configs, strict=True):
        rules = parse_objective(config, path), parse_early_terminate(config, path)
        make = _Maker(config, path, command_tail(config, path), *rules, named_files, settings_of)
        space = parse_space(config.get("parameters"), f"{path}: parameters")
        number = _num_trials(config, path, space, count)
        if config["method"] == "bayes":
            searches.append(_search(path, space, seed, number, make))
        listed = [] if config["method"] == "bayes" else list(_trials(config, space, seed, number, make))
        for trial in listed:
            trials.setdefault(trial.id, trial)
        if (distinct := len({trial.id for trial in listed})) < len(listed):
            advice = ""
            if config["method"] == "random":
                exhausted = distinct >= num_draws(space)
                advice = "; these are all: add values to parameters for more" if exhausted else ""
                advice = advice or "; raise run_cap or --count for more"
            notes.append(f"{path}: {len(listed)} settings give {distinct} distinct trials{advice}")
        if config.get("description"):
            notes.append(f"{path}: {' '.join(config['description'].split())}")
    notes += dict.fromkeys(note for trial in trials.values() for note in _trained_first(trial, settings_of))
    return Sweep(
        _folder_name(name or configs[0].get("name") or paths[0].stem), paths, list(trials.values()), notes, searches
    )


def _trained_first(trial: Trial, settings_of: SettingsOf) -> Iterator[str]:
    """Yield a note for each experiment that a trial trains first, with the number of images of both."""
    file, budget, default = option(trial.arguments, "config"), "budget.num_images", "the default number of"
    config = settings_of(file)
    for key in TRAINED_FIRST:
        first = str(option(trial.arguments, key) or config.get(key))
        if first.endswith(ENDINGS):
            of_first = option(trial.arguments, f"{key}.{budget}") or config.get(f"{key}_overrides.{budget}")
            of_first = of_first or settings_of(first).get(budget, default)
            own = option(trial.arguments, budget) or config.get(budget, default)
            yield f"{file}: first {first}: {of_first} images ({key}.{budget}), then itself: {own} images ({budget})"


def _check_monitored(trial: Trial, settings_of: SettingsOf) -> None:
    """Raise a UserError if a trial is to be stopped early and surely has no evaluations during its training.

    What this cannot see, such as a group file, the trial finds before it trains.
    """
    file = option(trial.arguments, "config")
    if trial.hyperband is None or option(trial.arguments, "monitor") is not None or file is None:
        return
    config = settings_of(file)
    every = option(trial.arguments, "monitor.every") or config.get("monitor.every", 0)
    if config and "monitor" not in config and str(every) == "0":
        raise UserError(
            f"{trial.hyperband.file}: early_terminate: {file} has no evaluations during training to compare trials by; "
            "add the parameter monitor.every, a number of images"
        )


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


def _num_trials(config: dict[str, Any], path: Path, space: Space, count: int | None) -> int:
    """Return the number of settings of a file.

    Raises:
        UserError: If it is not given, or above the limit.
    """
    method = config["method"]
    limits = [limit for limit in (count, config.get("run_cap")) if limit is not None]
    if method == "grid":
        limits.append(grid_size(space))
    elif not limits:
        raise UserError(f"{path}: method: {method} needs an end; set run_cap in the file, or pass --count")
    if (number := min(limits)) > MAX_TRIALS:
        much = f"{number:,}" if number < 10**15 else f"about 10^{math.log10(number):.0f}"
        raise UserError(
            f"{path}: parameters: {much} trials, and the limit is {MAX_TRIALS:,}; give fewer values, or a run_cap or "
            "--count within the limit"
        )
    return number


def _trials(
    config: dict[str, Any], space: Space, seed: int, number: int, make: Callable[[dict[str, Any]], Trial]
) -> Iterator[Trial]:
    for index in range(number):
        yield make(grid_setting(space, index) if config["method"] == "grid" else draw(space, f"{seed}/{index}"))


def _search(path: Path, space: Space, seed: int, number: int, make: _Maker) -> Search:
    """Return the search of a file with `method: bayes`; raise a UserError if it cannot make a trial."""
    objective = make.objective
    if objective is None:
        raise UserError(f"{path}: method: bayes needs a metric to optimize; set metric.name to a score of the results")
    search = Search(path, space, objective, number, seed, make.command, make)
    search.trial(search.middle)
    return search


def _place(config: dict[str, Any], arguments: list[str]) -> list[str]:
    """Return the arguments that log a trial in the file's project and entity, unless its own arguments name others."""
    keys = [key for key in ("project", "entity") if config.get(key) and option(arguments, f"wandb.{key}") is None]
    return [f"--wandb.{key}={config[key]}" for key in keys]
