"""Compare two rows of a leaderboard: whether one beats the other, outside the noise.

| the two rows | standard error of the difference |
| --- | --- |
| one training run each | that of the deviations' differences, half of the samples by half; common noise cancels |
| the same training seeds | standard error of the mean of the differences, seed by seed |
| other numbers of training runs | Welch's; a single run is as uncertain as one of the other row |
| foreign images | Welch's: their noise is independent of that of all other rows |

If several apply, the largest half-width counts. Each comparison alone has the confidence level `rows.LEVEL`: among many
pairs, some are told apart by chance.
"""

import math
import statistics
from dataclasses import dataclass

from lit_gen.report.rows import LEVEL, Row, Spread, tail


@dataclass(frozen=True)
class Comparison:
    """The difference of a score between two rows.

    Attributes:
        difference: Mean of the first minus that of the second.
        spread: Its noise; None if unknown.
        paired: Whether common noise was cancelled.
    """

    difference: float
    spread: Spread | None
    paired: bool

    @property
    def distinct(self) -> bool:
        """Whether the rows can be told apart; without known noise, whether their means differ at all."""
        return abs(self.difference) > (0.0 if self.spread is None else self.spread.half_width)

    @property
    def p_value(self) -> float | None:
        """The probability of such a difference between equal rows; None without known noise."""
        if self.spread is None:
            return None
        if self.spread.error == 0:
            return float(self.difference == 0)
        return tail(self.difference / self.spread.error, self.spread.freedom)


def compare(a: Row, b: Row, metric: str) -> Comparison:
    """Compare two rows of one protocol by a score.

    If the noise of only one row is known, that of the other is taken to be as large.
    """
    key = f"metrics.{metric}"
    difference = a.mean(key) - b.mean(key)
    if (paired := _paired(a, b, metric)) is not None:
        seeds = [sorted(result.record.seed for result in row.results) for row in (a, b)]
        return Comparison(difference, paired, len(a.by_training) > 1 or seeds[0] == seeds[1])
    known = [spread for row, other in ((a, b), (b, a)) if (spread := _spread(row, other, metric)) is not None]
    return Comparison(difference, _welch(known[0], known[-1]) if known else None, False)


def _spread(row: Row, other: Row, metric: str) -> Spread | None:
    """Return the noise of a row; a single training run is as uncertain as one of the runs of the other row."""
    spread = row.spread(metric)
    means = list(other.training_means(metric).values())
    if spread is None or len(row.by_training) > 1 or len(means) < 2 or not all(map(math.isfinite, means)):
        return spread
    return Spread(math.hypot(spread.error, statistics.stdev(means)), len(means) - 1)


def _paired(a: Row, b: Row, metric: str) -> Spread | None:
    """Return the noise of the difference of paired rows; None if they cannot be paired."""
    spreads = []
    ours, theirs = a.deviations(metric), b.deviations(metric)
    if a.foreign or b.foreign:  # image i of other software has other noise than image i of a run: independent
        return None
    if ours is not None and theirs is not None and len(ours) == len(theirs):
        spreads.append(Spread(float((ours - theirs).std(ddof=1))))
    means, others = a.training_means(metric), b.training_means(metric)
    if means.keys() == others.keys() and len(means) > 1:
        differences = [means[seed] - others[seed] for seed in means]
        spreads.append(Spread(statistics.stdev(differences) / math.sqrt(len(means)), len(means) - 1))
    elif max(len(means), len(others)) > 1:
        return None
    return max(spreads, key=lambda spread: spread.half_width, default=None)


def _welch(one: Spread, other: Spread) -> Spread:
    error = math.hypot(one.error, other.error)
    if error == 0:
        return Spread(0.0)
    inverse = (one.error / error) ** 4 / one.freedom + (other.error / error) ** 4 / other.freedom
    return Spread(error, 1 / inverse if inverse > 0 else math.inf)


def describe(comparison: Comparison, one: str, other: str, metric: str, better: str) -> str:
    """Return one line that says which row beats the other and how sure that is.

    Args:
        comparison: The comparison of the two rows.
        one: Name of the first row.
        other: Name of the second.
        metric: Name of the score.
        better: `higher` or `lower`.
    """
    if not math.isfinite(comparison.difference):
        return f"{metric}: {one} and {other} cannot be compared; a score is not finite"
    if comparison.difference == 0:
        return f"{metric}: {one} and {other} are equal"
    wins = (comparison.difference > 0) == (better == "higher")
    winner, loser = (one, other) if wins else (other, one)
    how = "paired" if comparison.paired else "unpaired"
    if comparison.spread is None:
        return f"{metric}: {winner} is ahead of {loser} by {abs(comparison.difference):.4g}; the noise is unknown"
    facts = f"{abs(comparison.difference):.4g} ± {comparison.spread.half_width:.2g} ({how}, {LEVEL:.0%} interval"
    assert comparison.p_value is not None
    facts += f", p = {comparison.p_value:.2g})" if comparison.p_value > 1e-12 else ", p < 1e-12)"
    if comparison.distinct:
        return f"{metric}: {winner} beats {loser} by {facts}"
    return f"{metric}: {one} and {other} cannot be told apart; {winner} is ahead by {facts}"
