"""A row of the leaderboard: evaluations that differ only in their seeds, with the noise of their scores.

| seeds of the row | standard error of its mean |
| --- | --- |
| one training run | that over its samples, from the standard errors of the results |
| several training runs | that of the mean over training runs, or that over samples if it is larger |

An interval reaches from the mean minus to the mean plus its half-width: at 95 %, the standard error times the quantile
of Student's t with one degree of freedom fewer than there are training runs, or of the normal distribution for one run.
The interval of one training run says nothing about other training seeds.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property, wraps
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from lit_gen.evaluation.result_file import load_deviations, score_protocol
from lit_gen.report.results import Result

LEVEL = 0.95
"""Confidence level of intervals and comparisons."""


COPIES = " (copies)"
"""Mark of a model whose samples copy training images."""


Value = TypeVar("Value")

COSTS = {"nfe": "nfe", "flops": "flops_per_image"}
"""Keys of the costs of an image in a result."""


class Spread(NamedTuple):
    """Noise of the mean of a row.

    Attributes:
        error: Standard error.
        freedom: Degrees of freedom; infinite for a normal distribution.
    """

    error: float
    freedom: float = math.inf

    @property
    def half_width(self) -> float:
        """Half of the width of the interval at the confidence level."""
        return self.error * quantile(self.freedom)


@cache
def quantile(freedom: float) -> float:
    """Return the two-sided quantile of Student's t at the confidence level."""
    if math.isinf(freedom):
        return statistics.NormalDist().inv_cdf((1 + LEVEL) / 2)
    from scipy.special import stdtrit  # imported late: it takes as long as all the rest of a leaderboard

    return float(stdtrit(freedom, (1 + LEVEL) / 2))


def tail(ratio: float, freedom: float) -> float:
    """Return the probability that a deviation in standard errors is larger in magnitude."""
    if math.isinf(freedom):
        return 2 * statistics.NormalDist().cdf(-abs(ratio))
    from scipy.special import stdtr  # imported late, as above

    return 2 * float(stdtr(freedom, -abs(ratio)))


def _kept(function: "Callable[[Row, str], Value]") -> "Callable[[Row, str], Value]":
    """Decorate a method of a row to compute each value once: a ranking compares every pair of rows."""

    @wraps(function)
    def wrapper(row: "Row", name: str) -> Value:
        key = (function.__name__, name)
        if key not in row.computed:
            row.computed[key] = function(row, name)
        value: Value = row.computed[key]
        return value

    return wrapper


