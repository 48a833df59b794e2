r"""Distances between many points, block by block, and the balls around points that reach their k-th neighbours.

Squared distances come from one matrix product in float64, after the origin is moved to the median of the points, on
which far outliers have no influence:

    |x - y|^2 = |x|^2 + |y|^2 - 2 x^T y

The rounding errors are about 1e-15 (|x|^2 + |y|^2), so they could give equal points a distance. Distances below
1e-6 (|x|^2 + |y|^2)^(1/2), about the precision of float32 features, are therefore exactly 0. `metrics.nearest` gives
exact distances, but only to a few neighbours.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK = 512
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
