import math

import numpy as np
import pytest
import scipy.stats
import torch
from scipy.optimize import linprog
from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.metrics import SlicedWasserstein, sliced, sliced_wasserstein
from lit_gen.metrics.real import RealFeatures
from tests.metrics.scoring import estimates, standard_error, value


def normal(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def optimal_transport(a: Tensor, b: Tensor) -> float:
    """W_2^2 between numbers as a linear program."""
    n, m = len(a), len(b)
    cost = (a[:, None] - b[None]).square().flatten().numpy()
    rows, columns = np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))
    totals = np.concatenate([np.full(n, 1 / n), np.full(m, 1 / m)])
    return float(linprog(cost, A_eq=np.concatenate([rows, columns]), b_eq=totals).fun)


@pytest.mark.parametrize("n, m", [(1, 1), (5, 5), (4, 6), (7, 3), (1, 8), (12, 18)])
def test_quantile_distance_equals_a_linear_program(n, m):
    a, b = normal(n, 1, n).flatten().sort().values, (2 * normal(m, 1, 50 + m) - 0.5).flatten().sort().values
    assert float(sliced.quantile_distance(a[None], b[None])) == pytest.approx(optimal_transport(a, b), rel=1e-9)


def test_equals_scipys_distance_of_each_projection_in_quantiles():
    # W_1 of scipy checks order and pieces for unequal sizes; W_2 of a shift equals it
    a, b = normal(30, 1, 0).flatten().sort().values, normal(45, 1, 1).flatten().sort().values + 9
    piece = sliced.quantile_distance(a[None], b[None]).sqrt()
    assert float(piece) == pytest.approx(scipy.stats.wasserstein_distance(a, b), rel=0.02)
    assert float(piece) >= scipy.stats.wasserstein_distance(a, b)


@pytest.mark.parametrize("n, m, d", [(40, 40, 3), (30, 70, 5)])
def test_equals_pot(n, m, d):
    ot = pytest.importorskip("ot")
    x, y = normal(n, d, 0) * 1.4, normal(m, d, 1)
    theta = sliced.directions(50, d, 3)
    theirs = ot.sliced_wasserstein_distance(x.numpy(), y.numpy(), projections=theta.T.numpy(), p=2)
    assert sliced_wasserstein(x, y, theta) == pytest.approx(float(theirs), rel=1e-10)
    ours = value(SlicedWasserstein(num_projections=50, seed=3), RealFeatures(y), features=x)
    assert ours == pytest.approx(float(theirs), rel=1e-10)


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_equals_a_linear_program_for_each_direction(chunk, monkeypatch):
    monkeypatch.setattr(sliced, "CHUNK", chunk)
    x, y, theta = normal(9, 4, 0), normal(6, 4, 1) + 0.3, sliced.directions(20, 4)
    exact = np.mean([optimal_transport(x @ each, y @ each) for each in theta]) ** 0.5
    assert sliced_wasserstein(x, y, theta) == pytest.approx(exact, rel=1e-9)
    assert value(SlicedWasserstein(num_projections=20), RealFeatures(y), features=x) == pytest.approx(exact, rel=1e-9)


def test_directions_are_uniform_and_seeded():
    theta = sliced.directions(20_000, 5)
    assert theta.norm(dim=1) == pytest.approx(np.ones(20_000), rel=1e-12)
    assert (theta.T @ theta / 20_000).numpy() == pytest.approx(np.eye(5) / 5, abs=0.006)
    assert torch.equal(theta, sliced.directions(20_000, 5)) and not torch.equal(theta, sliced.directions(20_000, 5, 1))
    state = torch.get_rng_state()
    sliced.directions(3, 3)
    assert torch.equal(state, torch.get_rng_state())


def test_closed_form_of_a_shift_and_a_scale():
    x, d = normal(200, 6, 0), 6
    shift = torch.arange(6.0).double()
    theta = sliced.directions(4000, d)
    exact = float(shift.norm()) / math.sqrt(d)
    assert sliced_wasserstein(x + shift, x, theta) == pytest.approx(exact, rel=0.03)
    # x -> 3 x along every direction: W_2^2 = 4 |theta . x|^2 / n, with the mean 4 |x|^2 / (n d)
    exact = math.sqrt(4 * float(x.square().sum(1).mean()) / d)
    assert sliced_wasserstein(3 * x, x, theta) == pytest.approx(exact, rel=0.03)
    assert sliced_wasserstein(x, x, theta) == 0
    assert sliced_wasserstein(x.repeat(3, 1), x, theta) == pytest.approx(0, abs=1e-12)


def test_potential_is_the_derivative_of_the_distance():
    # moving mass e from a_i to a_j changes W_2^2 by e (u_j - u_i)
    a, b = normal(8, 1, 0).flatten().sort().values, normal(5, 1, 1).flatten().sort().values
    potential = sliced.potentials(a[None], b[None])[0]
    i, j, copies = 2, 6, 3000
    counts = torch.full((8,), copies)
    counts[i] -= 1
    counts[j] += 1
    moved = sliced.quantile_distance(a.repeat_interleave(counts)[None], b[None])
    change = float(moved - sliced.quantile_distance(a[None], b[None])) * 8 * copies
    assert float(potential[j] - potential[i]) == pytest.approx(change, rel=1e-3)
    assert abs(change) > 0.1


@pytest.mark.slow
def test_spread():
    real = RealFeatures(normal(500, 4, 0))
    metric = SlicedWasserstein(num_projections=64)
    found = [estimates(metric, real, features=normal(200, 4, i) * 1.3 + 0.3)["sw_features"] for i in range(1, 201)]
    spread = np.std([each.value for each in found])
    assert np.mean([standard_error(each) for each in found]) == pytest.approx(spread, rel=0.15)


def test_names_and_settings():
    x, y = normal(30, 3, 0), normal(40, 3, 1)
    for net in ("inception", "digits"):
        assert list(estimates(SlicedWasserstein(), RealFeatures(y, net_name=net), features=x)) == [f"sw_{net}"]
    assert SlicedWasserstein(8).settings() == {"num_projections": 8, "seed": 0, "max_images": 10_000}
    with pytest.raises(UserError, match="num_projections: 0"):
        SlicedWasserstein(0)
