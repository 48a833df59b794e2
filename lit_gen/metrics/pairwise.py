r"""Distances between many points, block by block, and the balls around points that reach their k-th neighbours.

Squared distances come from one matrix product in float64, after the origin is moved to the median of the points, on
which far outliers have no influence:

    |x - y|^2 = |x|^2 + |y|^2 - 2 x^T y

The rounding errors are about 1e-15 (|x|^2 + |y|^2), so they could give equal points a distance. Distances below
1e-6 (|x|^2 + |y|^2)^(1/2), about the precision of float32 features, are therefore exactly 0. `metrics.nearest` gives
exact distances, but only to a few neighbours.

Points stay in the type that they come in, and may be mapped from a file; a block of them at a time is float64.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK = 512
POINTS = 2048
MOST_DISTANCES = 2**21
"""Largest number of distances at once."""
LEAST_SQUARE = 1e-12
"""Squared distance of equal points, in comparison with their squared norms."""
CLOSED = 1 + 1e-9
"""Factor of a squared radius, so that rounding leaves no point outside on whose distance the radius was set."""


class PointSet:
    """Points that others are compared with.

    Args:
        points: (n, d).
    """

    def __init__(self, points: Tensor) -> None:
        self.points = points
        self.origin = points.median(0).values.double()
        self.squares = torch.cat([self._centred(rows).square_().sum(1) for rows in points.split(POINTS)])

    def squared_distances(self, others: Tensor | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Yield the rows of a block of other points, with their squared distances (block, n) to the points.

        The next block overwrites the distances.

        Args:
            others: (m, d); by default the points themselves.
        """
        others = self.points if others is None else others
        step = max(1, min(BLOCK, MOST_DISTANCES // max(1, len(self.points))))
        distances = self.squares.new_empty(step, len(self.points))
        for start in range(0, len(others), step):
            rows = slice(start, start + step)
            block = self._centred(others[rows])
            own = block.square().sum(1)[:, None]
            for first in range(0, len(self.points), POINTS):
                columns = slice(first, first + POINTS)
                y, squares = self._centred(self.points[columns]), self.squares[columns]
                distances[: len(block), columns] = _squared_distances(block, own, y, squares)
            yield rows, distances[: len(block)]

    def _centred(self, rows: Tensor) -> Tensor:
        return rows.to(torch.float64, copy=True).sub_(self.origin)

    def nearest(self, k: int) -> tuple[Tensor, Tensor]:
        """Return the squared distances of each point to its k nearest others (n, k), in order, and their indices."""
        found = []
        for rows, distances in self.squared_distances():
            distances.diagonal(rows.start).fill_(torch.inf)
            found.append(distances.topk(k, largest=False))
        return torch.cat([each.values for each in found]), torch.cat([each.indices for each in found])


def _squared_distances(x: Tensor, x_squares: Tensor, y: Tensor, y_squares: Tensor) -> Tensor:
    """Return the squared distances (n, m) of centred points, given their squared norms (n, 1) and (m,)."""
    squares = x_squares + y_squares
    distances = torch.addmm(squares, x, y.T, alpha=-2)
    return distances.masked_fill_(distances < LEAST_SQUARE * squares, 0)
