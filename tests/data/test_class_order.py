"""The classes of drawn images: close to the frequencies over any prefix, and index mod K if all are equal."""

import time

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lit_gen.data.class_order import are_balanced, classes_of

counts_of_a_split = st.lists(st.integers(0, 60), min_size=1, max_size=12).filter(any)


@settings(max_examples=150, derandomize=True, deadline=None)
@given(counts_of_a_split)
@example([178, 20])
@example([1, 1000])
@example([0, 7, 0, 5, 3])
@example([999, 1, 1, 1, 1, 1])
def test_no_prefix_is_further_from_the_frequencies_than_tijdemans_bound(counts: list[int]) -> None:
    """|count_c(i) - i f_c| <= 1 - 1 / (2k - 2), in whole numbers; and each period holds exactly the split."""
    n, k = sum(counts), sum(count > 0 for count in counts)
    drawn = classes_of(np.arange(2 * n), counts)
    places = np.arange(1, 2 * n + 1)
    for label, count in enumerate(counts):
        so_far = np.cumsum(drawn == label)
        away = np.abs(so_far * n - places * count).max()
        assert away == 0 if k == 1 else away * (2 * k - 2) <= n * (2 * k - 3)
        assert so_far[n - 1] == count


@settings(max_examples=50, derandomize=True, deadline=None)
@given(counts_of_a_split, st.integers(2, 9), st.lists(st.integers(0, 10**12), min_size=1, max_size=20))
def test_the_class_is_a_function_of_shares_and_index(counts: list[int], factor: int, index: list[int]) -> None:
    together = classes_of(np.array(index), counts)
    assert together.tolist() == [int(classes_of(np.array([i]), counts)[0]) for i in index]
    assert together.tolist() == classes_of(np.array(index) % sum(counts), counts).tolist()
    assert together.tolist() == classes_of(np.array(index), [factor * count for count in counts]).tolist()


@pytest.mark.parametrize("num_classes", [1, 2, 3, 10, 1000])
@pytest.mark.parametrize("count", [1, 6000])
def test_equal_classes_follow_one_another(num_classes: int, count: int) -> None:
    index = np.array([0, 1, 2, 9, 10, 999, 1000, 1001, 123_456_789, 10**15 + 7])
    np.testing.assert_array_equal(classes_of(index, [count] * num_classes), index % num_classes)
    assert are_balanced([count] * num_classes)
    assert not are_balanced([count] * num_classes + [count + 1])


def test_a_rare_class_lies_in_the_middle_of_its_share() -> None:
    assert classes_of(np.arange(14), [6, 1]).tolist() == [0, 0, 0, 1, 0, 0, 0] * 2


def test_a_period_of_many_images_and_classes_takes_no_time() -> None:
    counts = np.random.default_rng(0).integers(20, 81, 1000).tolist()
    begin = time.process_time()
    (last,) = classes_of(np.array([10**9 * sum(counts) + sum(counts) - 1]), counts)
    assert time.process_time() - begin < 5
    assert 0 <= last < 1000
    np.testing.assert_array_equal(np.bincount(classes_of(np.arange(sum(counts)), counts)), counts)


def test_no_images_have_no_classes() -> None:
    for counts in ([0, 0], [3, -1]):
        with pytest.raises(ValueError, match="class counts"):
            classes_of(np.arange(3), counts)
