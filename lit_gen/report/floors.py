"""Scores of real images and likelihoods without a model: lines of a leaderboard in addition to its rows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lit_gen.report.results import Result

FLOORS = {
    "train": "training images, drawn again",
    "held_out": "held-out images",
    "equal_values": "test images, all values alike",
    "histogram": "test images, histogram of values",
}
"""Titles of the rows of `evaluation.floors` and `evaluation.likelihood`."""


@dataclass(frozen=True)
class Floor:
    """Scores of real images in place of samples.

    Attributes:
        title: What the images are.
        num_images: Number of images.
        scores: Scores by name.
        errors: Their standard errors.
    """

    title: str
    num_images: int
    scores: dict[str, float]
    errors: dict[str, float]


def floors(results: Sequence[Result]) -> list[Floor]:
    """Return the scores of real images, which results of one protocol have in common."""
    rows: dict[str, Floor] = {}
    for result in results:
        for name, floor in result.record.floors.items():
            before = rows.get(name, Floor(FLOORS.get(name, name), floor["num_images"], {}, {}))
            rows[name] = replace(
                before,
                scores=floor["scores"] | before.scores,
                errors=floor.get("standard_errors", {}) | before.errors,
            )
    return list(rows.values())
