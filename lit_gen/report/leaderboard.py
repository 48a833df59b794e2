"""Rank evaluations: a pure function of result.json files and the deviations next to them.

Rows are comparable in a score if their protocols are equal (data, split, numbers of real and generated images, feature
net and its version, resize, quantisation) and those of the score are (metric and settings); `rank` refuses other rows
and names the field that differs. Other scores of unlike protocols are left out. Data are equal if their fingerprints
are, whatever their names.

Evaluations that differ only in their seeds become one row. The rank of a row is one more than the number of rows that
beat it outside the noise (`report.comparison`), so rows that cannot be told apart share a rank: 1, 1, 3.

Likelihoods have a separate protocol (kind, images, dequantisation, method): rows are ranked by bits per dimension only
if these are equal too. A ranking by another metric shows likelihoods of any protocol, with their kind. Scores of
reconstructions also have a protocol: their images, which are training images if the data has no others.
"""

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from lit_gen.core.errors import UserError
from lit_gen.evaluation import drawn_classes
from lit_gen.evaluation.result_file import score_protocol
from lit_gen.report.comparison import compare, describe
from lit_gen.report.floors import Floor, floors
from lit_gen.report.published import Published, published
from lit_gen.report.results import Result, select, split_conditions
from lit_gen.report.rows import LEVEL, Row

LIKELIHOODS = ("bits_per_dim", "nll_nats")
"""Metrics of the likelihood, which has a separate protocol."""

RECONSTRUCTIONS = ("rfd_", "rfid", "psnr", "ssim", "codebook_")
"""Beginnings of the names of reconstruction metrics, which have a separate protocol."""

_HIDDEN = ("_std", "_stderr", "_floor")
"""Endings of the names of scores that have no column of their own."""

_HIGHER_IS_BETTER = {"psnr", "ssim", "codebook_usage", "codebook_perplexity"}
"""Scores of reconstructions of which higher values are better."""


@dataclass(frozen=True)
class Leaderboard:
    """Ranked rows of one protocol.

    Args:
        by: The metric that ranks.
        metrics: The metrics of the rows, `by` first.
        protocol: The protocol of all rows.
        rows: The rows, best first.
        floors: Scores of real images in place of samples.
        better: Which values of each metric are better, `higher` or `lower`.
        likelihood: The protocol of all likelihoods; None if there are none or their protocols differ.
        left_out: Metrics whose protocols differ between rows.
        published: Published scores to show beside the rows.
        published_protocol: The protocol that they were measured by.
    """

    by: str
    metrics: list[str]
    protocol: dict[str, object]
    rows: list[Row]
    floors: list[Floor]
    better: dict[str, str]
    likelihood: dict[str, object] | None = None
    left_out: list[str] = field(default_factory=list)
    published: list[Published] = field(default_factory=list)
    published_protocol: str = ""

    @property
    def protocol_line(self) -> str:
        """The protocol in one line of text."""
        line = describe_protocol(self.protocol)
        return line if self.likelihood is None else f"{line}; bits_per_dim {describe_likelihood(self.likelihood)}"

    @property
    def shared_line(self) -> str:
        """The seeds, weights and grid that all rows share, in one line of text."""
        of_rows = [[result.record for result in row.results] for row in self.rows]
        values = {
            "training seed": [{str(each.training_seed) for each in row} for row in of_rows],
            "sampling seed": [{str(each.seed) for each in row} for row in of_rows],
            "weights": [{each.weights for each in row} for row in of_rows],
            "grid": [{result.grid for result in row.results} for row in self.rows if row.first.grid],
        }
        shared = {name: sorted(sets[0]) for name, sets in values.items() if sets and sets.count(sets[0]) == len(sets)}
        return "; ".join(f"{name} {', '.join(of_all)}" for name, of_all in shared.items())

    @property
    def noise_line(self) -> str:
        """What intervals and ranks mean, and which scores are left out, in one line of text."""
        line = f"± half of a {LEVEL:.0%} interval; rank: 1 + the number of rows that beat this one outside the noise"
        if any(len(row.by_training) == 1 for row in self.rows):
            line += "; intervals of one training seed cover the noise of sampling alone"
        if any(row.spread(self.by) is None for row in self.rows):
            line += "; a row without an interval is given that of the row it is compared with, if there is one"
        if any(row.least(self.by) is not None for row in self.rows):
            line += "; least of n: the least over the n lowest sampling seeds, which ranks nothing"
        if self.left_out:
            line += f"; left out, since protocols differ: {', '.join(self.left_out)}"
        if self.published:
            line += f"; in italics, not ranked: published values ({self.published_protocol})"
        return line


