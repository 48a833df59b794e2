"""Compare two runs: settings, software, data and device that differ, scores side by side, ends of the curves."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lit_gen.core.errors import UserError
from lit_gen.core.yaml import load_yaml
from lit_gen.report import leaderboard
from lit_gen.report.comparison import compare, describe
from lit_gen.report.results import Result, load_results
from lit_gen.report.rows import Row
from lit_gen.runs.differences import ENVIRONMENT, Difference, differences, to_lines
from lit_gen.runs.directory import Run
from lit_gen.runs.metrics_file import read_metrics

PLACES = ("run", "tracker", "wandb")
"""Sections of a configuration that name places and not settings."""
COST = ("images_seen", "training_seconds", "training_flops")


class RunComparison(NamedTuple):
    """What differs between two runs.

    Attributes:
        settings: Configuration, without places of files.
        data: Facts about the training images.
        environment: Packages, Python, platform, code and device.
        training: Cost.
        curves: Last value of each curve.
        scores: Lines of the scores of evaluations with the same protocol.
    """

    settings: list[Difference]
    data: list[Difference]
    environment: list[Difference]
    training: list[Difference]
    curves: list[Difference]
    scores: list[str]

    def to_text(self) -> str:
        """Return a table for each kind of difference."""
        parts = {
            "settings": to_lines(self.settings),
            "data": to_lines(self.data),
            "software, code and device": to_lines(self.environment),
            "training": to_lines(self.training),
            "last values of the curves": to_lines(self.curves),
            "scores": self.scores,
        }
        return "\n\n".join("\n".join([title, *(lines or ["  no difference"])]) for title, lines in parts.items())

    def to_json(self) -> str:
        """Return lists of key, first and second value by kind, and the lines of the scores."""
        return json.dumps(self._asdict(), indent=2, default=str)


def compare_runs(one: Run, other: Run) -> RunComparison:
    """Compare two runs.

    Raises:
        UserError: If both are the same run, or a file is damaged.
    """
    if one.directory.resolve() == other.directory.resolve():
        raise UserError(f"RUN: {one.directory} is given twice; give two runs")
    configs = [load_yaml(run.config) for run in (one, other)]
    sections = [key for config in configs for key in config if key not in PLACES]
    facts = [run.metadata for run in (one, other)]
    return RunComparison(
        settings=differences(configs[0], configs[1], *sections),
        data=differences(facts[0], facts[1], "data"),
        environment=differences(facts[0], facts[1], *ENVIRONMENT),
        training=_cost(facts),
        curves=_curves(one, other),
        scores=_scores(one, other, [run.directory.resolve().name for run in (one, other)]),
    )


def _cost(facts: Sequence[Mapping[str, Any]]) -> list[Difference]:
    pairs = (Difference(key, *(side.get(key, "-") for side in facts)) for key in COST)
    return [pair for pair in pairs if pair.first != pair.second]


def _curves(one: Run, other: Run) -> list[Difference]:
    """Return the last value of each curve of either run, equal ones left out."""
    ends: list[dict[str, str]] = []
    for run in (one, other):
        path = run.directory / "metrics.csv"
        last: dict[str, str] = {}
        for row in read_metrics(path) if path.is_file() else []:
            last |= {key: f"{float(value):.6g}" for key, value in row.items() if key != "images"}
        ends.append(last)
    return differences(ends[0], ends[1])


def _scores(one: Run, other: Run, names: Sequence[str]) -> list[str]:
    """Return a line for each score of evaluations with the same protocol, sampler and weights."""
    found = [_results(run) for run in (one, other)]
    if not all(found):
        missing = [name for name, results in zip(names, found, strict=True) if not results]
        return [f"  {' and '.join(missing)}: not evaluated"]
    lines: list[str] = []
    ours = {id(result) for result in found[0]}
    for results in leaderboard.comparable([*found[0], *found[1]]):
        sides = [_by_sampler([r for r in results if (id(r) in ours) == mine]) for mine in (True, False)]
        shared = [key for key in sides[0] if key in sides[1]]
        pairs = [(sides[0][key], sides[1][key]) for key in shared]
        if not pairs and all(len(side) == 1 for side in sides):  # two families, each with its own sampler
            pairs = [(next(iter(sides[0].values())), next(iter(sides[1].values())))]
        if pairs:
            lines.append(f"  {leaderboard.describe_protocol(results[0].protocol)}")
        for pair in pairs:
            lines += _pair(pair, results, names)
    return lines or ["  no two evaluations with the same protocol; evaluate both with the same settings"]


def _results(run: Run) -> list[Result]:
    try:
        return load_results(run.directory)
    except UserError:  # there are none
        return []


def _by_sampler(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Return results by sampler and weights."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        key = json.dumps([result.record.sampler, result.record.weights], sort_keys=True)
        groups.setdefault(key, []).append(result)
    return groups


def _pair(pair: tuple[list[Result], list[Result]], results: Sequence[Result], names: Sequence[str]) -> list[str]:
    """Return the lines of the scores of two rows: both values, and who is ahead by how much."""
    rows = [Row(None, side) for side in pair]
    labels = [f"{row.first.sampler or 'one pass'}, NFE {row.first.record.nfe:g}" for row in rows]
    lines = [f"  {labels[0]}" if labels[0] == labels[1] else f"  {labels[0]} against {labels[1]}"]
    protocols = [row.first.record.score_protocols for row in rows]
    for metric in rows[0].first.metrics:
        known = all(metric in result.metrics for row in rows for result in row.results)
        if metric.endswith(("_std", "_stderr")) or not known or protocols[0].get(metric) != protocols[1].get(metric):
            continue
        values = "  ".join(f"{row.mean(f'metrics.{metric}'):.5g}" for row in rows)
        said = describe(
            compare(rows[0], rows[1], metric), names[0], names[1], metric, leaderboard.better(results, metric)
        )
        lines.append(f"    {metric}  {values}  {said.removeprefix(f'{metric}: ')}")
    return lines
