r"""Distances between many points, block by block, and the balls around points that reach their k-th neighbours.

Squared distances come from one matrix product in float64, after the origin is moved to the median of the points, on
which far outliers have no influence:

    |x - y|^2 = |x|^2 + |y|^2 - 2 x^T y

Its rounding errors are about 1e-15 (|x|^2 + |y|^2), so they could give equal points a distance. Distances below
1e-6 (|x|^2 + |y|^2)^(1/2), about the precision of float32 features, are therefore exactly 0.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from lit_gen.core.errors import UserError

BLOCK = 512
LEAST_SQUARE = 1e-12
"""Squared distance of equal points, in comparison with their squared norms."""
CLOSED = 1 + 1e-9
"""Factor of a squared radius, so that rounding leaves no point outside on whose distance the radius was set."""


def check_points(points: Tensor, least: int, score: str, what: str, kind: str = "features") -> None:
    """Raise a UserError unless a score has enough points (n, d), all of them finite.

    Args:
        points: Features of samples or of real images.
        least: Least number of points.
        score: Name of the score.
        what: Name of the points, such as samples.
        kind: Name of their values.
    """
    if len(points) < least:
        raise UserError(f"{score} needs at least {least} {what}, not {len(points)}; raise their number")
    if not torch.isfinite(points).all():
        raise UserError(
            f"some {kind} of {len(points)} {what} are not finite, so {score} is undefined; run the feature net in "
            "float32, and check its weights file"
        )


class Points:
    """Points that others are compared with.

    Args:
        points: (n, d).
    """

    def __init__(self, points: Tensor) -> None:
        points = points.double()
        self.origin = points.median(0).values
        self.centred = points - self.origin
        self.squares = self.centred.square().sum(1)

    def squared_distances(self, others: Tensor | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Yield the rows of a block of other points, with their squared distances (block, n) to the points.

        Args:
            others: (m, d); by default the points themselves.
        """
        for start in range(0, len(self.centred if others is None else others), BLOCK):
            rows = slice(start, start + BLOCK)
            block = self.centred[rows] if others is None else others[rows].double() - self.origin
            squares = block.square().sum(1)[:, None] + self.squares
            distances = torch.addmm(squares, block, self.centred.T, alpha=-2)
            yield rows, distances.masked_fill_(distances < LEAST_SQUARE * squares, 0)

    def nearest(self, k: int) -> tuple[Tensor, Tensor]:
        """Return the squared distances of each point to its k nearest others (n, k), in order, and their indices."""
        found = []
        for rows, distances in self.squared_distances():
            distances.diagonal(rows.start).fill_(torch.inf)
            found.append(distances.topk(k, largest=False))
        return torch.cat([each.values for each in found]), torch.cat([each.indices for each in found])