def distance_metric(results: Sequence[Result]) -> str:
    """Return the name of the results' distance: `fid` or `fd_...` for Frechet, `w2_...` for Wasserstein.

    It is that to held-out images if all results have it, since the distance to training images rewards copies.

    Raises:
        UserError: If the results have no distance.
    """
    names = dict.fromkeys(name for result in results for name in result.metrics)
    distances = [name for name in names if _is_distance(results, name)]
    distances.sort(key=lambda name: not name.endswith("_held_out"))
    for name in distances:
        if not name.endswith("_held_out") or all(name in result.metrics for result in results):
            return name
    raise UserError(f"the results hold no distance; rank --by one of {', '.join(names) or 'none'}")


def _is_distance(results: Sequence[Result], metric: str) -> bool:
    """Return whether a score is a Frechet or a Wasserstein distance, and not its floor."""
    protocol = next((score_protocol(result.record, metric) for result in results if metric in result.metrics), None)
    kind = None if protocol is None else protocol["metric"]
    return kind in ("FrechetDistance", "WassersteinDistance") and not metric.endswith("_floor")


def better(results: Sequence[Result], metric: str) -> str:
    """Return `higher` or `lower`, whichever is better for a metric."""
    for result in results:
        if (protocol := score_protocol(result.record, metric)) is not None:
            return str(protocol["better"])
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
        raise UserError("there are no results to rank; evaluate a run first")
    by = by or distance_metric(chosen)
    known = dict.fromkeys(name for result in chosen for name in result.metrics)
    if by not in known:
        shown = [name for name in known if not name.endswith(_HIDDEN)]
        raise UserError(f"--by: {by} is not a metric of these results; choose one of {', '.join(shown)}")
    refuse_unlike(chosen, leave_out=() if by.startswith("inception_score") else ("inception_splits",))
    for result in chosen:
        if by not in result.metrics:
            raise UserError(
                f"{result.path}: no metric {by}; add it with lit-gen evaluate and --evaluation.metrics, or leave the "
                "result out with --where"
            )
    _refuse_unlike_scores(chosen, by)
    names = [by, *(name for name in known if name != by and not name.endswith(_HIDDEN))]
    left_out = [name for name in names if _protocols_differ(chosen, name)]
    rows = _ranked(chosen, by, better(chosen, by))
    likelihoods = {_compact(protocol): protocol for result in chosen if (protocol := result.get("likelihood.protocol"))}
    shared = next(iter(likelihoods.values())) if len(likelihoods) == 1 else None
    names = [name for name in names if name not in left_out]
    return Leaderboard(
        by=by,
        metrics=names,
        protocol=chosen[0].protocol,
        rows=rows,
        floors=floors(chosen),
        better={name: better(chosen, name) for name in names},
        likelihood=shared,
        left_out=left_out,
    )


def _ranked(results: Sequence[Result], by: str, best: str) -> list[Row]:
    """Return the rows, best first; those whose metric is not finite come last."""
    key, sign = f"metrics.{by}", -1.0 if best == "higher" else 1.0
    groups = [Row(None, group) for group in group_seeds(results)]
    finite = [row for row in groups if math.isfinite(row.mean(key))]
    finite.sort(  # of equals, in whatever order their results were found, the same one first
        key=lambda row: (sign * row.mean(key), row.first.model, row.first.sampler, row.first.grid, row.run)
    )
    rows = [
        Row(1 + sum(compare(better_row, row, by).distinct for better_row in finite[:place]), row.results)
        for place, row in enumerate(finite)
    ]
    return rows + [row for row in groups if row not in finite]


