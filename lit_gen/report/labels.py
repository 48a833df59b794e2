"""Short names of evaluations among others: what tells them apart, and nothing else."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence

from lit_gen.report.results import Result
from lit_gen.report.rows import Row


class Labels:
    """The names of evaluations of one protocol.

    Args:
        results: All evaluations.
        escape: Escapes a name for where it is shown.
    """

    def __init__(self, results: Sequence[Result], escape: Callable[[str], str] = str) -> None:
        self._escape = escape
        self._trainings: dict[str, set[str]] = defaultdict(set)
        self._weights: dict[str, set[str]] = defaultdict(set)
        for result in results:
            self._trainings[result.model].add(result.record.run.recipe or result.record.run.identity)
            self._weights[result.model].add(result.record.weights)
        self._several_grids = len({grid for result in results if (grid := result.grid)}) > 1

    def family(self, result: Result) -> str:
        """Return the name of the model, or of the run if several have that model, with its weights if they differ."""
        model = result.model
        name = model if len(self._trainings[model]) == 1 else result.record.run.name + result.mark
        return self._escape(f"{name} {result.record.weights}" if len(self._weights[model]) > 1 else name)

    def sampler(self, result: Result) -> str:
        """Return the label of the sampler, with its grid if there are several grids; empty without a sampler."""
        sampler, grid = result.sampler, result.grid
        return self._escape(f"{sampler} {grid}" if grid and self._several_grids else sampler)

    def setting(self, result: Result) -> str:
        """Return the sampler, if there is one, and the NFE of a result, such as `Heun, NFE 35`."""
        nfe = result.number("nfe")
        return ", ".join(filter(None, (self.sampler(result), f"NFE {nfe:g}" if math.isfinite(nfe) else "")))


def names(rows: Sequence[Row]) -> list[str]:
    """Return a name of each row among the others: model or run, sampler and NFE."""
    firsts = [row.first for row in rows]
    labels = Labels(firsts)
    return [", ".join(filter(None, (labels.family(first), labels.setting(first)))) for first in firsts]
