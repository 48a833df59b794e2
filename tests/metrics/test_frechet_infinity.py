import numpy as np
import pytest
import torch
from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.metrics import FrechetDistance, FrechetInfinity, Moments, frechet_distance
from lit_gen.metrics.frechet_infinity import intercept_weights, subsets
from lit_gen.metrics.real import RealFeatures
from tests.metrics.scoring import estimates, standard_error, value


def normal(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_is_the_intercept_of_the_line_through_15_sizes():
    x, real = normal(345, 6, 0) * 1.2, normal(800, 6, 1)
    sizes = np.round(np.linspace(34, 345, 15)).astype(int)
    chosen = subsets(345, seed=4)
    assert [len(each) for each in chosen] == sizes.tolist()
    assert all(len(each.unique()) == len(each) for each in chosen)
    assert not set(chosen[0].tolist()) <= set(chosen[1].tolist())  # shuffled anew
    reference = Moments.of(real)
    distances = [frechet_distance(Moments.of(x[each]), reference) for each in chosen]
    _, intercept = np.polyfit(1 / sizes, distances, 1)
    ours = value(FrechetInfinity(seed=4), RealFeatures(real), features=x)
    assert ours == pytest.approx(intercept, rel=1e-9)
    assert ours != value(FrechetInfinity(seed=5), RealFeatures(real), features=x)


def test_weights_are_exact_for_lines():
    sizes = torch.tensor([10, 20, 50, 75])
    weights = intercept_weights(sizes)
    assert float(weights @ (3 + 7 / sizes.double())) == pytest.approx(3, rel=1e-12)


def test_removes_the_bias_of_the_samples():
    d, n = 8, 300
    exact = 0.5**2 * d + d * (1.2 - 1) ** 2
    reference = normal(20_000, d, 10**6)
    reference = (reference - reference.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(Moments.of(reference).cov)).T
    real = RealFeatures(reference)  # mean 0 and covariance 1 exactly
    plain, infinite = [], []
    for i in range(60):
        x = 1.2 * normal(n, d, i) + 0.5
        plain.append(value(FrechetDistance(), real, features=x))
        infinite.append(value(FrechetInfinity(seed=i), real, features=x))
    error = np.std(infinite) / np.sqrt(60)
    bias = np.mean(plain) - exact
    assert bias > 4 * np.std(plain) / np.sqrt(60), "the plain distance is biased"
    assert abs(np.mean(infinite) - exact) < 4 * error
    assert error < 0.3 * bias


def test_spread():
    real = RealFeatures(normal(1000, 4, 0))
    found = [
        estimates(FrechetInfinity(seed=i), real, features=normal(400, 4, i) * 1.3 + 0.3)["fd_features_infinity"]
        for i in range(1, 101)
    ]
    errors = [standard_error(each) for each in found]
    assert np.mean(errors) == pytest.approx(np.std([each.value for each in found]), rel=0.25)


def test_needs_ten_times_more_samples_than_features():
    real = RealFeatures(normal(200, 7, 0), distance_name="fid")
    with pytest.raises(UserError, match="evaluation.num_samples: fid_infinity of 7 features needs at least 80 samples"):
        FrechetInfinity().prepare(real, 79)
    with pytest.raises(UserError, match="max_images: .* at least 80 samples, not 79"):
        FrechetInfinity(max_images=79).prepare(real, 1000)
    assert list(estimates(FrechetInfinity(), real, features=normal(80, 7, 1))) == ["fid_infinity"]
