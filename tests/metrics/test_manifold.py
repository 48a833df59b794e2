import math

import numpy as np
import pytest
import torch
from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.metrics import DensityCoverage, PrecisionRecall, density_and_coverage, pairwise, precision_and_recall
from lit_gen.metrics.halves import half_samples
from lit_gen.metrics.real import RealFeatures
from tests.metrics.scoring import estimates, standard_error


def normal(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def definition(real: Tensor, fake: Tensor, k: int) -> dict[str, float]:
    """The four scores, pair by pair."""

    def radii(points: Tensor) -> list[float]:
        return [
            sorted(math.dist(p, q) for j, q in enumerate(points.tolist()) if j != i)[k - 1]
            for i, p in enumerate(points.tolist())
        ]

    of_real, of_fake = radii(real), radii(fake)
    distance = [[math.dist(x, y) for y in fake.tolist()] for x in real.tolist()]
    n, m = len(real), len(fake)
    in_real = [[distance[i][j] <= of_real[i] for j in range(m)] for i in range(n)]
    in_fake = [[distance[i][j] <= of_fake[j] for j in range(m)] for i in range(n)]
    return {
        "precision": sum(any(in_real[i][j] for i in range(n)) for j in range(m)) / m,
        "recall": sum(any(row) for row in in_fake) / n,
        "density": sum(sum(row) for row in in_real) / (k * m),
        "coverage": sum(any(row) for row in in_real) / n,
    }


def scores(real: Tensor, fake: Tensor, k: int) -> dict[str, float]:
    found = estimates(PrecisionRecall(k), RealFeatures(real), features=fake)
    found |= estimates(DensityCoverage(k), RealFeatures(real), features=fake)
    return {name: estimate.value for name, estimate in found.items()}


@pytest.mark.parametrize("n, m, d", [(9, 9, 1), (40, 23, 3), (17, 60, 8)])
@pytest.mark.parametrize("k", [1, 3, 7])
@pytest.mark.parametrize("block", [1, 7, 512])
def test_equals_the_definition_in_blocks_of_any_size(n, m, d, k, block, monkeypatch):
    monkeypatch.setattr(pairwise, "BLOCK", block)
    real, fake = normal(n, d, 0), 0.7 * normal(m, d, 1) + 0.2
    expected = definition(real, fake, k)
    assert scores(real, fake, k) == pytest.approx(expected, abs=1e-12)
    assert precision_and_recall(real, fake, k) == pytest.approx((expected["precision"], expected["recall"]), abs=1e-12)
    assert density_and_coverage(real, fake, k) == pytest.approx((expected["density"], expected["coverage"]), abs=1e-12)
    assert min(expected.values()) > 0


@pytest.mark.parametrize("k", [3, 5])
def test_equals_prdc_and_torch_fidelity(k):
    from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

    prdc = pytest.importorskip("prdc")
    real, fake = normal(300, 6, 0), 0.6 * normal(250, 6, 1) + 0.3
    ours = scores(real, fake, k)
    theirs = prdc.compute_prdc(real_features=real.numpy(), fake_features=fake.numpy(), nearest_k=k)
    assert ours == pytest.approx({name: float(theirs[name]) for name in ours}, abs=1e-12)
    theirs = prc_features_to_metric(fake, real, prc_neighborhood=k, verbose=False)
    assert ours["precision"] == pytest.approx(theirs[KEY_METRIC_PRECISION], abs=1e-6)
    assert ours["recall"] == pytest.approx(theirs[KEY_METRIC_RECALL], abs=1e-6)
    assert 0.3 < ours["recall"] < 0.95 and 0.5 < ours["precision"] < 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("offset, scale", [(0.0, 1.0), (1000.0, 1.0), (0.0, 1e-20), (-5.0, 1e15)])
def test_equal_points_have_distance_zero_and_ties_are_inside(dtype, offset, scale):
    points = (normal(60, 500, 0) * scale + offset * scale).to(dtype)
    balls = pairwise.PointSet(points)
    distances = torch.cat([block for _, block in balls.squared_distances(points)])
    assert torch.equal(distances == 0, torch.eye(60, dtype=torch.bool))
    # each sample is a real image: it lies on the edges of the balls that reach to it
    assert scores(points, points, 3) == scores(points, points.flip(0), 3)
    assert scores(points, points, 3)["recall"] == scores(points, points, 3)["precision"] == 1
    # 4 of the balls' points: the centre and three pairwise
    assert scores(points, points, 3)["density"] == pytest.approx(4 / 3, abs=1e-12)
    twice = points[:30].repeat(2, 1)
    nearest = pairwise.PointSet(twice).nearest(2)[0]
    assert (nearest[:, 0] == 0).all() and (nearest[:, 1] > 0).all()
    # the balls of k = 1 are the points themselves, which only copies are in
    assert scores(twice, points, 1)["precision"] == 0.5
    assert scores(twice, points[30:], 1)["precision"] == 0


def test_far_outliers_do_not_merge_other_points():
    real, fake = normal(50, 3, 0), normal(50, 3, 1)
    fake[0], real[7] = 1e8, -1e8
    assert scores(real, fake, 3) == pytest.approx(definition(real, fake, 3), abs=1e-12)


def test_expected_coverage_of_the_real_distribution():
    n, m, k = 30, 20, 4
    found = [density_and_coverage(normal(n, 2, 2 * i), normal(m, 2, 2 * i + 1), k) for i in range(600)]
    none = math.prod((n - 1 - i) / (n + m - 1 - i) for i in range(k))
    density, coverage = np.mean(found, axis=0)
    errors = np.std(found, axis=0) / np.sqrt(len(found))
    assert coverage == pytest.approx(1 - none, abs=4 * errors[1])
    assert density == pytest.approx(1, abs=max(4 * errors[0], 0.03))
    assert errors[1] < 0.005


def test_evenly_spaced_real_images():
    real, fake = normal(100, 2, 0), normal(40, 2, 1)
    few = real[torch.arange(30) * 100 // 30]
    found = estimates(DensityCoverage(max_images=30), RealFeatures(real), features=fake)
    assert (found["density"].value, found["coverage"].value) == density_and_coverage(few, fake[:30])
    found = estimates(PrecisionRecall(max_images=30), RealFeatures(real), features=fake)
    assert (found["precision"].value, found["recall"].value) == precision_and_recall(few, fake[:30])


def test_deviations_are_those_of_the_scores_on_halves():
    real, fake = normal(70, 3, 0), normal(50, 3, 1) * 0.8
    halves = half_samples(50)
    on_halves = torch.tensor(
        [[*precision_and_recall(real, fake[half], 2), density_and_coverage(real, fake[half], 4)[0]] for half in halves],
        dtype=torch.float64,
    )
    found = estimates(PrecisionRecall(2), RealFeatures(real), features=fake)
    found |= estimates(DensityCoverage(4), RealFeatures(real), features=fake)
    for column, name in zip(on_halves.T, ("precision", "recall", "density"), strict=True):
        assert found[name].deviations == pytest.approx((column - column.mean()).numpy(), abs=1e-12), name
        assert standard_error(found[name]) > 0


@pytest.mark.parametrize("num", [12, 50])
def test_the_spread_of_coverage_is_that_of_the_jackknife(num):
    real, fake = normal(70, 3, 0), normal(num, 3, 1) * 0.8
    without = [density_and_coverage(real, fake[torch.arange(num) != i], 4)[1] for i in range(num)]
    jackknife = math.sqrt((num - 1) ** 2 / num * np.var(without, ddof=1))
    found = estimates(DensityCoverage(4), RealFeatures(real), features=fake)["coverage"]
    assert standard_error(found) == pytest.approx(jackknife, rel=0.15) and jackknife > 0.01


@pytest.mark.slow
@pytest.mark.exhaustive
def test_spread_of_precision_and_density():
    real = RealFeatures(normal(100, 3, 0))
    samples = [normal(200, 3, i) * 1.2 + 0.5 for i in range(1, 201)]
    found = [
        estimates(PrecisionRecall(), real, features=x) | estimates(DensityCoverage(), real, features=x) for x in samples
    ]
    for name in ("precision", "density"):
        errors = [standard_error(each[name]) for each in found]
        assert np.mean(errors) == pytest.approx(np.std([each[name].value for each in found]), rel=0.15), name


def test_too_few_points_are_an_error():
    x = normal(20, 2, 0)
    with pytest.raises(UserError, match="at least 4 real images, not 3"):
        PrecisionRecall(3).prepare(RealFeatures(x[:3]), 20)
    with pytest.raises(UserError, match="at least 6 real images, not 5"):
        DensityCoverage(5).prepare(RealFeatures(x[:5]), 20)
    with pytest.raises(UserError, match="at least 4 samples, not 3"):
        estimates(PrecisionRecall(3), RealFeatures(x), features=x[:3])
    few = estimates(PrecisionRecall(3), RealFeatures(x), features=x[:6])
    assert few["recall"].deviations is None and few["precision"].deviations is not None
