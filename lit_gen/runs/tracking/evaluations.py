"""An evaluation as every tracker records it: name, settings, scores, pictures, and the curve that it is a point of.

one evaluation       its scores at x = NFE, a row of the table of samples
all of one training  a curve of the first score, a distance by default, against NFE for each sampler
"""

import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lit_gen.core.errors import UserError
from lit_gen.core.records import read_record
from lit_gen.runs.directory import Run, environment

PICTURES = ("samples", "neighbours")
"""Pictures of an evaluation that trackers show, by the names of their files."""
AXIS = "nfe"
"""Name of the x axis of the scores: the number of network evaluations of a sample."""


@dataclass(frozen=True)
class LoggedEvaluation:
    """One evaluation, or several that differ only in the sampling seed.

    Attributes:
        run: The run that was scored.
        results: The content of each result.json, by ascending seed.
        folders: Folders of the results.
        config: The resolved configuration.
    """

    run: Run
    results: Sequence[dict[str, Any]]
    folders: Sequence[Path]
    config: dict[str, Any]

    @property
    def result(self) -> dict[str, Any]:
        """The result of the first seed."""
        return self.results[0]

    @property
    def name(self) -> str:
        return evaluation_name(self.run.directory.name, self.result, len(self.results))

    @property
    def settings(self) -> dict[str, Any]:
        """The configuration with the sampler and protocol that were used, the training run, and the code."""
        training = self.result["run"] | {"wandb_id": self.run.metadata.get("wandb_id")}
        used = {key: self.result[key] for key in ("sampler", "protocol")}
        return {**self.config, **used, "run": training, "code": environment()}

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Scores, their standard errors, those of real images, and cost; over seeds the mean and more of each score.

        Several seeds have the mean of each number under its name. Of each score they also have the standard deviation,
        `NAME_std_over_seeds`, and the value of each seed, such as `NAME_seed_0`.
        """
        facts = _facts(self.result)
        if len(self.results) == 1:
            return facts
        facts |= {name: mean for name, (mean, _) in over_repeats(list(map(_facts, self.results))).items()}
        for name, (_, deviation) in over_repeats([result["metrics"] for result in self.results]).items():
            facts |= {f"{name}_std_over_seeds": deviation}
            facts |= {f"{name}_seed_{result['seed']}": result["metrics"][name] for result in self.results}
            errors = [result.get("standard_errors", {}).get(name) for result in self.results]
            if None not in errors:  # that of the mean, since the seeds are independent
                facts[f"{name}_standard_error"] = math.hypot(*errors) / len(errors)
        return facts

    @property
    def numbers(self) -> dict[str, float]:
        """The facts that are numbers."""
        return {name: value for name, value in self.facts.items() if isinstance(value, int | float)}

    @property
    def pictures(self) -> dict[str, Path]:
        """Pictures of the first seed by name."""
        return {name: path for name in PICTURES if (path := self.folders[0] / f"{name}.png").is_file()}

    @property
    def distance(self) -> str | None:
        """The name of the first score, a distance unless the user chose otherwise; None without scores."""
        return next(iter(self.result["metrics"]), None)

    def curve(self) -> list[tuple[str, float, float]]:
        """Return model with sampler, NFE and distance of each evaluation of this run with the same protocol, in order.

        The distance is the mean over sampling seeds.
        """
        points: dict[tuple[str, float], dict[int, float]] = {}
        for result in [*self._others(), *self.results]:
            if not {"model", "sampler", "seed"} <= result.keys():
                continue  # damaged: the leaderboard reports it
            value = result.get("metrics", {}).get(self.distance)
            alike = all(result.get(key) == self.result[key] for key in ("protocol", "weights"))
            if alike and isinstance(value, int | float) and isinstance(result.get("nfe"), int | float):
                points.setdefault((series_name(result), result["nfe"]), {})[result["seed"]] = value
        return [(*at, statistics.fmean(values.values())) for at, values in sorted(points.items())]

    def _others(self) -> Iterator[dict[str, Any]]:
        """Yield the results of the run that can be read."""
        for path in sorted(self.run.evaluations.glob("*/result.json")):
            try:
                yield read_record(path, "delete it")
            except UserError:  # the leaderboard reports it
                continue


def evaluation_name(run: str, result: dict[str, Any], num_repeats: int = 1) -> str:
    """Return the name of an evaluation, such as `EDM Heun nfe 35 seed 0, digits_edm-1234`, or `seeds 0 to 2`."""
    weights = "" if result["weights"] == "ema" else f" {result['weights']} weights"
    seed = result["seed"]
    seeds = f"seed {seed}" if num_repeats == 1 else f"seeds {seed} to {seed + num_repeats - 1}"
    return f"{result['model']} {sampler_name(result)} nfe {result['nfe']:g}{weights} {seeds}, {run}"


def sampler_name(result: Mapping[str, Any]) -> str:
    """Return the name of the sampler of a result, or `one pass` without one."""
    return "one pass" if result["sampler"] is None else str(result["sampler"]["name"])


def series_name(result: Mapping[str, Any]) -> str:
    """Return model and sampler with the settings, but for its steps, that differ from their defaults."""
    sampler = result["sampler"]
    own = "" if sampler is None else " ".join(_changed(sampler, result.get("defaults", {})))
    return " ".join(filter(None, [str(result["model"]), sampler_name(result), own]))


def _changed(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> Iterator[str]:
    """Yield the settings of a sampler that differ from their defaults, and the names of its parts."""
    for key, value in settings.items():
        if isinstance(value, dict):
            yield str(value.get("name", json.dumps(value, sort_keys=True)))
            yield from _changed(value, defaults)
        elif key not in ("name", "steps") and value != defaults.get(settings.get("name", ""), {}).get(key):
            yield f"{key}={value}"


def over_repeats(numbers: Sequence[Mapping[str, Any]]) -> dict[str, tuple[float, float]]:
    """Return the mean and the standard deviation of each number that all of several evaluations have, by its name."""
    shared = [name for name in numbers[0] if all(isinstance(each.get(name), int | float) for each in numbers)]
    values = {name: [float(each[name]) for each in numbers] for name in shared}
    return {
        name: (statistics.fmean(found), statistics.stdev(found) if all(map(math.isfinite, found)) else math.nan)
        for name, found in values.items()
    }


def _facts(result: dict[str, Any]) -> dict[str, Any]:
    """Return the scores of a result, their standard errors, those of real images, and its cost."""
    errors = {f"{name}_standard_error": error for name, error in result.get("standard_errors", {}).items()}
    floors = {
        f"{name}_of_{row}_images": score
        for row, floor in result.get("floors", {}).items()
        for name, score in floor["scores"].items()
    }
    return {**result["metrics"], **errors, **floors, AXIS: result["nfe"], **result["timing"]}
