"""Rank evaluations: a pure function of result.json files.

Rows are comparable if and only if their protocols are equal (data, split, numbers of real and generated images, feature
net and its version, resize, quantisation); `rank` refuses other rows and names the field that differs. Data are equal
if their fingerprints are, whatever their names. Rows that differ only in their seeds become one row: mean +- standard
deviation (with n - 1) over n evaluations. Rows whose metric is exactly equal share a rank, and the next rank counts
them all: 1, 2, 2, 4.

Likelihoods have a separate protocol (kind, images, dequantisation, method): rows are ranked by bits per dimension only
if these are equal too. A ranking by another metric shows likelihoods of any protocol, with their kind. Scores of
reconstructions also have a protocol: their images, which are training images if the data has no others.
"""

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from lit_gen.core.errors import UserError
from lit_gen.evaluation import drawn_classes
from lit_gen.report.results import Result, select

LIKELIHOODS = ("bits_per_dim", "nll_nats")
"""Metrics of the likelihood, which has a separate protocol."""

RECONSTRUCTIONS = ("rfd_", "rfid", "psnr", "ssim", "codebook_")
"""Beginnings of the names of reconstruction metrics, which have a separate protocol."""

_HIGHER_IS_BETTER = {
    *("inception_score", "precision", "recall", "density", "coverage"),
    *("psnr", "ssim", "codebook_usage", "codebook_perplexity"),
}


@dataclass(frozen=True)
class Row:
    """One line of the leaderboard.

    Args:
        rank: 1 for the best, equal for rows whose metric is exactly equal; None if the metric is not finite.
        results: The evaluations of the row, which differ only in their seeds.
    """

    rank: int | None
    results: list[Result]

    @property
    def first(self) -> Result:
        return self.results[0]

    @property
    def run(self) -> str:
        """The name of the first run, with the number of other runs."""
        names = list(dict.fromkeys(result.get("run.name") for result in self.results))
        return names[0] + (f" (+{len(names) - 1})" if len(names) > 1 else "")

    def mean(self, key: str) -> float:
        """Return the mean of a number over the evaluations; NaN if one of them lacks it."""
        return statistics.fmean(_number(result, key) for result in self.results)

    @property
    def images_per_training_second(self) -> float:
        """The mean number of images trained on per second; NaN if unknown."""
        seconds = self.mean("training_seconds")
        return self.mean("images_seen") / seconds if seconds > 0 else math.nan

    @property
    def training_seconds(self) -> float:
        """The mean training time in seconds, including a first stage or a teacher; NaN if unknown."""
        earlier = [result.get("earlier_seconds") or 0.0 for result in self.results]
        return self.mean("training_seconds") + statistics.fmean(earlier)

    def std(self, key: str) -> float | None:
        """Return the standard deviation of a number over the evaluations; None for a single evaluation."""
        values = [_number(result, key) for result in self.results]
        return statistics.stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else None


@dataclass(frozen=True)
class Leaderboard:
    """Ranked rows of one protocol.

    Args:
        by: The metric that ranks.
        metrics: The metrics of the rows, `by` first.
        protocol: The protocol of all rows.
        rows: The rows, best first.
        likelihood: The protocol of all likelihoods; None if there are none or their protocols differ.
    """

    by: str
    metrics: list[str]
    protocol: dict[str, object]
    rows: list[Row]
    likelihood: dict[str, object] | None = None

    @property
    def protocol_line(self) -> str:
        """The protocol in one line of text."""
        line = describe_protocol(self.protocol)
        return line if self.likelihood is None else f"{line}; bits_per_dim {describe_likelihood(self.likelihood)}"


def distance_metric(results: Sequence[Result]) -> str:
    """Return the name of the results' distance: `fid` or `fd_...` for Frechet, `w2_...` for Wasserstein.

    Raises:
        UserError: If the results have no distance.
    """
    names = dict.fromkeys(name for result in results for name in result.metrics)
    for name in names:
        if name == "fid" or name.startswith(("fd_", "w2_")):
            return name
    raise UserError(f"the results hold no distance; rank --by one of {', '.join(names) or 'none'}")


def better(metric: str) -> str:
    """Return `higher` or `lower`, whichever is better for a metric."""
    return "higher" if metric in _HIGHER_IS_BETTER else "lower"


def describe_protocol(protocol: dict[str, object]) -> str:
    """Return a protocol in one line of text."""

    def field(key: str) -> object:
        return protocol.get(key, "?")

    shape = protocol.get("image_shape")
    size = "x".join(map(str, shape)) if isinstance(shape, list) else "?"
    return (
        f"{field('data')} {str(field('data_fingerprint'))[:8]}, {field('split')} split, {size}: "
        f"{field('num_samples')} generated against {field('num_real')} real images; "
        f"features {field('feature_net')} {str(field('feature_net_version'))[:8]} ({field('feature_width')} wide), "
        f"resize {field('resize')}, {'not quantised' if field('quantisation') == 'none' else field('quantisation')}"
    )


def describe_likelihood(protocol: dict[str, object]) -> str:
    """Return the protocol of a likelihood in a few words."""

    def field(key: str) -> object:
        return protocol.get(key, "?")

    given = " given their classes" if protocol.get("conditional") else ""
    method = protocol.get("method")
    how = f"{field('kind')} by {method['name']}" if isinstance(method, dict) else field("kind")
    return f"of {field('num_images')} {field('split')} images{given}: {how}, dequantisation {field('dequantisation')}"


