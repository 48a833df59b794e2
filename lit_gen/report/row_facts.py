"""Settings and environment of each row, stored once for all rows, and the commands that reproduce it."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from lit_gen.core.errors import UserError
from lit_gen.core.text import printable
from lit_gen.report.results import Result
from lit_gen.report.rows import Row
from lit_gen.report.run_comparison import COST, PLACES
from lit_gen.runs.differences import ENVIRONMENT, flatten, text_of

OF_THE_ROW = ("sampler", "evaluation")
"""Sections of a configuration whose values a result holds as they were used."""


class Facts:
    """Facts by key, each different text stored once; keys with one value for all do not tell rows apart.

    Attributes:
        keys: Keys that some rows differ in.
        values: The different texts.
        of_runs: For each run, the index of its value of each key; -1 if it does not have the key.
        of_rows: For each row, the number of its run and its own facts, in the same form.
    """

    def __init__(self, runs: Sequence[Mapping[str, str]], rows: Mapping[str, tuple[int | None, Mapping[str, str]]]):
        own = [facts for _, facts in rows.values()]
        shared, special = _differing(runs), _differing(own)
        self.keys = [*special, *shared]
        self.values: list[str] = []
        index: dict[str, int] = {}

        def number(text: str | None) -> int:
            if text is None:
                return -1
            if text not in index:
                index[text] = len(self.values)
                self.values.append(text)
            return index[text]

        self.of_runs = [[number(facts.get(key)) for key in shared] for facts in runs]
        self.of_rows = {
            name: [-1 if run is None else run, *(number(facts.get(key)) for key in special)]
            for name, (run, facts) in rows.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the facts for the script of the page."""
        return {"keys": self.keys, "values": self.values, "runs": self.of_runs, "rows": self.of_rows}


def _differing(sides: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the keys in which some of the mappings differ."""
    keys = dict.fromkeys(key for side in sides for key in side)
    return [key for key in keys if len({side.get(key) for side in sides}) > 1]


def facts_of_run(config: Mapping[str, Any], metadata: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings, data, environment and cost of a training run as texts by dotted key.

    Args:
        config: Its configuration.
        metadata: Its run.json.
    """
    settings = {key: value for key, value in config.items() if key not in (*PLACES, *OF_THE_ROW)}
    others = {key: metadata[key] for key in (*ENVIRONMENT, *COST) if key in metadata}
    data = {"images": metadata["data"]} if "data" in metadata else {}
    return _texts(flatten(settings) | flatten(others) | flatten(data))


def facts_of_row(row: Row) -> dict[str, str]:
    """Return the sampler, weights, seeds and device of the evaluations of a row as texts by dotted key."""
    record = row.first.record
    seeds = sorted({result.record.seed for result in row.results})
    facts: dict[str, Any] = {
        "model": row.first.model,
        **flatten({"sampler": record.sampler}),
        "weights": record.weights,
        "nfe": record.nfe,
        "evaluation.seed": ", ".join(map(str, seeds)),
        "training_seed": ", ".join(sorted({str(result.record.training_seed) for result in row.results})),
        "sampling device": row.first.get("timing.device"),
    }
    return _texts({key: value for key, value in facts.items() if value is not None})


def _texts(facts: Mapping[str, Any]) -> dict[str, str]:
    return {printable(key): printable(text_of(value)) for key, value in facts.items()}


def environment_of(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Return the device, code, packages, Python and platform of a run as texts."""
    commit = metadata.get("git_commit")
    packages = ", ".join(f"{name} {version}" for name, version in metadata.get("packages", {}).items())
    found = {
        "device": metadata.get("device"),
        "commit": f"{commit[:10]}{' (dirty)' if metadata.get('git_dirty') else ''}" if commit else None,
        "python": metadata.get("python"),
        "platform": metadata.get("platform"),
        "packages": packages or None,
    }
    return {name: printable(value) for name, value in found.items() if value}


def command_of(result: Result, config: Mapping[str, Any]) -> str:
    """Return the command that repeats an evaluation; empty for foreign samples.

    If the result does not hold all that is needed, it is the command that repeats the evaluations of the run.

    Args:
        result: The evaluation.
        config: Configuration of its run; empty if it is unknown.
    """
    if result.foreign:
        return ""
    directory = result.path.parents[2]
    try:
        words = ["lit-gen", "evaluate", str(directory), *_arguments(result, config)]
    except UserError:
        words = ["lit-gen", "reproduce", str(directory), "--evaluation-only"]
    return printable(shlex.join(words))


def _arguments(result: Result, config: Mapping[str, Any]) -> list[str]:
    from lit_gen.experiment.reproduction import arguments_of  # imports torch

    evaluation = config.get("evaluation")
    return arguments_of(result.record.to_dict(), evaluation if isinstance(evaluation, dict) else {})
