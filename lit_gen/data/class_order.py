r"""Classes of samples: a sequence that follows the class frequencies as evenly as possible over every prefix.

A split of n images, m_c of class c, has the frequencies f_c = m_c / n. For every prefix of length i, the sequence has

    |count_c(i) - i f_c| <= 1 - 1 / (2k - 2)

where k is the number of classes with images; no smaller bound holds for all frequencies. The sequence is Tijdeman's
solution of the chairman assignment problem: at place i, among the classes whose deficit i f_c - count_c(i - 1) is at
least 1 / (2k - 2), take the one whose deficit would be the first to exceed the bound, and the lowest of those that tie.
All arithmetic is in whole numbers. The sequence repeats after n / gcd(m) places; for equal counts of K classes it is
index mod K.

Paper: Tijdeman 1980, "The chairman assignment problem", Discrete Mathematics 32, 323-330
"""

import heapq
import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice

import numpy as np


def classes_of(index: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """Return the classes of the samples with the given indices, int64 of the same shape.

    Args:
        index: Sample indices, not negative.
        counts: Number of images per class of the split to follow; a class without images does not occur.

    Raises:
        ValueError: If a count is negative or no class has an image.
    """
    divisor = math.gcd(*counts)
    if divisor < 1 or min(counts) < 0:
        raise ValueError(f"class counts {list(counts)} are not valid; give counts of at least 0, one of them positive")
    return _order(tuple(count // divisor for count in counts)).at(np.asarray(index, np.int64))


def are_balanced(counts: Sequence[int]) -> bool:
    """Return whether all K classes have equally many images, so that sample i has class i mod K."""
    return len(set(counts)) == 1


class _Order:
    """Order of classes for counts without a common divisor, computed only as far as needed."""

    def __init__(self, counts: tuple[int, ...]) -> None:
        self.period = sum(counts)
        self._sequence = _tijdeman(counts)
        self._known = np.empty(0, np.int64)

    def at(self, index: np.ndarray) -> np.ndarray:
        places = index % self.period
        needed = int(places.max(initial=-1)) + 1
        if needed > len(self._known):
            more = min(max(needed, 2 * len(self._known)), self.period) - len(self._known)
            new = np.fromiter(islice(self._sequence, more), np.int64, more)
            self._known = np.concatenate([self._known, new])
        return self._known[places]


_order = lru_cache(maxsize=16)(_Order)


def _tijdeman(counts: tuple[int, ...]) -> Iterator[int]:
    """Yield one period of the sequence.

    With s = 2k - 2, the first allowed place of the (j + 1)-th image of class c is the first i with i f_c - j >= 1 / s.
    It must come before the first i with i f_c - j > 1 - 1 / s.
    """
    n, present = sum(counts), [c for c, count in enumerate(counts) if count]
    s = 2 * len(present) - 2
    if not s:
        yield from present * n
        return
    waiting = [(-(-n // (s * counts[c])), c, 0) for c in present]  # (first place, class, j)
    heapq.heapify(waiting)
    ready: list[tuple[int, int, int]] = []  # (deadline, class, j)
    for place in range(1, n + 1):
        while waiting and waiting[0][0] <= place:
            _, c, j = heapq.heappop(waiting)
            heapq.heappush(ready, ((j * s + s - 1) * n // (s * counts[c]) + 1, c, j))
        _, c, j = heapq.heappop(ready)
        yield c
        heapq.heappush(waiting, (-(-((j + 1) * s + 1) * n // (s * counts[c])), c, j + 1))
