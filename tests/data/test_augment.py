"""EDM's augmentation: the transform of every label, exactness, distributions, independence of the batch."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.families.diffusion.augment import EDMAugmentation, matrix, transform

MIRROR, TURN, SCALE, COS, SIN, U, V, RIGHT, DOWN = range(9)


def smooth(points: Tensor) -> Tensor:
    """A function of the plane without waves shorter than 10 pixels, at points (..., 2) in pixels from the centre."""
    waves = torch.tensor([[0.6, 0.1], [-0.2, 0.5], [0.3, 0.3]], dtype=points.dtype)
    return (points @ waves.T + torch.tensor([0.3, 1.9, 4.0], dtype=points.dtype)).cos().mean(-1)


def pixels(height: int, width: int) -> Tensor:
    """The centres of all pixels, (H, W, 2) as (x, y) from the centre of the image."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return torch.stack([x - width / 2, y - height / 2], dim=-1).double()


def one(**values: float) -> Tensor:
    """Labels (1, 9) that are zero but for those named."""
    labels = torch.zeros(1, 9, dtype=torch.float64)
    for name, value in values.items():
        labels[0, globals()[name.upper()]] = value
    return labels


def raw(seed: int, num: int) -> tuple[np.ndarray, Tensor]:
    """Random a_0 .. a_7 (N, 8) with nothing left out, and their labels (N, 9) by the table."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(num, 8))
    a[:, :2] = rng.integers(0, 2, (num, 2))
    a[:, 3:5] = rng.uniform(-math.pi, math.pi, (num, 2))
    axis, stretch = a[:, 4], a[:, 5]
    columns = [a[:, 0], a[:, 1], a[:, 2], np.cos(a[:, 3]) - 1, np.sin(a[:, 3])]
    columns += [stretch * np.cos(2 * axis), stretch * np.sin(2 * axis), a[:, 6], a[:, 7]]
    return a, torch.from_numpy(np.stack(columns, axis=1))


def product(a: np.ndarray, height: int, width: int) -> np.ndarray:
    """G by multiplying the matrices of the table."""

    def rotation(angle: float) -> np.ndarray:
        return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])

    s = 2**0.2
    linear = np.diag([1 - 2 * a[0], 1 - 2 * a[1]])
    linear = s ** a[2] * linear
    linear = rotation(a[3]) @ linear
    linear = rotation(a[4]) @ np.diag([s ** a[5], s ** -a[5]]) @ rotation(-a[4]) @ linear
    shift = np.array([[width * a[6] / 8], [height * a[7] / 8]])
    return np.block([[linear, shift], [np.zeros((1, 2)), np.ones((1, 1))]])


def test_labels_determine_the_matrix() -> None:
    a, labels = raw(0, 50)
    expected = np.stack([product(row, 12, 20) for row in a])
    np.testing.assert_allclose(matrix(labels, (12, 20)).numpy(), expected, rtol=0, atol=1e-12)


def test_labels_are_determined_by_the_matrix() -> None:
    """One label for each transform without flips: G = shift, exp(symmetric), rotation and scale in turn, uniquely."""
    _, labels = raw(1, 50)
    labels[:, :2] = 0
    g = matrix(labels, (12, 20))
    left, singular, right = torch.linalg.svd(g[:, :2, :2])
    rotation = left @ right
    mean = singular.log().mean(1)
    deform = left @ torch.diag_embed(singular.log() - mean[:, None]) @ left.mT
    log_s = 0.2 * math.log(2)
    found = [mean / log_s, rotation[:, 0, 0] - 1, rotation[:, 1, 0], deform[:, 0, 0] / log_s, deform[:, 0, 1] / log_s]
    found += [g[:, 0, 2] * 8 / 20, g[:, 1, 2] * 8 / 12]
    torch.testing.assert_close(torch.stack(found, dim=1), labels[:, 2:], rtol=0, atol=1e-9)


def test_images_are_resampled_by_cubic_convolution_of_the_reflected_image() -> None:
    """Against sums over the sixteen neighbours, in every pixel, borders included."""
    rng = np.random.default_rng(0)
    image, (a, labels) = rng.normal(size=(7, 10)), raw(2, 4)
    a[:, 5:] *= 0.5
    labels[:, U:] *= 0.5
    margin = 40
    padded = np.pad(image, margin, mode="symmetric")

    def kernel(d: np.ndarray) -> np.ndarray:  # Keys 1981 with the slope -0.75 at distance 1
        d, slope = np.abs(d), -0.75
        near = (slope + 2) * d**3 - (slope + 3) * d**2 + 1
        far = slope * (d**3 - 5 * d**2 + 8 * d - 4)
        return np.where(d < 1, near, np.where(d < 2, far, 0.0))

    found = transform(torch.from_numpy(image).expand(4, 1, 7, 10), labels)[:, 0].numpy()
    for n in range(4):
        back = np.linalg.inv(product(a[n], 7, 10))
        for row in range(7):
            for column in range(10):
                x, y, _ = back @ [column + 0.5 - 5, row + 0.5 - 3.5, 1]
                x, y = x + 5 - 0.5 + margin, y + 3.5 - 0.5 + margin
                xs, ys = (np.arange(math.floor(v) - 1, math.floor(v) + 3) for v in (x, y))
                expected = kernel(y - ys) @ padded[np.ix_(ys, xs)] @ kernel(x - xs)
                assert found[n, row, column] == pytest.approx(expected, abs=1e-10)


def test_transformed_image_is_the_function_at_the_transformed_points() -> None:
    """The image of f(q) becomes that of f(G^-1 q), up to interpolation, where G^-1 q lies within the image."""
    a, labels = raw(3, 16)
    points = pixels(32, 24)
    images = smooth(points).expand(16, 1, 32, 24)
    found = transform(images, labels)[:, 0]
    back = torch.from_numpy(np.linalg.inv(np.stack([product(row, 32, 24) for row in a])))
    origin = torch.einsum("nij,hwj->nhwi", back[:, :2, :2], points) + back[:, None, None, :2, 2]
    inside = (origin.abs() < torch.tensor([10.0, 14.0])).all(-1)
    error = (found - smooth(origin))[inside]
    assert inside.float().mean() > 0.3
    assert error.square().mean().sqrt() < 0.03 * images.std()
    unchanged = (images[:, 0] - smooth(origin))[inside]
    assert unchanged.square().mean().sqrt() > images.std()


@pytest.mark.parametrize(
    "labels, inverse",
    [
        (one(scale=1.3), one(scale=-1.3)),
        (one(cos=math.cos(0.7) - 1, sin=math.sin(0.7)), one(cos=math.cos(0.7) - 1, sin=-math.sin(0.7))),
        (one(u=0.8, v=-0.6), one(u=-0.8, v=0.6)),
        (one(right=0.63, down=-0.37), one(right=-0.63, down=0.37)),
    ],
)
def test_inverse_labels_undo_the_transform(labels: Tensor, inverse: Tensor) -> None:
    images = smooth(pixels(32, 32))[None, None]
    there = transform(images, labels)
    back = transform(there, inverse)
    middle = (..., slice(9, 23), slice(9, 23))
    assert (back - images)[middle].abs().max() < 0.05
    assert (there - images)[middle].abs().max() > 0.25


def test_flips_are_exact() -> None:
    images = torch.randn(1, 3, 5, 8)
    assert torch.equal(transform(images, one(mirror=1)), images.flip(3))
    assert torch.equal(transform(images, one(turn=1)), images.flip(2))
    assert torch.equal(transform(images, one(mirror=1, turn=1)), images.flip(2, 3))


def test_whole_pixel_shifts_are_exact() -> None:
    images = torch.randn(1, 2, 8, 16, dtype=torch.float64)
    moved = transform(images, one(right=3 * 8 / 16, down=-2 * 8 / 8))
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (4, 4), (4, 4)), mode="symmetric")
    expected = torch.from_numpy(padded[..., 4 + 2 : 4 + 2 + 8, 4 - 3 : 4 - 3 + 16])
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-12)


def test_no_probability_changes_nothing() -> None:
    images = torch.randn(50, 1, 6, 6)
    found, labels = EDMAugmentation(p=0, mirror=0)(images, Noise(0, range(50)))
    assert torch.equal(found, images)
    assert torch.equal(labels, torch.zeros(50, 9))


def test_images_without_labels_are_untouched() -> None:
    images = torch.randn(400, 1, 6, 6)
    found, labels = EDMAugmentation(p=0.1)(images, Noise(0, range(400)))
    alone = (labels == 0).all(1)
    only_mirrored = (labels[:, MIRROR] == 1) & (labels[:, 1:] == 0).all(1)
    assert torch.equal(found[alone], images[alone])
    assert torch.equal(found[only_mirrored], images[only_mirrored].flip(3))
    assert 60 < alone.sum() < 180 and 60 < only_mirrored.sum() < 180
    rest = ~alone & ~only_mirrored
    assert (found[rest] - images[rest]).flatten(1).abs().amax(1).min() > 0.01


def test_an_image_is_transformed_alike_in_any_batch() -> None:
    augment = EDMAugmentation(p=0.5)
    images = torch.randn(20, 1, 8, 8)
    together, labels = augment(images, Noise(7, range(20)))
    part, part_labels = augment(images[[11, 3]], Noise(7, [11, 3]))
    assert torch.equal(part_labels, labels[[11, 3]])
    torch.testing.assert_close(part, together[[11, 3]], rtol=0, atol=1e-5)
    assert not torch.equal(augment(images, Noise(8, range(20)))[1], labels)


def test_distribution_of_the_labels() -> None:
    num, p = 20000, 0.4
    labels = EDMAugmentation(p=p, mirror=0.3).labels(Noise(1, range(num))).numpy()
    drawn = {
        "mirror": (labels[:, MIRROR], 0.3),
        "turn": (labels[:, TURN], p / 2),
        "scale": (labels[:, SCALE], p),
        "rotation": (labels[:, SIN], p),
        "stretch": (labels[:, U], p),
        "shift": (labels[:, RIGHT], p),
    }
    for name, (values, probability) in drawn.items():
        assert stats.binomtest(int((values != 0).sum()), num, probability).pvalue > 1e-3, name
    # chosen independently: all 64 combinations as often as their probability says
    chosen = sum((values != 0).astype(int) << bit for bit, (values, _) in enumerate(drawn.values()))
    expected = np.ones(1)
    for _, probability in drawn.values():
        expected = np.concatenate([expected * (1 - probability), expected * probability])
    assert stats.chisquare(np.bincount(chosen, minlength=64), num * expected).pvalue > 1e-3

    rotated = labels[labels[:, SIN] != 0]
    angle = np.arctan2(rotated[:, SIN], rotated[:, COS] + 1)
    np.testing.assert_allclose(np.hypot(rotated[:, SIN], rotated[:, COS] + 1), 1, atol=1e-12)
    assert stats.kstest(angle, stats.uniform(-math.pi, 2 * math.pi).cdf).pvalue > 1e-3
    stretched = labels[labels[:, U] != 0]
    assert (
        stats.kstest(np.arctan2(stretched[:, V], stretched[:, U]), stats.uniform(-math.pi, 2 * math.pi).cdf).pvalue
        > 1e-3
    )
    assert stats.kstest(np.hypot(stretched[:, U], stretched[:, V]), stats.halfnorm.cdf).pvalue > 1e-3
    shifted = labels[labels[:, RIGHT] != 0]
    scaled = labels[labels[:, SCALE] != 0]
    for normal in (scaled[:, SCALE], shifted[:, RIGHT], shifted[:, DOWN]):
        assert stats.kstest(normal, stats.norm.cdf).pvalue > 1e-3
    assert abs(stats.pearsonr(shifted[:, RIGHT], shifted[:, DOWN]).statistic) < 4 / math.sqrt(len(shifted))


def test_autocast_leaves_the_transform_alone() -> None:
    images, noise = torch.randn(8, 1, 16, 16), Noise(0, range(8))
    expected, _ = EDMAugmentation(p=1)(images, noise)
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = EDMAugmentation(p=1)(images, Noise(0, range(8)))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("settings", [{"p": 1.2}, {"mirror": -0.1}])
def test_unsuitable_probabilities(settings: dict[str, float]) -> None:
    with pytest.raises(UserError, match=f"augment.{next(iter(settings))}: .* is not a probability"):
        EDMAugmentation(**settings)
