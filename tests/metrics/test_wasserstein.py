"""The Wasserstein distance against brute force over permutations and closed forms."""

import itertools
import math

import pytest
import torch

from lit_gen.core.errors import UserError
from lit_gen.metrics import RealFeatures, WassersteinDistance, wasserstein
from lit_gen.metrics.wasserstein import assign, potentials
from tests.metrics.real import batch, value, wasserstein_to


def points(num: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(5))
def test_against_all_permutations(seed: int) -> None:
    a, b = points(6, seed), points(6, 100 + seed)
    costs = [float((a - b[list(order)]).square().sum(1).mean()) for order in itertools.permutations(range(6))]
    assert wasserstein(a, b) == pytest.approx(math.sqrt(min(costs)), rel=1e-12)
    assert min(costs) < 0.9 * costs[0], "the order as given is best already: the test would see nothing"


def test_a_shifted_set_is_as_far_as_the_shift() -> None:
    a = points(50)
    for shift in (torch.tensor([3.0, -4.0]), torch.tensor([0.003, 0.004])):
        assert wasserstein(a, (a + shift)[torch.randperm(50)]) == pytest.approx(float(shift.norm()), rel=1e-6)


def test_on_a_line_points_are_joined_in_their_order() -> None:
    a, b = points(40)[:, :1] ** 3, points(40, 1)[:, :1]
    sorted_cost = (a.sort(0).values - b.sort(0).values).square().mean().sqrt()
    assert wasserstein(a, b) == pytest.approx(float(sorted_cost), rel=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_of_the_first_order_against_all_permutations(seed: int) -> None:
    a, b = points(6, seed), points(6, 100 + seed)
    orders = [list(order) for order in itertools.permutations(range(6))]
    costs = [float((a - b[order]).square().sum(1).sqrt().mean()) for order in orders]
    assert wasserstein(a, b, order=1) == pytest.approx(min(costs), rel=1e-12)
    assert wasserstein(a, b, order=1) < wasserstein(a, b)


def test_it_is_a_distance_of_sets() -> None:
    a, b, c = points(30, 0), points(30, 1), points(30, 2)
    assert wasserstein(a, a[torch.randperm(30)]) == 0
    assert wasserstein(a, b) == pytest.approx(wasserstein(b[torch.randperm(30)], a), rel=1e-12)
    assert wasserstein(5 * a, 5 * b) == pytest.approx(5 * wasserstein(a, b), rel=1e-12)
    assert wasserstein(a, b) <= wasserstein(a, c) + wasserstein(c, b)


def test_single_precision_is_computed_in_double() -> None:
    a, b = 1000 + points(20), 1000 + points(20, 1)
    assert wasserstein(a.float(), b.float()) == pytest.approx(wasserstein(a, b), rel=2e-4)
    assert wasserstein(a.float(), b.float()) == wasserstein(a.float().double(), b.float().double())


def test_the_metric_does_not_depend_on_batches_or_their_order() -> None:
    samples, real = points(25, 3), points(25, 4)
    for batches in (torch.arange(25).split(7), torch.randperm(25).split(4)):
        metric = wasserstein_to(real)
        for index in batches:
            metric.update(batch(samples[index], index))
        assert value(metric) == wasserstein(samples, real)


def test_the_states_of_processes_add_up() -> None:
    """What a sum over processes makes of the states of two that saw one half each."""
    samples, real = points(9, 3), points(9, 4)
    halves = [wasserstein_to(real) for _ in range(2)]
    for rank, metric in enumerate(halves):
        index = torch.arange(rank, 9, 2)
        metric.update(batch(samples[index], index))
    assert all(reduction is not None for reduction in halves[0]._reductions.values())
    merged = wasserstein_to(real)
    for name in merged._defaults:
        reduce = merged._reductions[name]
        assert callable(reduce)
        setattr(merged, name, reduce(torch.stack([getattr(metric, name) for metric in halves])))
    merged._update_count = 1
    assert value(merged) == wasserstein(samples, real)


def test_a_number_of_samples_that_was_not_promised() -> None:
    metric = wasserstein_to(points(5))
    metric.update(batch(points(4)))
    with pytest.raises(ValueError, match="expects 5 images, but saw 4"):
        metric.compute()


def test_bad_points() -> None:
    with pytest.raises(ValueError, match=r"\(4, 2\) and \(5, 2\)"):
        wasserstein(points(4), points(5))
    with pytest.raises(UserError, match="evaluation.num_samples: .* limited to 5000 points, not 5001"):
        wasserstein(torch.zeros(5001, 2), torch.zeros(5001, 2))
    for bad in (math.nan, math.inf):
        broken = points(4)
        broken[2, 1] = bad
        with pytest.raises(UserError, match="not finite"):
            wasserstein(broken, points(4))


def test_the_floor_is_the_mean_distance_to_other_real_points() -> None:
    real, train = points(10), points(27, 5)
    metric = WassersteinDistance().prepare(RealFeatures(real, train, net_name="points"), 8)
    metric.update(batch(points(8, 7)))
    scores = {name: estimate.value for name, estimate in metric.compute().items()}
    floor = sum(wasserstein(real[:8], train[start : start + 8]) for start in (0, 8, 16)) / 3
    assert scores == {"w2_points": wasserstein(points(8, 7), real[:8]), "w2_points_floor": pytest.approx(floor)}
    alone = WassersteinDistance().prepare(RealFeatures(real, net_name="points"), 8)
    assert math.isnan(alone.floor)
    with pytest.raises(UserError, match="there are 10, not 11"):
        WassersteinDistance().prepare(RealFeatures(real), 11)


@pytest.mark.parametrize(("num", "order"), [(2, 2), (7, 2), (40, 1), (300, 2)])
def test_potentials_solve_the_dual_problem(num: int, order: int) -> None:
    """Any potentials below the costs bound the distance from below; equality proves both."""
    cost, columns = assign(points(num), 0.5 * points(num, 1) ** 3, order)
    u, v = potentials(cost, columns)
    assert (cost - u[:, None] - v).min() > -1e-9
    assert float(u.mean() + v.mean()) == pytest.approx(float(cost.gather(1, columns[:, None]).mean()), abs=1e-12)
    _, other = assign(points(num), points(num, 2), order)
    assert num == 2 or not torch.equal(columns, other), "potentials of any assignment would do"


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (0.4, 1.3)])
def test_the_standard_error_is_the_spread_between_sets_of_samples(shift: float, scale: float) -> None:
    """Of equal distributions, too; the standard deviation of 150 values is known to 6 %."""
    real, sets = points(150, 10_000), [scale * points(150, seed) + shift for seed in range(150)]
    values = torch.tensor([wasserstein(samples, real) for samples in sets])
    errors = []
    for samples in sets[:15]:
        metric = wasserstein_to(real)
        metric.update(batch(samples))
        errors.append(metric.compute()["w2_points"].standard_error)
    assert 0.85 < sum(error or 0.0 for error in errors) / len(errors) / float(values.std()) < (1.2 if shift else 1.4)


def test_equal_sets_have_no_spread() -> None:
    metric = wasserstein_to(points(9))
    metric.update(batch(points(9)))
    assert metric.compute()["w2_points"].standard_error == 0