@dataclass(frozen=True)
class Row:
    """One line of the leaderboard.

    Args:
        rank: 1 for the best; None if the metric is not finite.
        results: The evaluations of the row, which differ only in their seeds.
    """

    rank: int | None
    results: list[Result]

    @cached_property
    def computed(self) -> dict[tuple[str, str], Any]:
        """Values that were computed before, by method and argument."""
        return {}

    @property
    def first(self) -> Result:
        return self.results[0]

    @property
    def foreign(self) -> bool:
        """Whether other software made the samples."""
        return self.first.foreign

    @property
    def run(self) -> str:
        """The name of the first run, with the number of other runs."""
        names = list(dict.fromkeys(result.record.run.name for result in self.results))
        return names[0] + (f" (+{len(names) - 1})" if len(names) > 1 else "")

    @cached_property
    def by_training(self) -> Mapping[str, list[Result]]:
        """The results of each training run, by its identity."""
        runs: dict[str, list[Result]] = defaultdict(list)
        for result in self.results:
            runs[result.record.run.identity].append(result)
        return runs

    @property
    def seeds(self) -> str:
        """The number of training seeds, and of evaluations if there are more: `3`, or `1 (3 evaluations)`.

        It is empty for foreign samples.
        """
        if self.foreign:
            return ""
        trained, evaluated = len(self.by_training), len(self.results)
        return f"{trained}" + (f" ({evaluated} evaluations)" if evaluated > trained else "")

    def cost(self, against: str) -> float:
        """Return the cost of an image: its network evaluations `nfe`, `flops`, or `seconds`; NaN if unknown."""
        if against == "seconds":
            return statistics.fmean(1 / result.number("timing.images_per_second") for result in self.results)
        return self.mean(COSTS[against]) or math.nan  # 0: nothing that is counted, which has no place on the axis

    @property
    def copies(self) -> bool:
        """Whether the samples of most evaluations copy training images, outside the noise."""
        return 2 * sum(bool(result.record.copies) for result in self.results) > len(self.results)

    @_kept
    def mean(self, key: str) -> float:
        """Return the mean over training runs of a number's mean over evaluations; NaN if one of them lacks it."""
        runs = self.by_training.values()
        return statistics.fmean(statistics.fmean(result.number(key) for result in results) for results in runs)

    @property
    def images_per_training_second(self) -> float:
        """The mean number of images trained on per second; NaN if unknown."""
        seconds = self.mean("training_seconds")
        return self.mean("images_seen") / seconds if seconds > 0 else math.nan

    @property
    def training_seconds(self) -> float:
        """The mean training time in seconds, including a first stage or a teacher; NaN if unknown."""
        earlier = [result.record.earlier_seconds or 0.0 for result in self.results]
        return self.mean("training_seconds") + statistics.fmean(earlier)

    @property
    def training_flops(self) -> float:
        """The mean number of operations of the training, with a first stage or a teacher; NaN if unknown."""
        return self.mean("training_flops") + self.mean("earlier_flops")

    def std(self, key: str) -> float | None:
        """Return the standard deviation of a number over the evaluations; None for a single evaluation."""
        values = [result.number(key) for result in self.results]
        return statistics.stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else None

    @property
    def least_of(self) -> int | None:
        """The number of sampling seeds whose least scores stand beside the mean; None if the results ask for none.

        It is None for several training runs, and if there are fewer evaluations.
        """
        asked = {result.get("least_of") for result in self.results}
        number = asked.pop() if len(asked) == 1 else None
        one = len(self.by_training) == 1
        return number if one and isinstance(number, int) and 1 < number <= len(self.results) else None

    def least(self, metric: str) -> float | None:
        """Return the least value of a score over the `least_of` lowest sampling seeds; None if it is not asked for.

        Only scores with a protocol of their own, of which lower values are better, have one.
        """
        protocol = score_protocol(self.first.record, metric)
        if self.least_of is None or protocol is None or protocol["better"] != "lower":
            return None
        chosen = sorted(self.results, key=lambda result: result.record.seed)[: self.least_of]
        values = [result.number(f"metrics.{metric}") for result in chosen]
        return min(values) if all(map(math.isfinite, values)) else None

    @_kept
    def training_means(self, metric: str) -> dict[object, float]:
        """Return the mean of a score for each training run, by its seed, or by its identity if seeds are equal."""
        seeds = {identity: results[0].record.training_seed for identity, results in self.by_training.items()}
        names = seeds if len(set(seeds.values())) == len(seeds) else {identity: identity for identity in seeds}
        return {
            names[identity]: statistics.fmean(result.number(f"metrics.{metric}") for result in results)
            for identity, results in self.by_training.items()
        }

    @_kept
    def deviations(self, metric: str) -> np.ndarray | None:
        """Return the deviations (R,) of the mean of a score over samples; None if a result lacks them."""
        found = [_deviations(result.path).get(metric) for result in self.results]
        known = [each for each in found if each is not None]
        return np.mean(known, axis=0) if len(known) == len(found) else None

    @_kept
    def spread(self, metric: str) -> Spread | None:
        """Return the noise of the mean of a score; None if it is unknown."""
        errors = [result.standard_error(metric) for result in self.results]
        known = [each for each in errors if each is not None]
        samples = math.hypot(*known) / len(known) if len(known) == len(errors) else None
        means = list(self.training_means(metric).values())
        if len(means) > 1 and all(map(math.isfinite, means)):
            seeds = Spread(statistics.stdev(means) / math.sqrt(len(means)), len(means) - 1)
            return seeds if samples is None or seeds.half_width >= Spread(samples).half_width else Spread(samples)
        if samples is None and (std := self.std(f"metrics.{metric}")) is not None:
            return Spread(std / math.sqrt(len(self.results)), len(self.results) - 1)
        return None if samples is None else Spread(samples)


@cache
def _deviations(path: Path) -> dict[str, np.ndarray]:
    return load_deviations(path)
