import math

import pytest
import torch

from lit_gen.core.errors import UserError
from lit_gen.metrics import nearest


@pytest.mark.parametrize("n, m, d, k", [(1, 1, 1, 1), (7, 5, 3, 5), (700, 40, 6, 2), (30, 9000, 4, 3)])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_equals_brute_force(n: int, m: int, d: int, k: int, offset: float) -> None:
    generator = torch.Generator().manual_seed(n + m)
    queries, points = (torch.randn(each, d, generator=generator).double() + offset for each in (n, m))
    distance = (queries[:, None] - points).square().sum(2).sqrt()
    expected = distance.sort(1)
    found = nearest(queries, points, k)
    torch.testing.assert_close(found.distance, expected.values[:, :k], rtol=1e-12, atol=0)
    assert torch.equal(found.indices, expected.indices[:, :k])


@pytest.mark.parametrize("m", [2, 9, 10, 600])
def test_a_point_is_not_its_own_neighbour(m: int) -> None:
    points = torch.randn(m, 4, generator=torch.Generator().manual_seed(m)).double()
    distance = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(math.inf)
    found = nearest(points, points, own=torch.arange(m))
    assert torch.equal(found.indices[:, 0], distance.argmin(1))
    some = torch.tensor([m - 1, 0])
    assert torch.equal(nearest(points[some], points, own=some).indices, found.indices[some])


def test_equal_points_have_distance_zero_far_from_the_origin() -> None:
    points = torch.randn(300, 64, generator=torch.Generator().manual_seed(0)) + 1e4
    copies = points[torch.arange(299, -1, -1)]
    found = nearest(copies, points)
    assert (found.distance == 0).all() and torch.equal(found.indices[:, 0], torch.arange(299, -1, -1))
    repeated = points.repeat(40, 1)
    assert (nearest(points, repeated, k=3).distance == 0).all()
    assert (nearest(repeated, repeated, own=torch.arange(len(repeated))).distance == 0).all()


def test_ties_are_in_order_of_their_index() -> None:
    assert nearest(torch.zeros(1, 1), torch.tensor([[1.0], [-1.0], [0.5], [1.0]]), 4).indices.tolist() == [[2, 0, 1, 3]]


def test_limits() -> None:
    assert nearest(torch.zeros(0, 3), torch.zeros(4, 3), 2).distance.shape == (0, 2)
    with pytest.raises(ValueError, match="2 points do not have 3"):
        nearest(torch.zeros(1, 3), torch.zeros(2, 3), 3)
    with pytest.raises(ValueError, match="0 points do not have 1"):
        nearest(torch.zeros(1, 3), torch.zeros(1, 3), own=torch.zeros(1, dtype=torch.int64))
    for bad in (math.nan, math.inf):
        broken = torch.zeros(3, 2)
        broken[1, 1] = bad
        for queries, points in ((broken, torch.zeros(3, 2)), (torch.zeros(3, 2), broken)):
            with pytest.raises(UserError, match="not finite"):
                nearest(queries, points)