def _refuse_unlike_scores(results: Sequence[Result], by: str) -> None:
    """Raise a UserError unless the protocols of a score are equal."""
    if by.startswith(LIKELIHOODS):
        refuse_unlike(results, "likelihood.protocol")
    if by.startswith(RECONSTRUCTIONS):
        refuse_unlike([result for result in results if result.get("reconstruction")], "reconstruction.protocol")
    if _protocols_differ(results, by):
        protocols = [score_protocol(result.record, by) or {} for result in results]
        names = dict.fromkeys(name for protocol in protocols for name in protocol)
        values = {name: list(dict.fromkeys(_compact(protocol.get(name)) for protocol in protocols)) for name in names}
        unlike = "; ".join(f"{name} is {' and '.join(found)}" for name, found in values.items() if len(found) > 1)
        raise UserError(f"--by: the protocols of {by} differ: {unlike}; evaluate the runs again with one of them")


def _protocols_differ(results: Sequence[Result], metric: str) -> bool:
    """Return whether the results that have a score have it by unlike protocols."""
    return len({_compact(score_protocol(result.record, metric)) for result in results if metric in result.metrics}) > 1


def with_published(board: Leaderboard, data: str) -> Leaderboard:
    """Return the leaderboard with the published scores of a data set beside its rows.

    Raises:
        UserError: If there are none, or the leaderboard is of another data set or score.
    """
    protocol, scores = published(data)
    if board.protocol["data"] != data or board.by != "fid":
        raise UserError(
            f"--published: the published scores are FIDs of {data}, and this leaderboard ranks {board.by} of "
            f"{board.protocol['data']}; evaluate with Inception features, or leave the option out"
        )
    return replace(board, published=scores, published_protocol=protocol)


def pareto(board: Leaderboard, against: str) -> Leaderboard:
    """Return the rows that no row of equal or smaller cost beats outside the noise.

    Args:
        board: The leaderboard.
        against: The cost of an image: `nfe`, `flops` or `seconds`.

    Raises:
        UserError: If no row has a known cost.
    """
    known = [row for row in board.rows if row.rank is not None and math.isfinite(row.cost(against))]
    if not known:
        raise UserError(f"--against: no result has the {against} of an image; evaluate the runs again, or use nfe")
    sign = -1.0 if board.better[board.by] == "higher" else 1.0
    key = f"metrics.{board.by}"

    def beaten(row: Row) -> bool:
        others = (other for other in known if other is not row and other.cost(against) <= row.cost(against))
        return any(
            sign * other.mean(key) < sign * row.mean(key) and compare(other, row, board.by).distinct for other in others
        )

    return replace(board, rows=[row for row in known if not beaten(row)])


def paired(board: Leaderboard, one: str, other: str) -> str:
    """Return one line that says which of two rows beats the other, and how sure that is.

    Args:
        board: The leaderboard.
        one: Conditions `key=value[,key=value...]` that select the first row.
        other: Those of the second.

    Raises:
        UserError: If the conditions do not select one row each, or both the same.
    """
    rows = [_row_of(board, each) for each in (one, other)]
    if rows[0] is rows[1]:
        raise UserError(f"--paired: {one} and {other} select the same row; give conditions that differ")
    names = [_name_of(row) for row in rows]
    if names[0] == names[1]:
        names = [one, other]
    return describe(compare(rows[0], rows[1], board.by), names[0], names[1], board.by, board.better[board.by])


def _row_of(board: Leaderboard, conditions: str) -> Row:
    """Return the row whose results fulfil the conditions."""
    results = [result for row in board.rows for result in row.results]
    chosen = select(results, split_conditions(conditions), "--paired")
    rows = [row for row in board.rows if any(result in row.results for result in chosen)]
    if len(rows) > 1:
        names = ", ".join(_name_of(row) for row in rows[:4]) + (", ..." if len(rows) > 4 else "")
        raise UserError(f"--paired: {conditions} selects {len(rows)} rows ({names}); add conditions")
    return rows[0]


def _name_of(row: Row) -> str:
    """Return the model of a row with its sampler and evaluations."""
    nfe = f"nfe {row.mean('nfe'):g}" if math.isfinite(row.mean("nfe")) else ""
    return " ".join(each for each in (row.first.model, row.first.sampler, nfe) if each)


