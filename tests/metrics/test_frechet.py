import warnings
from typing import Literal

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.metrics import FrechetDistance, Moments, RealFeatures, frechet_distance
from lit_gen.metrics.frechet import frechet_influence
from tests.metrics.real import RealMoments, batch, frechet, value


def spd(d: int, generator: torch.Generator, rank: int | None = None) -> Tensor:
    factor = torch.randn(d, rank or 2 * d, dtype=torch.float64, generator=generator)
    return factor @ factor.T / factor.shape[1]


def gaussian(d: int, seed: int, rank: int | None = None) -> Moments:
    generator = torch.Generator().manual_seed(seed)
    return Moments(10**6, torch.randn(d, dtype=torch.float64, generator=generator), spd(d, generator, rank))


def test_moments_are_the_unbiased_ones():
    x = torch.randn(50, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 1e4
    moments = Moments.of(x)
    assert moments.n == 50
    np.testing.assert_allclose(moments.mean, x.numpy().mean(0), rtol=1e-14)
    np.testing.assert_allclose(moments.cov, np.cov(x.numpy(), rowvar=False), rtol=1e-10, atol=1e-12)


def test_diagonal_closed_form():
    mean_a, mean_b = torch.tensor([1.0, -2.0, 0.5]).double(), torch.tensor([0.0, 1.0, 0.5]).double()
    var_a, var_b = torch.tensor([4.0, 9.0, 0.25]).double(), torch.tensor([1.0, 25.0, 0.0]).double()
    distance = frechet_distance(Moments(99, mean_a, var_a.diag()), Moments(99, mean_b, var_b.diag()))
    assert distance == pytest.approx(1 + 9 + (1 + 4 + 0.25), rel=1e-12)


def test_commuting_covariances_closed_form():
    a = gaussian(40, 0)
    values, vectors = torch.linalg.eigh(a.cov)
    other = torch.rand(40, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 3
    b = Moments(a.n, a.mean, vectors @ other.diag() @ vectors.T)
    exact = (values.sqrt() - other.sqrt()).square().sum().item()
    assert frechet_distance(a, b) == pytest.approx(exact, rel=1e-10)


@pytest.mark.parametrize("rank_a, rank_b", [(None, None), (10, None), (None, 10), (10, 20), (1, 1)])
def test_equals_scipys_matrix_square_root(rank_a, rank_b):
    a, b = gaussian(30, 0, rank_a), gaussian(30, 1, rank_b)
    root_a = scipy.linalg.sqrtm(a.cov.numpy() + 1e-14 * np.eye(30)).real
    inner = root_a @ b.cov.numpy() @ root_a
    cross = np.sqrt(np.clip(scipy.linalg.eigvalsh((inner + inner.T) / 2), 0, None)).sum()
    exact = ((a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace()).item() - 2 * cross
    assert frechet_distance(a, b) == pytest.approx(exact, abs=3e-5)
    if rank_a is None and rank_b is None:
        product = scipy.linalg.sqrtm(a.cov.numpy() @ b.cov.numpy()).real
        exact = ((a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace()).item() - 2 * np.trace(product)
        assert frechet_distance(a, b) == pytest.approx(exact, rel=1e-10)


@pytest.mark.parametrize("rank", [None, 13])
def test_is_a_metric_without_preferred_axes(rank):
    a, b = gaussian(300, 0, rank), gaussian(300, 1, rank)  # wider than one block of the products
    distance = frechet_distance(a, b)
    assert frechet_distance(b, a) == pytest.approx(distance, rel=1e-7)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-5)
    generator = torch.Generator().manual_seed(2)
    rotation = torch.linalg.qr(torch.randn(300, 300, dtype=torch.float64, generator=generator))[0]
    turned = [Moments(m.n, rotation @ m.mean, rotation @ m.cov @ rotation.T) for m in (a, b)]
    assert frechet_distance(*turned) == pytest.approx(distance, rel=1e-7)
    shift = torch.randn(300, dtype=torch.float64, generator=generator)
    moved = Moments(a.n, a.mean + shift, a.cov)
    assert frechet_distance(a, moved) == pytest.approx(shift.square().sum().item(), rel=1e-8)


def test_equals_torchmetrics_and_torch_fidelity_given_the_same_moments():
    from torch_fidelity.metric_fid import fid_statistics_to_metric
    from torchmetrics.image.fid import _compute_fid

    a, b = gaussian(100, 0), gaussian(100, 1)
    distance = frechet_distance(a, b)
    assert _compute_fid(a.mean, a.cov, b.mean, b.cov).item() == pytest.approx(distance, rel=1e-10)
    statistics = [{"mu": m.mean.numpy(), "sigma": m.cov.numpy()} for m in (a, b)]
    theirs = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert theirs == pytest.approx(distance, rel=1e-10)


@pytest.mark.parametrize("n, m", [(2000, 2000), (500, 4000)])
def test_bias_of_finite_samples(n, m):
    d, generator = 32, torch.Generator().manual_seed(0)
    distances = []
    for _ in range(20):
        sets = [torch.randn(k, d, dtype=torch.float64, generator=generator) for k in (n, m)]
        distances.append(frechet_distance(*(Moments.of(x) for x in sets)))
    expected = (1 / n + 1 / m) * (d + d * (d + 1) / 4)
    assert np.mean(distances) == pytest.approx(expected, rel=0.03)


def test_metric_adds_up_batches_of_any_size():
    generator = torch.Generator().manual_seed(0)
    reference = gaussian(16, 1)
    features = torch.randn(101, 16, generator=generator) * 3 + 1000
    exact = frechet_distance(Moments.of(features), reference)
    metric = frechet(reference)
    for rows in torch.arange(101).split([1, 50, 7, 43]):
        metric.update(batch(features[rows], rows))
    assert value(metric) == pytest.approx(exact, rel=1e-10)
    metric.reset()
    metric.update(batch(features))
    assert value(metric) == pytest.approx(exact, rel=1e-10)


def test_half_precision_features_are_summed_in_double():
    features = torch.randn(64, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    metric = frechet(gaussian(4, 0))
    with torch.autocast("cpu", torch.bfloat16):
        metric.update(batch(features))
    assert value(metric) == pytest.approx(frechet_distance(Moments.of(features), gaussian(4, 0)), rel=1e-12)


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_samples_are_an_error(n):
    metric = frechet(gaussian(4, 0))
    metric.update(batch(torch.zeros(n, 4)))
    with pytest.raises(UserError, match=f"at least 2 images of each kind, not {n}"):
        metric.compute()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_features_that_are_not_finite_are_an_error(bad):
    features = torch.randn(20, 4)
    features[3, 2] = bad
    metric = frechet(gaussian(4, 0))
    metric.update(batch(features))
    with pytest.raises(UserError, match="features of 20 images are not finite"):
        metric.compute()


def test_warns_once_of_a_rank_deficient_covariance():
    reference = gaussian(8, 0)
    metric = frechet(reference)
    metric.update(batch(torch.randn(8, 8, generator=torch.Generator().manual_seed(0))))
    with pytest.warns(UserWarning, match="8 features from 8 images is rank-deficient") as record:
        metric.compute()
        metric.compute()
    assert len(record) == 1
    metric.update(batch(torch.randn(1, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([8])))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metric.compute()


def test_moments_of_different_feature_nets_have_no_distance():
    with pytest.raises(ValueError, match="64 and of 10 features"):
        frechet_distance(gaussian(64, 0), gaussian(10, 0))


def test_influence_is_the_derivative_of_the_distance_by_the_weight_of_a_sample():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(60, 5, dtype=torch.float64, generator=generator) @ spd(5, generator) + 0.3
    reference = gaussian(5, 4)

    def distance(weights: Tensor) -> Tensor:
        weights = weights / weights.sum()
        mean = weights @ x
        cov = (x - mean).T @ ((x - mean) * weights[:, None])
        root = torch.linalg.cholesky(reference.cov)
        cross = torch.linalg.eigvalsh(root.T @ cov @ root).sqrt().sum()
        return (mean - reference.mean).square().sum() + cov.trace() + reference.cov.trace() - 2 * cross

    weights = torch.ones(60, dtype=torch.float64, requires_grad=True)
    (exact,) = torch.autograd.grad(distance(weights) * 60, weights)
    centred = x - x.mean(0)
    moments = Moments(60, x.mean(0), centred.T @ centred / 60)
    torch.testing.assert_close(frechet_influence(x, moments, reference), exact, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("n", [80, 600])
def test_deviations_have_the_spread_of_the_distance_between_sets_of_samples(n):
    generator = torch.Generator().manual_seed(n)
    mixing, reference = spd(6, generator), gaussian(6, 9)
    values, errors = [], []
    for _ in range(150):
        metric = frechet(reference, n)
        metric.update(batch(torch.randn(n, 6, dtype=torch.float64, generator=generator) @ mixing))
        (estimate,) = metric.compute().values()
        values.append(estimate.value)
        errors.append(estimate.standard_error or 0.0)
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.15)


def test_few_stored_samples_give_the_spread_of_all():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4000, 4, dtype=torch.float64, generator=generator)
    errors = []
    for most in (4000, 1000):
        metric = FrechetDistance(max_images=most).prepare(RealMoments(gaussian(4, 2)), 4000)
        metric.update(batch(x))
        (estimate,) = metric.compute().values()
        errors.append(estimate.standard_error or 0.0)
    assert errors[1] == pytest.approx(errors[0], rel=0.2)


def test_the_distance_to_held_out_images_has_its_own_name_and_settings():
    real = RealFeatures(torch.randn(50, 3), held_out=torch.randn(40, 3) + 1, distance_name="fid")
    x = torch.randn(30, 3)
    scores: dict[str, float] = {}
    parts: tuple[Literal["reference", "held out"], ...] = ("reference", "held out")
    for against in parts:
        metric = FrechetDistance(against).prepare(real, 30)
        metric.update(batch(x))
        assert metric.settings() == {"against": against}
        scores |= {name: each.value for name, each in metric.compute().items()}
    for name, part in zip(("fid", "fid_held_out"), parts, strict=True):
        assert scores[name] == pytest.approx(frechet_distance(Moments.of(x), real.moments(part)), rel=1e-9)
    assert "held out" in metric.needs and "held out" not in FrechetDistance().needs