def rank(results: Sequence[Result], by: str | None = None, where: Sequence[str] = ()) -> Leaderboard:
    """Rank evaluations.

    Args:
        results: Results, as from `load_results`.
        by: The metric that ranks; the distance if None.
        where: Conditions `key=value` that select results.

    Raises:
        UserError: If there are no results, their protocols differ, or one lacks the metric.
    """
    chosen = select(list(results), where)
    if not chosen:
        raise UserError("there are no results to rank")
    refuse_unlike(chosen)
    by = by or distance_metric(chosen)
    for result in chosen:
        if by not in result.metrics:
            raise UserError(f"{result.path}: no metric {by}; it has {', '.join(result.metrics) or 'none'}")
    if by.startswith(LIKELIHOODS):
        refuse_unlike(chosen, "likelihood.protocol")
    if by.startswith(RECONSTRUCTIONS):
        refuse_unlike([result for result in chosen if result.get("reconstruction")], "reconstruction.protocol")
    names = dict.fromkeys(name for result in chosen for name in result.metrics)
    metrics = [by, *(name for name in names if name != by and not name.endswith(("_std", "_stderr", "_floor")))]
    sign = -1.0 if better(by) == "higher" else 1.0
    groups = [Row(None, group) for group in group_seeds(chosen)]
    finite = [row for row in groups if math.isfinite(row.mean(f"metrics.{by}"))]
    finite.sort(  # of equals, in whatever order their results were found, the same one first
        key=lambda row: (sign * row.mean(f"metrics.{by}"), row.first.model, row.first.sampler, row.first.grid, row.run)
    )
    means = [row.mean(f"metrics.{by}") for row in finite]
    rows = [Row(means.index(mean) + 1, row.results) for mean, row in zip(means, finite, strict=True)]
    rows += [row for row in groups if row not in finite]
    likelihoods = {_compact(protocol): protocol for result in chosen if (protocol := result.get("likelihood.protocol"))}
    shared = next(iter(likelihoods.values())) if len(likelihoods) == 1 else None
    return Leaderboard(by, metrics, chosen[0].protocol, rows, shared)


def refuse_unlike(results: Sequence[Result], part: str = "protocol") -> None:
    """Raise a UserError unless the results have equal protocols.

    Args:
        results: The results to compare.
        part: Key of the protocol.

    Raises:
        UserError: If the protocols differ; the message names the fields, the rows and the remedy.
    """
    protocols: list[dict[str, object]] = [result.get(part) or {} for result in results]
    fields = dict.fromkeys(key for protocol in protocols for key in protocol)
    if not _names_tell_data_apart(protocols):
        fields.pop("data", None)
    differences = []
    remedy = ""
    for field in fields:
        groups: dict[str, list[Result]] = defaultdict(list)
        for result, protocol in zip(results, protocols, strict=True):
            groups[_compact(protocol.get(field))].append(result)
        if len(groups) > 1:
            of_classes = field == "drawn_classes"  # the rule of today comes first
            preferred = drawn_classes.RULE if of_classes else None
            ordered = sorted(groups.items(), key=lambda item: (item[0] != preferred, -len(item[1])))
            values = " and ".join(f"{value} ({_rows(group)})" for value, group in ordered)
            differences.append(f"{part}.{field} is {values}")
            instead = ", or evaluate the older runs again" if of_classes else ""
            remedy = remedy or f"--where {part}.{field}={ordered[0][0]}{instead}"
    if differences:
        raise UserError(
            f"results with unlike protocols cannot be ranked: {'; '.join(differences)}. Select some, e.g. {remedy}"
        )


def comparable(results: Sequence[Result]) -> list[list[Result]]:
    """Return the results in groups of one protocol each, such as one data set, in the order of the results."""
    groups: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        groups[_compact(_compared(result.protocol))].append(result)
    return list(groups.values())


def group_seeds(results: Sequence[Result]) -> list[list[Result]]:
    """Return the results in groups that differ only in the seeds of training and sampling.

    Two training runs differ only in their seed if their `run.recipe` is equal; a run without a recipe is a group of its
    own. If an evaluation was repeated with the same seeds, only the latest counts.
    """
    latest: dict[str, Result] = {}
    for result in sorted(results, key=lambda result: str(result.get("created"))):
        latest[_compact([_setting(result), result.get("run.identity"), result.get("seed")])] = result
    groups: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        if any(result is kept for kept in latest.values()):
            groups[_compact(_setting(result))].append(result)
    return list(groups.values())


def _setting(result: Result) -> list[object]:
    data = result.data
    training = result.get("run.recipe") or result.get("run.identity")
    # the recipe of a finished training says how long it is, in images or in seconds, in which seeds differ by a few
    images_seen = None if result.get("run.finished") else data["images_seen"]
    facts = [training, data["model"], data.get("sampler"), data["weights"], images_seen, data.get("other_data")]
    return [*facts, _compared(data["protocol"])]


def _compared(protocol: dict[str, object]) -> dict[str, object]:
    """Return a protocol without the name of the data, if their fingerprint identifies them."""
    by_name = not protocol.get("data_fingerprint")
    return {key: value for key, value in protocol.items() if key != "data" or by_name}


def _names_tell_data_apart(protocols: Sequence[dict[str, object]]) -> bool:
    """Return whether names and fingerprints of the data correspond one to one."""
    named = {(str(each.get("data")), str(each.get("data_fingerprint") or each.get("data"))) for each in protocols}
    return all(len(set(side)) == len(named) for side in zip(*named, strict=True))


def _rows(results: list[Result]) -> str:
    names = [f"{result.get('run.name')}/{result.path.parent.name}" for result in results[:3]]
    more = ", ..." if len(results) > 3 else ""
    return f"{len(results)} row{'s' if len(results) > 1 else ''}: {', '.join(names)}{more}"


def _compact(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str, separators=(",", ":"))


def _number(result: Result, key: str) -> float:
    value = result.get(key)
    return float(value) if isinstance(value, int | float) else math.nan
