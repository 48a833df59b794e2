"""Open a run that a command names, with the changes to its configuration that the command asks for."""

import itertools
from typing import Any

from lit_gen.cli import help
from lit_gen.core.errors import UserError
from lit_gen.experiment import key_help
from lit_gen.experiment.parser import ExperimentCLI
from lit_gen.experiment.stages import KEYS_OF_THE_MACHINE
from lit_gen.runs.directory import Run

KEYS_OF_AN_EVALUATION = ("sampler", "evaluation", "tracker", "wandb")
KEYS_OF_A_TRAINING = ("model", "data", "budget", "ema", "first_stage", "trainer")


def one_run(arguments: list[str], verb: str) -> tuple[Run, list[str]]:
    """Return the run that the first argument names, and the arguments after it.

    Raises:
        UserError: If it is not a run, or more than one is named, as by a pattern that the shell has filled in.
    """
    names = list(itertools.takewhile(lambda word: not word.startswith("-"), arguments))
    if len(names) > 1:
        more = f" and {len(names) - 2} more" if len(names) > 2 else ""
        raise UserError(
            f"RUN: lit-gen {verb} takes one run at a time, not {names[0]} and {names[1]}{more}; do several one after "
            f'another: for run in {names[0]} {names[1]}; do lit-gen {verb} "$run" ...; done'
        )
    return Run.open(names[0]), arguments[1:]


def check_named(arguments: list[str], verb: str) -> None:
    """Raise a UserError unless a run is named first; print the help of a class (`--sampler.help Heun`), if asked."""
    if any(key_help.asked_for(word) for word in arguments[:1]):
        ExperimentCLI(arguments, verb, help.own_options(verb))
    if not arguments or arguments[0].startswith("-"):
        raise UserError(f"RUN: missing; give a run directory, as in lit-gen {verb} runs/digits_edm-...")


def reopen(arguments: list[str], verb: str) -> tuple[Run, ExperimentCLI, bool]:
    """Return the run that the first argument names, and its configuration with the changes that the others ask for.

    Its images may be read from another source; the last value is whether that is asked for.

    Raises:
        UserError: If the run does not exist, or the arguments change a setting of its training.
    """
    check_named(arguments, verb)
    run, rest = one_run(arguments, verb)
    own = ["--config", str(run.config)]
    cli = ExperimentCLI([*own, *rest], verb, help.own_options(verb))
    if all(_is_of_an_evaluation(word) for word in cli.words[1:]):
        return run, cli, False
    saved, asked = ExperimentCLI(own).resolved(), cli.resolved()
    changed = [
        key
        for section in KEYS_OF_A_TRAINING
        for key in _changed_keys(section, saved[section], asked[section])
        if not key.startswith((*KEYS_OF_THE_MACHINE, "data.source"))
    ]
    if changed:
        raise UserError(
            f"{', '.join(changed)}: cannot change, since {run.directory} is trained; give lit-gen {verb} only keys of "
            f"{', '.join(KEYS_OF_AN_EVALUATION)} and data.source, or use lit-gen run to train with other settings"
        )
    return run, cli, saved["data"]["source"] != asked["data"]["source"]


def _is_of_an_evaluation(word: str) -> bool:
    """Return whether an argument `--KEY=VALUE` sets a key of an evaluation, and so none of the training."""
    return word.removeprefix("--").partition("=")[0].partition(".")[0] in KEYS_OF_AN_EVALUATION


def _changed_keys(key: str, saved: Any, asked: Any) -> list[str]:
    """Return the dotted keys in which two settings differ; for another class only `class_path`."""
    if saved == asked:
        return []
    if not isinstance(saved, dict) or not isinstance(asked, dict):
        return [key]
    if saved.get("class_path") != asked.get("class_path"):
        return [f"{key}.class_path"]
    parts = dict.fromkeys([*saved, *asked])
    return [changed for part in parts for changed in _changed_keys(f"{key}.{part}", saved.get(part), asked.get(part))]
