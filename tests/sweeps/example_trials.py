"""Trials of a sweep file, also of one whose trials a search proposes while it runs."""

from collections.abc import Sequence
from pathlib import Path

from lit_gen.sweeps import Trial, load_sweep

POINTS = (0.25, 0.5)
"""Coordinates of the proposals, the same in every parameter."""


def example_trials(path: Path) -> Sequence[Trial]:
    """Return the trials that the file lists, and two proposals of its search."""
    sweep = load_sweep([path])
    proposed = [search.trial(dict.fromkeys(search.middle, at)) for search in sweep.searches for at in POINTS]
    return [*sweep.trials, *proposed]
