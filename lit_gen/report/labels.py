"""Short names of evaluations among others: what tells them apart, and nothing else."""

import math
from collections.abc import Sequence

from lit_gen.report.results import Result
from lit_gen.report.rows import Row


def family(result: Result, results: Sequence[Result]) -> str:
    """Return the name of the model, or of the run if several runs have that model, with its weights if they differ."""

    def trainings(of: Sequence[Result]) -> set[str]:
        return {other.record.run.recipe or other.record.run.identity for other in of}

    alike = [other for other in results if other.model == result.model]
    name = result.model if len(trainings(alike)) == 1 else result.record.run.name + result.mark
    several = len({other.record.weights for other in alike}) > 1
    return f"{name} {result.record.weights}" if several else name


def sampler(result: Result, results: Sequence[Result]) -> str:
    """Return the label of the sampler, with its grid if the results have several grids; empty without a sampler."""
    grids = {other.grid for other in results if other.grid}
    return f"{result.sampler} {result.grid}" if result.grid and len(grids) > 1 else result.sampler


def evaluations(result: Result) -> str:
    """Return the NFE of a result, such as `NFE 35`; empty if it is unknown."""
    nfe = result.number("nfe")
    return f"NFE {nfe:g}" if math.isfinite(nfe) else ""


def setting(result: Result, results: Sequence[Result]) -> str:
    """Return the sampler, if there is one, and the NFE of a result."""
    return ", ".join(filter(None, (sampler(result, results), evaluations(result))))


def names(rows: Sequence[Row]) -> list[str]:
    """Return a name of each row among the others: model or run, sampler and NFE."""
    firsts = [row.first for row in rows]
    return [", ".join(filter(None, (family(first, firsts), setting(first, firsts)))) for first in firsts]
