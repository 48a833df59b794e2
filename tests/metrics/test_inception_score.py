import math

import numpy as np
import pytest
import torch
from torch_fidelity.metric_isc import isc_features_to_metric

from lit_gen.core.errors import UserError
from lit_gen.metrics import InceptionScore, ScoredBatch
from tests.metrics.real import inception


def score(logits: torch.Tensor, splits: int) -> tuple[float, float]:
    metric = inception(logits.shape[1], len(logits), splits)
    metric.update(ScoredBatch(torch.arange(len(logits)), logits=logits))
    mean, std = metric.compute().values()
    return mean.value, std.value


def random_logits(num: int, num_classes: int = 7) -> torch.Tensor:
    return 3 * torch.randn(num, num_classes, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("num_classes, splits", [(5, 1), (10, 4), (3, 10)])
def test_perfect_uniform_classes_score_their_number(num_classes, splits):
    logits = 1e4 * torch.eye(num_classes).repeat(splits * 2, 1)
    assert score(logits, splits) == pytest.approx((num_classes, 0), rel=1e-12, abs=1e-12)


def test_images_that_all_look_alike_score_one():
    assert score(random_logits(1).expand(40, -1), 4) == pytest.approx((1, 0), rel=1e-12, abs=1e-12)


def test_binary_closed_form():
    p = 0.9
    logits = torch.tensor([[p, 1 - p], [1 - p, p]], dtype=torch.float64).log().repeat(10, 1)
    exact = math.exp(p * math.log(p) + (1 - p) * math.log(1 - p) + math.log(2))
    assert score(logits, 5) == pytest.approx((exact, 0), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("num, splits", [(21, 10), (100, 1), (103, 10), (10, 10)])
def test_equals_torch_fidelity_without_shuffling(num, splits):
    logits = random_logits(num)
    theirs = isc_features_to_metric(logits, splits=splits, shuffle=False)
    assert score(logits, splits) == pytest.approx(
        (theirs["inception_score_mean"], theirs["inception_score_std"]), rel=1e-12, abs=1e-12
    )


def test_one_split_equals_torch_fidelity_with_its_shuffling():
    logits = random_logits(1000)
    theirs = isc_features_to_metric(logits, splits=1, shuffle=True)["inception_score_mean"]
    assert score(logits, 1)[0] == pytest.approx(theirs, rel=1e-12)
    # with more splits, theirs hold other images: a different sample of the same mean
    theirs = isc_features_to_metric(logits, splits=10, shuffle=True)["inception_score_mean"]
    assert score(logits, 10)[0] == pytest.approx(theirs, rel=0.02)
    assert score(logits, 10)[0] != theirs


def test_order_and_batches_do_not_matter():
    logits = random_logits(53)
    metric = inception(7, 53, 4)
    order = torch.randperm(53, generator=torch.Generator().manual_seed(1))
    for rows in order.split([1, 30, 0, 22]):
        metric.update(ScoredBatch(rows, logits=logits[rows].float()))
    mean, std = metric.compute().values()
    assert (mean.value, std.value) == pytest.approx(score(logits, 4), rel=1e-12)
    assert np.isfinite(std.value)


def test_wrong_number_of_images_is_an_error():
    metric = inception(7, 10, 2)
    metric.update(ScoredBatch(torch.arange(9), logits=random_logits(9)))
    with pytest.raises(ValueError, match="expects 10 images, but saw 9"):
        metric.compute()
    with pytest.raises(UserError, match="at least 10 images, not 4"):
        inception(7, 4, 10)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_logits_that_are_not_finite_are_an_error(bad):
    logits = random_logits(10)
    logits[3, 2] = bad
    metric = inception(7, 10, 2)
    metric.update(ScoredBatch(torch.arange(10), logits=logits))
    with pytest.raises(UserError, match="logits of 10 images are not finite"):
        metric.compute()


def test_settings_that_cannot_be():
    with pytest.raises(UserError, match="splits: 0 is too few"):
        InceptionScore(0)


@pytest.mark.parametrize("splits", [1, 5])
def test_deviations_have_the_spread_of_the_score_between_sets_of_samples(splits):
    generator = torch.Generator().manual_seed(splits)
    values, errors = [], []
    for _ in range(150):
        metric = inception(4, 400, splits)
        metric.update(ScoredBatch(torch.arange(400), logits=2 * torch.randn(400, 4, generator=generator)))
        mean, std = metric.compute().values()
        assert std.deviations is None
        values.append(mean.value)
        errors.append(mean.standard_error or 0.0)
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.15)
