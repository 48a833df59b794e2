"""Points of the plane: their densities are densities, and the points are drawn from them."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.data import Checkerboard, GaussianMixture2D, ImageDataModule, PointSource, Spiral, TwoMoons
from lit_gen.data.points import grid_of_points

SOURCES = [GaussianMixture2D(), TwoMoons(), Spiral(), Checkerboard()]


def of(alpha: float, sigma: float) -> tuple[Tensor, Tensor]:
    return torch.tensor(alpha, dtype=torch.float64), torch.tensor(sigma, dtype=torch.float64)


def masses(source: PointSource, reach: float, alpha: float = 1.0, sigma: float = 0.0, num: int = 160) -> Tensor:
    """The probability of each of num x num squares of [-reach, reach]^2, by the midpoint rule: (num, num), y first."""
    points = grid_of_points(reach, num).split(4096)
    log_density = torch.cat([source.exact.log_density(part, *of(alpha, sigma)) for part in points])
    return log_density.exp().reshape(num, num) * (2 * reach / num) ** 2


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
@pytest.mark.parametrize(("alpha", "sigma", "reach"), [(1.0, 0.0, 1.2), (0.8, 0.1, 1.6), (0.3, 0.9, 6.0)])
def test_densities_integrate_to_one(source: PointSource, alpha: float, sigma: float, reach: float) -> None:
    # the borders of the checkerboard's cells are borders of the squares, so that the rule is exact for it as well
    assert float(masses(source, reach, alpha, sigma, 120).sum()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
@pytest.mark.parametrize("part", ["train", "test"])
def test_points_are_drawn_from_the_density(source: PointSource, part) -> None:
    points, labels = source.load(part)
    assert points.dtype == np.float32 and points.shape == (20_000, 2, 1, 1)
    assert (labels is None) == (source.num_classes == 0)
    expected = masses(source, 1.2, num=120).reshape(24, 5, 24, 5).sum((1, 3)).numpy()
    x, y = points[:, 0, 0, 0], points[:, 1, 0, 0]
    counts, *_ = np.histogram2d(y, x, bins=24, range=[(-1.2, 1.2)] * 2)
    enough = expected * len(points) > 5
    observed = np.append(counts[enough], len(points) - counts[enough].sum())
    theory = np.append(expected[enough], 1 - expected[enough].sum()) * len(points)
    keep = theory > 1e-6
    assert observed[~keep].sum() == 0
    assert stats.chisquare(observed[keep], theory[keep] * observed.sum() / theory[keep].sum()).pvalue > 1e-3


@pytest.mark.parametrize("source", [GaussianMixture2D(), TwoMoons()], ids=lambda source: source.name)
def test_the_label_is_the_part_a_point_is_of(source: PointSource) -> None:
    points, labels = source.load("train")
    assert labels is not None and labels.dtype == np.int64
    x = points[:, :, 0, 0]
    share = np.bincount(labels, minlength=source.num_classes) / len(labels)
    np.testing.assert_allclose(share, 1 / source.num_classes, atol=4 / math.sqrt(len(labels) * source.num_classes))
    for label in range(source.num_classes):
        mean = x[labels == label].mean(0)
        if isinstance(source, TwoMoons):  # of a half circle, its centre of mass is 2 / pi radii from its centre
            expected = np.array([-0.25, 1 / math.pi - 0.125]) * (1 if label == 0 else -1)
        else:
            assert isinstance(source, GaussianMixture2D)
            angle = 2 * math.pi * label / source.num_classes
            expected = source.radius * np.array([math.cos(angle), math.sin(angle)])
        np.testing.assert_allclose(mean, expected, atol=0.015)


def test_moments_are_those_of_the_options() -> None:
    x = GaussianMixture2D(num_components=1, radius=0.3, std=0.1).load("train").images[:, :, 0, 0]
    np.testing.assert_allclose(x.mean(0), [0.3, 0], atol=4e-3)
    np.testing.assert_allclose(x.std(0), 0.1, rtol=0.03)
    board = Checkerboard(num_cells=2, half_width=0.5).load("train").images[:, :, 0, 0]
    assert (board[:, 0] * board[:, 1] >= 0).all() and np.abs(board).max() <= 0.5
    spiral = Spiral(turns=1.0, std=0.01).load("train").images[:, :, 0, 0]
    radius, angle = np.hypot(*spiral.T), np.arctan2(spiral[:, 1], spiral[:, 0]) % (2 * math.pi)
    inner = (radius > 0.1) & (radius < 0.75)
    assert np.abs(radius - 0.8 * angle / (2 * math.pi))[inner].max() < 0.06


def test_a_point_is_a_function_of_seed_and_index() -> None:
    few, many, other = TwoMoons(num_points=10), TwoMoons(num_points=1000), TwoMoons(num_points=10, seed=1)
    for part in ("train", "test"):
        assert np.array_equal(few.load(part).images, many.load(part).images[:10])
        assert not np.isin(few.load(part).images, other.load(part).images).any()
    assert not np.isin(many.load("train").images, many.load("test").images).any()


def test_points_are_within_the_range_of_images() -> None:
    for source in SOURCES:
        assert np.abs(source.load("train").images).max() < 1


def test_points_reach_the_model_bit_by_bit() -> None:
    data = ImageDataModule(Spiral(num_points=64), batch_size=16)
    (batch, *_) = data.train_dataloader()
    moved = data.on_after_batch_transfer(batch, 0)
    assert moved.images.dtype == torch.float32
    assert torch.equal(moved.images, torch.from_numpy(data.images("train")[batch.index]))


def test_every_option_is_in_the_fingerprint() -> None:
    sources = [*SOURCES, GaussianMixture2D(num_components=7), GaussianMixture2D(std=0.07), TwoMoons(std=0.04)]
    sources += [GaussianMixture2D(radius=0.6), Spiral(turns=1.0), Spiral(std=0.02), Checkerboard(num_cells=3)]
    sources += [Checkerboard(half_width=0.7), TwoMoons(seed=1), TwoMoons(num_points=19_999)]
    assert len({source.load("train").fingerprint() for source in sources}) == len(sources)


@pytest.mark.parametrize(
    ("build", "key"),
    [
        (lambda: TwoMoons(num_points=0), "num_points"),
        (lambda: GaussianMixture2D(num_components=0), "num_components"),
        (lambda: GaussianMixture2D(radius=0.9), "std"),
        (lambda: TwoMoons(std=0.0), "std"),
        (lambda: Spiral(turns=0.0), "turns"),
        (lambda: Spiral(std=0.06), "std"),
        (lambda: Checkerboard(num_cells=0), "num_cells"),
        (lambda: Checkerboard(half_width=1.1), "half_width"),
    ],
)
def test_options_out_of_range(build, key: str) -> None:
    with pytest.raises(UserError, match=f"data.source.{key}"):
        build()


def test_draws_do_not_depend_on_what_is_drawn_beside_them() -> None:
    for source in SOURCES:
        together, component = source.exact.draw(Noise(3, range(50)))
        alone, its_own = source.exact.draw(Noise(3, [17]))
        torch.testing.assert_close(alone[0], together[17], rtol=0, atol=1e-15)
        assert its_own == component[17]
