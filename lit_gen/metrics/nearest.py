"""Nearest neighbours, block by block, with exact distances.

Candidates are ranked by |y|^2 - 2 x y, a matrix product in float64. The distances of the best ones are then computed
from the differences x - y, so equal points have distance 0.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lit_gen.core.errors import UserError

_QUERIES = 512
_POINTS = 8192
_SPARE = 8
"""Candidates beyond k: rounding of the matrix product may exchange neighbours at almost equal distances."""


class Neighbours(NamedTuple):
    """The k nearest points of each query, from near to far.

    Attributes:
        distance: Euclidean distances (n, k), float64.
        indices: Indices of the points, (n, k).
    """

    distance: Tensor
    indices: Tensor


def nearest(queries: Tensor, points: Tensor, k: int = 1, own: Tensor | None = None) -> Neighbours:
    """Return the k nearest points of each query.

    Args:
        queries: (n, d).
        points: (m, d).
        k: Number of neighbours.
        own: Index (n,) of the point that each query is, which is not a neighbour of itself.

    Raises:
        ValueError: If there are fewer than k points, `own` aside.
        UserError: If a coordinate is not finite.
    """
    others = len(points) - (own is not None)
    if others < k:
        raise ValueError(f"{others} points do not have {k} neighbours")
    if not (queries.isfinite().all() and points.isfinite().all()):
        raise UserError(
            "some features are not finite, so their distances are undefined; sample with more steps, and check the "
            "weights file of the feature net"
        )
    blocks = torch.arange(len(queries), device=queries.device).split(_QUERIES)
    parts = [_nearest(queries[block], points, k, None if own is None else own[block]) for block in blocks]
    return Neighbours(torch.cat([part.distance for part in parts]), torch.cat([part.indices for part in parts]))


def _nearest(queries: Tensor, points: Tensor, k: int, own: Tensor | None) -> Neighbours:
    count = min(k + _SPARE, len(points) - (own is not None))
    origin = points[0].double()
    x = queries.double() - origin
    best, index = x[:, :0], x[:, :0].long()
    for start in range(0, len(points), _POINTS):
        y = points[start : start + _POINTS].double() - origin
        ranks = torch.addmm(y.square().sum(1), x, y.T, alpha=-2)
        if own is not None:
            columns = torch.arange(start, start + len(y), device=x.device)
            ranks.masked_fill_(columns == own[:, None], torch.inf)
        ranks, columns = ranks.topk(min(count, len(y)), largest=False)
        ranks, candidates = torch.cat([best, ranks], 1), torch.cat([index, start + columns], 1)
        best, chosen = ranks.topk(min(count, ranks.shape[1]), largest=False)
        index = candidates.gather(1, chosen)
    index = index.sort(1).values
    distance = (queries.double()[:, None] - points[index].double()).square().sum(2).sqrt()
    distance, order = distance.sort(dim=1, stable=True)
    return Neighbours(distance[:, :k], index.gather(1, order)[:, :k])
