"""Rows of features that are read block by block."""

import math

import pytest
import torch

from lit_gen.metrics.nearest import nearest
from lit_gen.metrics.rows import all_finite, distinct, take


@pytest.mark.parametrize(("n", "d", "levels"), [(1, 1, 2), (50, 1, 5), (300, 3, 2), (400, 40, 2), (5000, 20, 2)])
def test_distinct_rows_are_in_the_order_of_torch(n: int, d: int, levels: int) -> None:
    generator = torch.Generator().manual_seed(n + d)
    rows = torch.randint(0, levels, (n, d), generator=generator).float() - 0.5
    rows[: n // 2, : d - 3] = 0  # many ties in the first columns
    rows[n // 3 :] = rows[n // 3 :].where(torch.rand(n - n // 3, 1, generator=generator) < 0.7, rows[:1])
    rows[::2][rows[::2] == 0] = -0.0
    unique, number, repeats = rows.unique(dim=0, return_inverse=True, return_counts=True)
    for parts in ([rows], [rows[: n // 4], rows[n // 4 :]]):
        found = distinct(parts)
        assert torch.equal(take(parts, found.first), unique)
        assert torch.equal(found.number, number) and torch.equal(found.repeats, repeats)
        assert all(first == (number == each).nonzero()[0] for each, first in enumerate(found.first[:20]))


def test_parts_count_as_one_after_the_other() -> None:
    generator = torch.Generator().manual_seed(0)
    points, queries = torch.randn(3000, 4, generator=generator), torch.randn(20, 4, generator=generator)
    parts = [points[:700], points[700:700], points[700:]]
    for k, own in ((3, None), (1, torch.arange(690, 710))):
        whole, found = nearest(queries, points, k, own), nearest(queries, parts, k, own)
        assert torch.equal(found.indices, whole.indices) and torch.equal(found.distance, whole.distance)
    index = torch.tensor([[0, 2999], [699, 700]])
    assert torch.equal(take(parts, index), points[index])


def test_a_value_that_is_not_finite_is_found_in_any_block() -> None:
    points = torch.zeros(5000, 2)
    assert all_finite(points)
    points[4999, 1] = math.nan
    assert not all_finite(points)
