import math

import numpy as np
import pytest
import torch
from torch_fidelity.metric_isc import isc_features_to_metric

from lit_gen.core.errors import UserError
from lit_gen.metrics import InceptionScore


def score(logits: torch.Tensor, splits: int) -> tuple[float, float]:
    metric = InceptionScore(logits.shape[1], len(logits), splits)
    metric.update(logits, torch.arange(len(logits)))
    mean, std = metric.compute()
    return mean.item(), std.item()


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
    metric = InceptionScore(7, 53, 4)
    order = torch.randperm(53, generator=torch.Generator().manual_seed(1))
    for rows in order.split([1, 30, 0, 22]):
        metric.update(logits[rows].float(), rows)
    mean, std = metric.compute()
    assert (mean.item(), std.item()) == pytest.approx(score(logits, 4), rel=1e-12)
    assert np.isfinite(std.item()) and mean.dtype == torch.float64


def test_wrong_number_of_images_is_an_error():
    metric = InceptionScore(7, 10, 2)
    metric.update(random_logits(9), torch.arange(9))
    with pytest.raises(ValueError, match="expects 10 images, but saw 9"):
        metric.compute()
    with pytest.raises(UserError, match="at least 10 images, not 4"):
        InceptionScore(7, 4, 10)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_logits_that_are_not_finite_are_an_error(bad):
    logits = random_logits(10)
    logits[3, 2] = bad
    metric = InceptionScore(7, 10, 2)
    metric.update(logits, torch.arange(10))
    with pytest.raises(UserError, match="logits of 10 images are not finite"):
        metric.compute()
