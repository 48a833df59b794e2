import numpy as np
import pytest
import torch
from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.metrics import KernelDistance, kernel, kernel_distance
from lit_gen.metrics.real import RealFeatures
from tests.metrics.scoring import estimates, standard_error, value


def normal(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def every_pair(x: Tensor, y: Tensor) -> float:
    """The definition, pair by pair."""

    def k(a: Tensor, b: Tensor) -> float:
        return (sum(float(s) * float(t) for s, t in zip(a, b, strict=True)) / len(a) + 1) ** 3

    n, m = len(x), len(y)
    own = [
        sum(k(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j) / (len(z) * (len(z) - 1))
        for z in (x, y)
    ]
    return sum(own) - 2 * sum(k(a, b) for a in x for b in y) / (n * m)


@pytest.mark.parametrize("n, m, d", [(2, 2, 1), (7, 12, 3), (15, 4, 8)])
@pytest.mark.parametrize("block", [1, 5, 2048])
def test_equals_the_definition_in_blocks_of_any_size(n, m, d, block, monkeypatch):
    monkeypatch.setattr(kernel, "BLOCK", block)
    x, y = normal(n, d, 0) + 1, 2 * normal(m, d, 1)
    assert kernel_distance(x, y) == pytest.approx(every_pair(x, y), rel=1e-12)
    assert value(KernelDistance(), RealFeatures(y), features=x) == pytest.approx(every_pair(x, y), rel=1e-12)


@pytest.mark.parametrize("d", [4, 64])
def test_equals_torch_fidelity_and_torchmetrics_given_one_subset_of_all_images(d):
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric
    from torchmetrics.image.kid import poly_mmd

    x, y = normal(120, d, 0) * 1.5 + 0.3, normal(120, d, 1)
    theirs = kid_features_to_metric(x, y, kid_subsets=1, kid_subset_size=120, verbose=False)[KEY_METRIC_KID_MEAN]
    ours = value(KernelDistance(), RealFeatures(y), features=x)
    assert ours == pytest.approx(theirs, rel=1e-10)
    assert ours == pytest.approx(float(poly_mmd(y, x)), rel=1e-10)


def test_is_the_expectation_over_subsets_of_other_programs():
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

    x, y = normal(300, 8, 0) + 0.4, normal(400, 8, 1)
    theirs = kid_features_to_metric(x, y, kid_subsets=400, kid_subset_size=50, verbose=False)
    error = theirs[KEY_METRIC_KID_STD] / np.sqrt(400)
    assert kernel_distance(x, y) == pytest.approx(theirs[KEY_METRIC_KID_MEAN], abs=4 * error)
    assert error < 0.05 * kernel_distance(x, y)


def test_expectation_is_the_closed_form_for_every_number_of_samples():
    # in one dimension, with x ~ N(mu, 1) and y ~ N(0, 1): E (x x' + 1)^3 = sum_j binom(3, j) (E x^j)^2
    mu = 0.5
    moments_x, moments_y = [1, mu, 1 + mu**2, mu**3 + 3 * mu], [1, 0, 1, 0]
    exact = sum(c * (a - b) ** 2 for c, a, b in zip([1, 3, 3, 1], moments_x, moments_y, strict=True))
    for n, repeats in ((4, 2000), (40, 200)):
        found = [kernel_distance(normal(n, 1, 2 * i) + mu, normal(n, 1, 2 * i + 1)) for i in range(repeats)]
        error = np.std(found) / np.sqrt(len(found))
        assert np.mean(found) == pytest.approx(exact, abs=4 * error), n
        assert error < 0.25 * exact


def test_has_no_bias_at_equal_distributions():
    for n in (10, 100):
        found = [kernel_distance(normal(n, 6, 2 * i), normal(2 * n, 6, 2 * i + 1)) for i in range(400)]
        assert abs(np.mean(found)) < 4 * np.std(found) / 20
        assert min(found) < 0 < max(found)


@pytest.mark.slow
def test_spread_of_different_distributions():
    real = RealFeatures(normal(2000, 5, 0))
    found = [estimates(KernelDistance(), real, features=normal(200, 5, i) * 1.3 + 0.3) for i in range(1, 201)]
    values = [each["kd_features"].value for each in found]
    errors = [standard_error(each["kd_features"]) for each in found]
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.15)


def test_samples_past_the_largest_number_do_not_count():
    x, real = normal(50, 3, 0), RealFeatures(normal(60, 3, 1))
    assert value(KernelDistance(max_images=20), real, features=x) == value(KernelDistance(), real, features=x[:20])
    assert KernelDistance(max_images=20).settings() == {"against": "reference", "max_images": 20}


def test_names_follow_the_net_and_the_real_images():
    x, y, z = normal(30, 3, 0), normal(40, 3, 1), normal(20, 3, 2) + 3
    for net, distance, name in (("inception", "fid", "kid"), ("digits", None, "kd_digits")):
        real = RealFeatures(y, held_out=z, net_name=net, distance_name=distance)
        assert list(estimates(KernelDistance(), real, features=x)) == [name]
        held_out = estimates(KernelDistance(against="held out"), real, features=x)
        assert held_out[f"{name}_held_out"].value == pytest.approx(kernel_distance(x, z))
    assert KernelDistance().needs == {"features"}
    assert KernelDistance(against="held out").needs == {"features", "held out"}
    with pytest.raises(UserError, match="held out"):
        KernelDistance(against="held out").prepare(RealFeatures(y), 30)


def test_large_features_stay_finite():
    x = torch.full((3, 2), 3e38)
    assert value(KernelDistance(), RealFeatures(-x), features=x) > 1e200
