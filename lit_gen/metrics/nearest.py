"""Nearest neighbours, block by block, with exact distances.

Candidates are ranked by |y|^2 - 2 x y, a matrix product in float64. The distances of the best ones are then computed
from the differences x - y, so equal points have distance 0.

The points are read block by block, and may be mapped from a file. Beside them and the result, it takes about 100 MiB
for 2048 features.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.metrics.rows import all_finite, take

_QUERIES = 512
_POINTS = 2048
_MOST_DIFFERENCES = 2**21
"""Largest number of coordinates of differences x - y at once."""
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


def nearest(queries: Tensor, points: Tensor | Sequence[Tensor], k: int = 1, own: Tensor | None = None) -> Neighbours:
    """Return the k nearest points of each query.

    Args:
        queries: (n, d).
        points: (m, d), or parts of them, which count as one after the other.
        k: Number of neighbours.
        own: Index (n,) of the point that each query is, which is not a neighbour of itself.

    Raises:
        ValueError: If there are fewer than k points, `own` aside.
        UserError: If a coordinate is not finite.
    """
    parts = [points] if isinstance(points, Tensor) else points
    others = sum(map(len, parts)) - (own is not None)
    if others < k:
        raise ValueError(f"{others} points do not have {k} neighbours")
    if not all(map(all_finite, (queries, *parts))):
        raise UserError(
            "some features are not finite, so their distances are undefined; sample with more steps, and check the "
            "weights file of the feature net"
        )
    blocks = torch.arange(len(queries), device=queries.device).split(_QUERIES)
    found = [_nearest(queries[block], parts, k, None if own is None else own[block]) for block in blocks]
    return Neighbours(torch.cat([each.distance for each in found]), torch.cat([each.indices for each in found]))


def _nearest(queries: Tensor, parts: Sequence[Tensor], k: int, own: Tensor | None) -> Neighbours:
    count = min(k + _SPARE, sum(map(len, parts)) - (own is not None))
    origin = next(part for part in parts if len(part))[0].double()
    x = queries.double() - origin
    best, index = x[:, :0], x[:, :0].long()
    start = 0
    for y in (rows for part in parts for rows in part.split(_POINTS)):
        y = y.to(torch.float64, copy=True).sub_(origin)
        ranks = torch.addmm(y.square().sum(1), x, y.T, alpha=-2)
        if own is not None:
            columns = torch.arange(start, start + len(y), device=x.device)
            ranks.masked_fill_(columns == own[:, None], torch.inf)
        ranks, columns = ranks.topk(min(count, len(y)), largest=False)
        ranks, candidates = torch.cat([best, ranks], 1), torch.cat([index, start + columns], 1)
        best, chosen = ranks.topk(min(count, ranks.shape[1]), largest=False)
        index = candidates.gather(1, chosen)
        start += len(y)
    index = index.sort(1).values
    step = max(1, _MOST_DIFFERENCES // (count * queries.shape[1]))
    pieces = zip(queries.split(step), index.split(step), strict=True)
    distance = torch.cat([_distances(own_queries, take(parts, candidates)) for own_queries, candidates in pieces])
    distance, order = distance.sort(dim=1, stable=True)
    return Neighbours(distance[:, :k], index.gather(1, order)[:, :k])


def _distances(queries: Tensor, candidates: Tensor) -> Tensor:
    """Return the distances of queries (n, d) to their candidates (n, c, d), float64 (n, c)."""
    distance: Tensor = (queries.double()[:, None] - candidates.double()).square_().sum(2).sqrt()
    return distance
