import math

import numpy as np
import pytest
import torch
from torch import Tensor

from lit_gen.metrics import VendiScore, vendi_score
from lit_gen.metrics.real import RealFeatures
from tests.metrics.scoring import estimates, standard_error

REAL = RealFeatures(torch.ones(5, 3), net_name="digits")


def normal(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def score(features: Tensor) -> float:
    (estimate,) = estimates(VendiScore(), REAL, features=features).values()
    assert estimate.value == vendi_score(features)
    return estimate.value


@pytest.mark.parametrize("n, d", [(40, 7), (7, 40), (12, 12), (13, 12), (2, 1)])
def test_equals_the_entropy_of_the_kernel_matrix(n, d):
    x = normal(n, d, n) + 0.4
    unit = x.numpy() / np.linalg.norm(x.numpy(), axis=1, keepdims=True)
    values = np.linalg.eigvalsh(unit @ unit.T / n)
    values = values[values > 1e-12]
    assert score(x) == pytest.approx(math.exp(-(values * np.log(values)).sum()), rel=1e-9)


def test_counts_directions():
    axes = torch.eye(6).double()
    assert score(axes) == pytest.approx(6, rel=1e-12)
    assert score(axes[:4].repeat(10, 1)) == pytest.approx(4, rel=1e-12)
    assert score(axes[:1].repeat(10, 1)) == pytest.approx(1, rel=1e-12)
    assert score(axes[torch.tensor([0, 0, 0, 1])]) == pytest.approx(4 / 3**0.75, rel=1e-12)
    lengths = torch.logspace(-30, 30, 6).double()
    assert score(axes * lengths[:, None]) == pytest.approx(6, rel=1e-12)


def test_two_samples_with_an_angle_closed_form():
    for angle in (0.3, 1.0, 2.5):
        x = torch.tensor([[1.0, 0.0], [math.cos(angle), math.sin(angle)]], dtype=torch.float64)
        values = [(1 + math.cos(angle)) / 2, (1 - math.cos(angle)) / 2]
        assert score(x) == pytest.approx(math.prod(v**-v for v in values), rel=1e-12)


def test_zeros_are_a_direction_of_their_own():
    zeros = torch.zeros(5, 3).double()
    assert score(zeros) == pytest.approx(1, rel=1e-12)
    assert score(torch.cat([zeros[:1], torch.eye(3).double()])) == pytest.approx(4, rel=1e-12)


def test_does_not_depend_on_the_axes():
    x = normal(50, 8, 0)
    rotation = torch.linalg.qr(normal(8, 8, 1)).Q
    assert score(x @ rotation * 3) == pytest.approx(score(x), rel=1e-10)
    assert score(torch.cat([x, torch.zeros(50, 60)], 1)) == pytest.approx(score(x), rel=1e-10)
    assert score(x[:, :2]) < score(x)


@pytest.mark.parametrize("n, d", [(200, 5), (60, 5), (60, 100)])
def test_spread(n, d):
    found = [estimates(VendiScore(), REAL, features=normal(n, d, i) + 0.5) for i in range(200)]
    values = [each["vendi_digits"].value for each in found]
    errors = [standard_error(each["vendi_digits"]) for each in found]
    # too small if there are fewer samples than features
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.2 if d < n else 0.4)