def refuse_unlike(results: Sequence[Result], part: str = "protocol", leave_out: Sequence[str] = ()) -> None:
    """Raise a UserError unless the results have equal protocols.

    Args:
        results: The results to compare.
        part: Key of the protocol.
        leave_out: Fields that may differ.

    Raises:
        UserError: If the protocols differ; the message names the fields, the rows and the remedy.
    """
    protocols: list[dict[str, object]] = [result.get(part) or {} for result in results]
    fields = dict.fromkeys(key for protocol in protocols for key in protocol if key not in leave_out)
    if not _names_tell_data_apart(protocols):
        fields.pop("data", None)
    differences = []
    remedy = ""
    for name in fields:
        groups: dict[str, list[Result]] = defaultdict(list)
        for result, protocol in zip(results, protocols, strict=True):
            groups[_compact(protocol.get(name))].append(result)
        if len(groups) > 1:
            of_classes = name == "drawn_classes"  # the rule of today comes first
            preferred = drawn_classes.RULE if of_classes else None
            ordered = sorted(groups.items(), key=lambda item: (item[0] != preferred, -len(item[1])))
            values = " and ".join(f"{value} ({_rows(group)})" for value, group in ordered)
            differences.append(f"{part}.{name} is {values}")
            instead = ", or evaluate the older runs again" if of_classes else ""
            remedy = remedy or f"--where {part}.{name}={ordered[0][0]}{instead}"
    if differences:
        raise UserError(
            f"results with unlike protocols cannot be ranked: {'; '.join(differences)}. Select some, e.g. {remedy}"
        )


def comparable(results: Sequence[Result]) -> list[list[Result]]:
    """Return the results in groups of one protocol each, such as one data set, in the order of the results."""
    groups: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        shared = {key: value for key, value in _compared(result.protocol).items() if key != "inception_splits"}
        groups[_compact(shared)].append(result)
    return list(groups.values())


def group_seeds(results: Sequence[Result]) -> list[list[Result]]:
    """Return the results in groups that differ only in the seeds of training and sampling.

    Two training runs differ only in their seed if their `run.recipe` is equal; a run without a recipe is a group of its
    own. If an evaluation was repeated with the same seeds, only the latest counts.
    """
    latest: dict[str, Result] = {}
    for result in sorted(results, key=lambda result: str(result.get("created"))):
        latest[_compact([_setting(result), result.record.run.identity, result.record.seed])] = result
    groups: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        if any(result is kept for kept in latest.values()):
            groups[_compact(_setting(result))].append(result)
    return list(groups.values())


def _setting(result: Result) -> list[object]:
    record = result.record
    training = record.run.recipe or record.run.identity
    # the recipe of a finished training says how long it is, in images or in seconds, in which seeds differ by a few
    images_seen = None if record.run.finished else record.images_seen
    other = record.other_data.to_dict() if record.other_data else None
    facts = [training, record.model, record.sampler, record.weights, images_seen, other]
    shared = {key: value for key, value in _compared(result.protocol).items() if key != "inception_splits"}
    return [*facts, shared]


def _compared(protocol: dict[str, object]) -> dict[str, object]:
    """Return a protocol without the name of the data, if their fingerprint identifies them."""
    by_name = not protocol.get("data_fingerprint")
    return {key: value for key, value in protocol.items() if key != "data" or by_name}


def _names_tell_data_apart(protocols: Sequence[dict[str, object]]) -> bool:
    """Return whether names and fingerprints of the data correspond one to one."""
    named = {(str(each.get("data")), str(each.get("data_fingerprint") or each.get("data"))) for each in protocols}
    return all(len(set(side)) == len(named) for side in zip(*named, strict=True))


def _rows(results: list[Result]) -> str:
    names = [f"{result.record.run.name}/{result.path.parent.name}" for result in results[:3]]
    more = ", ..." if len(results) > 3 else ""
    return f"{len(results)} row{'s' if len(results) > 1 else ''}: {', '.join(names)}{more}"


def _compact(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str, separators=(",", ":"))
