import math

import pytest
import torch
from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.metrics import Duplicates, duplicate_rate
from lit_gen.metrics.base import Estimate, ScoredBatch
from lit_gen.metrics.real import RealFeatures


def brute_force(real: Tensor, fake: Tensor) -> float:
    """Each image at a time, in the words of the definition."""
    gaps = []
    for x in real:
        others = [float((x - y).norm()) for y in real if not torch.equal(x, y)]
        gaps += [min(others)] if others else []
    limit = float(torch.tensor(gaps, dtype=torch.float64).median()) / 2 if gaps else 0.0
    found = 0
    for i, x in enumerate(fake):
        others = [float((x - y).norm()) for j, y in enumerate(fake) if i != j]
        found += min(others) == 0 or min(others) < limit
    return found / len(fake)


@pytest.mark.parametrize("seed", range(6))
def test_equals_brute_force(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    real = torch.randn(40, 2, generator=generator, dtype=torch.float64)
    real = torch.cat([real, real[: 5 * seed]])
    fake = torch.randn(60, 2, generator=generator, dtype=torch.float64)
    fake = torch.cat([fake, fake[:seed]])
    rate = duplicate_rate(real, fake)
    assert rate == brute_force(real, fake) and 0 < rate < 1


def compute(features: Tensor, real: Tensor, max_images: int = 10_000) -> Estimate:
    metric = Duplicates(max_images).prepare(RealFeatures(real), len(features))
    for index in torch.arange(len(features)).flip(0).split(7):
        metric.update(ScoredBatch(index, features=features[index]))
    return metric.compute()["duplicate_rate"]


def test_a_hand_made_example() -> None:
    real = torch.tensor([[0.0], [1.0], [2.0], [3.0]])  # the limit is 1/2
    value, spread = compute(torch.tensor([[0.0], [0.4], [5.0], [5.6], [9.0], [9.0]]), real)
    assert value == pytest.approx(4 / 6)
    assert spread is not None and float(spread.std()) == pytest.approx((2 / 9 / 5) ** 0.5, rel=0.15)


def test_as_many_real_images_as_samples_set_the_limit() -> None:
    real = torch.arange(8.0)[:, None]  # every other one: 2 apart, so the limit is 1
    assert compute(torch.tensor([[0.0], [0.9], [5.0], [5.9]]), real).value == 1
    assert compute(torch.tensor([[0.0], [0.9], [5.0], [5.9]]), real[:4]).value == 0


def test_only_the_first_images_are_compared() -> None:
    features = torch.tensor([[0.0], [7.0], [0.0], [7.0]])
    real = torch.arange(4.0)[:, None]
    assert compute(features, real).value == 1 and compute(features, real, max_images=2).value == 0


def test_limits() -> None:
    assert duplicate_rate(torch.zeros(5, 2), torch.zeros(4, 2)) == 1, "without different real images, equal ones count"
    assert duplicate_rate(torch.zeros(1, 2), torch.eye(2)) == 0
    with pytest.raises(UserError, match="evaluation.num_samples: .* at least 2"):
        Duplicates().prepare(RealFeatures(torch.zeros(5, 2)), 1)
    with pytest.raises(UserError, match="not finite"):
        duplicate_rate(torch.randn(5, 2), torch.full((4, 2), math.nan))
