"""Rows of features that stay where they are, in memory or in a file: which are equal, and whether all are finite.

Features of a large data set take gigabytes, and an operation on all of them takes as much again. These functions read
them a block of rows or of columns at a time.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

BLOCK = 2048
_COLUMNS = 16


class Distinct(NamedTuple):
    """The distinct ones among n rows, in lexicographic order, as `torch.unique(dim=0)` orders them.

    Attributes:
        first: Index of the first row that equals each distinct one, (m,).
        number: Number of the distinct row that each row equals, (n,).
        repeats: Number of rows that equal each distinct one, (m,).
    """

    first: Tensor
    number: Tensor
    repeats: Tensor


def all_finite(points: Tensor) -> bool:
    """Return whether all values of points (n, d) are finite."""
    return all(bool(rows.isfinite().all()) for rows in points.split(BLOCK))


def take(parts: Sequence[Tensor], index: Tensor) -> Tensor:
    """Return the rows with indices of any shape (...) in the concatenation of parts (n_i, d), as (..., d)."""
    if len(parts) == 1:
        return parts[0][index]
    found = parts[0].new_empty(*index.shape, parts[0].shape[1])
    start = 0
    for part in parts:
        own = (start <= index) & (index < start + len(part))
        found[own] = part[index[own] - start]
        start += len(part)
    return found


def distinct(parts: Sequence[Tensor]) -> Distinct:
    """Return the distinct rows of the concatenation of parts (n_i, d), on their device.

    Rows are ordered by their first columns; further columns are read only for rows that still tie.
    """
    n, d = sum(map(len, parts)), parts[0].shape[1]
    device = parts[0].device
    place = np.zeros(n, np.int64)  # the place of the first row that ties, in the order by the columns so far
    tied = np.arange(n)
    for column in range(0, d, _COLUMNS):
        chosen = torch.from_numpy(tied).to(device)
        block = torch.cat([take(parts, rows)[:, column : column + _COLUMNS] for rows in chosen.split(BLOCK)])
        for values in block.T.cpu().numpy():
            order = np.lexsort((values, place[tied]))
            places, values = place[tied][order], values[order]
            begins = np.ones(len(order), bool)
            begins[1:] = (places[1:] != places[:-1]) | (values[1:] != values[:-1])
            in_group = np.ones(len(order), bool)
            in_group[1:] = places[1:] != places[:-1]
            at = np.arange(len(order))
            since = np.maximum.accumulate(np.where(begins, at, 0)) - np.maximum.accumulate(np.where(in_group, at, 0))
            place[tied[order]] = places + since
        sizes = np.bincount(place[tied], minlength=n)
        tied = tied[sizes[place[tied]] > 1]
        if not len(tied):
            break
    _, first, number, repeats = np.unique(place, return_index=True, return_inverse=True, return_counts=True)
    return Distinct(*(torch.from_numpy(each).to(device) for each in (first, number, repeats)))
