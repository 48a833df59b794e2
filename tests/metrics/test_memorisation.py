"""Copying: each measure against brute force, and what real digits, their copies and their mixtures are found to be."""

import math
from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.data.module import ImageDataModule
from lit_gen.data.sources import Digits
from lit_gen.metrics import AuthPct, CopyRate, CTest, DigitsFeatures, is_copy
from lit_gen.metrics.base import Estimate, SampleMetric, ScoredBatch
from lit_gen.metrics.memorisation import authentic, copying, mann_whitney_in_cells
from lit_gen.metrics.real import RealFeatures


def normal(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def compute(metric: SampleMetric, features: Tensor, train: Tensor, held_out: Tensor) -> dict[str, Estimate]:
    metric = metric.prepare(RealFeatures(train, held_out=held_out), len(features))
    for index in torch.arange(len(features)).flip(0).split(300):
        metric.update(ScoredBatch(index, features=features[index]))
    estimates = metric.compute()
    assert estimates.keys() == metric.directions(metric.real).keys()
    return estimates


def all_scores(features: Tensor, train: Tensor, held_out: Tensor) -> dict[str, Estimate]:
    metrics = (AuthPct(), CopyRate(), CTest())
    return {name: score for each in metrics for name, score in compute(each, features, train, held_out).items()}


def marked(scores: dict[str, Estimate]) -> bool:
    """Return whether a row with these scores is marked."""
    return is_copy(scores["copy_z"].value, scores["copy_rate_z"].value)


# --- the share of copies ---


def test_every_choice_of_training_images_gives_mean_and_variance() -> None:
    """The z over all choices of 3 training images among 8 has mean 0 and variance 1, but for the correction."""
    real, samples = normal(8, 2, 0), normal(50, 2, 1)
    real = torch.cat([real, real[:2]])  # two images are repeated
    distance = (samples[:, None] - real).square().sum(2)
    nearest_real = distance == distance.amin(1, keepdim=True)
    shares, zs = [], []
    for chosen in combinations(range(10), 3):
        held = torch.tensor([i not in chosen for i in range(10)])
        nearest_to, z = copying(samples, real[~held], real[held], near=1.0)[:2]
        parts = nearest_real / nearest_real.sum(1, keepdim=True)  # repeated images share their samples
        near = distance.amin(1).sqrt() <= _largest_gap(real)
        torch.testing.assert_close(nearest_to, parts.sum(0)[held].double())
        shares.append(int(near.sum()) * 0.7 - float(parts[near][:, held].sum()))
        zs.append(z)
    excess = np.array(shares)
    assert excess.mean() == pytest.approx(0, abs=1e-10)
    corrected = np.sign(excess) * np.maximum(np.abs(excess) - 0.5, 0)
    np.testing.assert_allclose(zs, corrected / excess.std(), atol=1e-10)
    assert max(zs) > 1 and min(zs) < -1


def _largest_gap(real: Tensor) -> float:
    distance = torch.cdist(real, real, compute_mode="donot_use_mm_for_euclid_dist")
    return float(distance.masked_fill(distance == 0, torch.inf).amin(1).max())


def test_only_near_samples_are_tested() -> None:
    train, held_out = torch.arange(0.0, 60.0, 2)[:, None], torch.arange(1.0, 21.0, 2)[:, None] + 100
    copies, far = train[:20] + 0.1, train[:20] - 1e3
    assert copying(copies, train, held_out)[1] > 2
    assert copying(far, train, held_out)[1] == 0
    assert copying(torch.cat([copies, far]), train, held_out)[1] == copying(copies, train, held_out)[1]
    assert copying(far, train, held_out, near=1.0)[1] == 0, "the largest gap bounds the distance"
    assert copying(held_out[:8], train, held_out)[1] < -2


def test_a_hand_made_rate() -> None:
    train, held_out = torch.tensor([[0.0], [10.0], [20.0]]), torch.tensor([[5.0]])
    samples = torch.tensor(
        [[0.1], [9.0], [4.5], [30.0], [5.0], [-9.0], [11.0], [19.0]]
    )  # two of eight at 5: as expected
    value, spread = compute(CopyRate(), samples, train, held_out)["copy_rate"]
    assert value == 0 and spread is None, "one held-out image does not tell the noise of the split"
    assert compute(CopyRate(), samples[[0, 1, 3, 5]], train, held_out)["copy_rate"].value == 1
    assert compute(CopyRate(), samples[[2, 4]], train, held_out)["copy_rate"].value == -3


def test_the_spread_of_a_hand_made_rate() -> None:
    train, held_out = torch.tensor([[0.0], [10.0], [20.0]]), torch.tensor([[5.0], [15.0], [25.0]])
    samples = torch.tensor([[0.1], [4.5], [5.5], [15.0], [0.0], [0.2], [10.0], [20.0]])  # 2, 1 and 0 at held-out images
    value, spread = compute(CopyRate(), samples, train, held_out)["copy_rate"]
    assert value == pytest.approx(1 - (3 / 8) / (1 / 2)) and spread is not None
    of_split = (6 / 8) ** 2 * (1 - 3 / 6) * np.var([2, 1, 0], ddof=1) / 3
    expected = (of_split + (1 / 4) * (3 / 4) / 8) ** 0.5
    assert float(spread.std()) == pytest.approx(expected, rel=0.3)  # of halves of three, which are one of the three


@pytest.mark.slow
@pytest.mark.parametrize(
    "num_samples, num_held_out, share",
    [
        (300, 100, 0.5),
        *(pytest.param(*case, marks=pytest.mark.exhaustive) for case in ((3000, 100, 0.0), (3000, 350, 0.4))),
    ],
)
def test_intervals_of_the_rate_hold_the_share_of_copies(num_samples: int, num_held_out: int, share: float) -> None:
    """The split is the noise of many samples: the samples alone would hold the share half of the time."""
    copies = round(share * num_samples)
    held = []
    for repeat in range(400):
        real, fresh = normal(500, 3, 2 * repeat), normal(num_samples, 3, 2 * repeat + 1)
        chosen = np.random.default_rng(repeat)
        num_copies = chosen.binomial(num_samples, share) if copies else 0
        train = real[num_held_out:]
        fresh[:num_copies] = train[torch.from_numpy(chosen.integers(len(train), size=num_copies))]
        rate = compute(CopyRate(), fresh, train, real[:num_held_out])["copy_rate"]
        assert rate.deviations is not None
        held.append(abs(rate.value - share) <= 1.96 * float(rate.deviations.std()))
    print(f"\n{num_samples} samples, {num_held_out} held out, share {share}: {np.mean(held):.4f}")
    assert 0.93 <= np.mean(held) <= 0.975


@pytest.mark.parametrize("num_train, num_held_out", [(900, 900), (1700, 100)])
def test_the_rate_of_a_mixture_is_its_share_of_copies(num_train: int, num_held_out: int) -> None:
    """It holds whatever the sizes of both parts."""
    train, held_out = normal(num_train, 5, 0), normal(num_held_out, 5, 1)
    for share in (0.0, 0.4, 1.0):
        fresh = normal(6000, 5, 2)
        fresh[: round(share * 6000)] = train[torch.arange(round(share * 6000)) % num_train]
        rate = compute(CopyRate(), fresh, train, held_out)["copy_rate"].value
        assert rate == pytest.approx(share, abs=1e-12 if share == 1 else 0.15)


# --- authenticity ---


@pytest.mark.parametrize("seed", range(5))
def test_authenticity_equals_brute_force(seed: int) -> None:
    train, samples = normal(40, 3, seed), normal(70, 3, 100 + seed)
    expected = []
    for x in samples:
        j = int((train - x).norm(dim=1).argmin())
        others = torch.cat([train[:j], train[j + 1 :]])
        expected.append(bool((train[j] - x).norm() > (others - train[j]).norm(dim=1).min()))
    assert 0 < sum(expected) < 70
    assert authentic(samples, train).tolist() == expected
    value, spread = compute(AuthPct(), samples, train, train)["auth_pct"]
    assert value == pytest.approx(100 * sum(expected) / 70) and spread is not None
    assert float(spread.std()) == pytest.approx(100 * float(np.std(expected)) / 70**0.5, rel=0.15)
    assert authentic(samples, train.repeat(3, 1)).tolist() == expected, "repeated training images do not matter"


def test_authenticity_by_hand() -> None:
    train = torch.tensor([[0.0], [1.0], [5.0]])
    samples = torch.tensor([[0.0], [-1.0], [-1.1], [2.0], [2.1], [9.0], [9.1]])
    assert authentic(samples, train).tolist() == [False, False, True, False, True, False, True]


# --- C_T ---


@pytest.mark.parametrize("seed", range(4))
def test_c_t_equals_scipys_test_in_each_cell(seed: int) -> None:
    generator = np.random.default_rng(seed)
    samples, held_out = generator.gamma(2, 0.9, 400), generator.gamma(2, 1, 300)
    cells, held_out_cells = generator.integers(0, 5, 400), generator.integers(0, 5, 300)
    cells[cells == 3] = 2
    cells[:7] = 3  # too few samples
    expected, weights = [], []
    for cell in (0, 1, 2, 4):
        ours, theirs = samples[cells == cell], held_out[held_out_cells == cell]
        # without a correction, z follows from the p-value
        p = scipy.stats.mannwhitneyu(
            ours, theirs, alternative="greater", method="asymptotic", use_continuity=False
        ).pvalue
        expected.append(scipy.stats.norm.isf(p))
        weights.append(len(theirs))
    x, x_cells, y, y_cells = (torch.from_numpy(array) for array in (samples, cells, held_out, held_out_cells))
    value, influence = mann_whitney_in_cells(x, x_cells, y, y_cells)
    assert value == pytest.approx(np.average(expected, weights=weights), rel=1e-9)
    assert influence.shape == (400,) and float(influence.mean()) == pytest.approx(0, abs=1e-12)
    assert (influence[x_cells == 3] == 0).all() and (influence != 0).any()


def test_the_spread_of_c_t_is_its_standard_deviation_over_samples() -> None:
    generator = torch.Generator().manual_seed(0)
    held_out, held_out_cells = torch.rand(150, generator=generator), torch.arange(150) % 3
    values, spreads = [], []
    for _ in range(300):
        samples = 0.8 * torch.rand(240, generator=generator)
        cells = torch.randint(3, (240,), generator=generator)
        value, influence = mann_whitney_in_cells(samples, cells, held_out, held_out_cells)
        values.append(value)
        spreads.append(float(influence.std()) / 240**0.5)
    assert np.mean(spreads) == pytest.approx(np.std(values), rel=0.15)


def test_c_t_by_hand() -> None:
    samples, held_out = torch.tensor([0.0, 2.0, 1.0]), torch.tensor([1.0, 3.0])
    zeros = [torch.zeros(3), torch.zeros(2)]
    # pairs in which the sample is farther: 2 > 1, and half of 1 = 1
    value, _ = mann_whitney_in_cells(samples, zeros[0], held_out, zeros[1], least=1)
    assert value == pytest.approx((1.5 - 3) / math.sqrt(6 * 6 / 12))
    assert mann_whitney_in_cells(samples, zeros[0], held_out, zeros[1])[0] == value, "too few for cells"
    assert mann_whitney_in_cells(samples, zeros[0] + 1, held_out, zeros[1])[0] == value, "no common cell"


def test_c_t_has_cells() -> None:
    """Samples near in one cluster and far in another: without cells, both cancel."""
    train, held_out, samples = normal(400, 2, 0), normal(200, 2, 1), normal(200, 2, 2)
    for part in (train, held_out, samples):
        part[::2, 0] += 50
    samples[::2] = train[:200:2]
    samples[1::2] += 100
    assert compute(CTest(cells=1), samples, train, held_out)["c_t"].value == pytest.approx(0, abs=1)
    cells = compute(CTest(cells=2, seed=3), samples, train, held_out)["c_t"].value
    assert cells == compute(CTest(cells=2, seed=3), samples, train, held_out)["c_t"].value
    with pytest.raises(UserError, match="cells: -1"):
        CTest(cells=-1)


@pytest.mark.parametrize("num_samples, num_held_out, cells", [(40, 300, 1), (260, 130, 2), (310, 400, 6)])
def test_the_default_number_of_cells(num_samples: int, num_held_out: int, cells: int) -> None:
    parts = normal(num_samples, 3, 0), normal(500, 3, 1), normal(num_held_out, 3, 2)
    default = compute(CTest(), *parts)["c_t"].value
    assert (
        default
        == compute(CTest(cells=cells), *parts)["c_t"].value
        != compute(CTest(cells=cells + 1), *parts)["c_t"].value
    )
    if cells > 1:
        assert default != compute(CTest(seed=5), *parts)["c_t"].value


# --- limits ---


def test_samples_or_images_that_are_all_equal() -> None:
    constant, real = torch.ones(60, 4), normal(60, 4, 0).float()
    scores = {**compute(CopyRate(), constant, constant, constant), **compute(CTest(), constant, constant, constant)}
    assert [score.value for score in scores.values()] == [0, 0, 0, 0]
    with pytest.raises(UserError, match="auth_pct: .* all 60 training images are equal"):
        compute(AuthPct(), constant, constant, real)
    scores = all_scores(constant, real, real)  # all training images are held out, too
    assert scores["copy_rate"].value == 0 and not marked(scores)
    assert all(math.isfinite(score.value) for score in scores.values())


def test_one_sample_and_one_image_of_each_part() -> None:
    one = torch.zeros(1, 3)
    assert [score.value for score in all_scores(one, torch.eye(3), one + 5).values()] == pytest.approx(
        [0, 1, 0, 0, -math.sqrt(1)], abs=1e-9
    )
    assert compute(CopyRate(), one, one, one + 1)["copy_rate"].value == 1
    assert compute(CTest(), one, one, one + 1)["c_t"].value == -1


def test_bad_input() -> None:
    real = normal(30, 3, 0)
    for metric in (AuthPct(), CopyRate(), CTest()):
        with pytest.raises(UserError, match="not finite"):
            compute(metric, torch.full((30, 3), math.nan), real, real)
    for metric in (CopyRate(), CTest()):
        assert "held out" in metric.needs
        with pytest.raises(UserError, match="held out"):
            compute(metric, real, real, None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="near: 2"):
        CopyRate(near=2)
    assert not is_copy(math.nan) and not is_copy(math.nan, math.nan)


# --- real digits ---


@pytest.fixture(scope="module")
def digits() -> dict[str, Tensor]:
    data = ImageDataModule(Digits())
    return {split: torch.from_numpy(data.images(split)) for split in ("train", "test")}


@pytest.fixture(scope="module")
def net() -> Callable[[Tensor], Tensor]:
    network = DigitsFeatures()
    return lambda images: network(images)[0]


Parts = tuple[Tensor, Tensor, Tensor, Tensor]


@pytest.fixture(scope="module")
def parts(digits: dict[str, Tensor]) -> Parts:
    """Training images, held-out images, fresh images, and some training images."""
    order = torch.randperm(355, generator=torch.Generator().manual_seed(0))
    chosen = torch.randperm(1442, generator=torch.Generator().manual_seed(1))[:177]
    return digits["train"], digits["test"][order[177:]], digits["test"][order[:177]], digits["train"][chosen]


def one_level(images: Tensor) -> Tensor:
    """Change every pixel by one grey level of 255."""
    return torch.where(images < 128, images + 1, images - 1)


def test_a_copier_is_found_by_every_measure_and_fresh_images_by_none(
    parts: Parts, net: Callable[[Tensor], Tensor]
) -> None:
    train, held_out, fresh, copies = parts
    real = net(train), net(held_out)
    genuine = all_scores(net(fresh), *real)
    assert 40 < genuine["auth_pct"].value < 70
    assert abs(genuine["copy_rate"].value) < 0.45
    assert abs(genuine["c_t"].value) < 1
    assert not marked(genuine)
    for images in (copies, one_level(copies)):
        copied = all_scores(net(images), *real)
        assert copied["auth_pct"].value == 0
        assert copied["copy_rate"].value == 1
        assert copied["c_t"].value < -9
        assert marked(copied) and copied["copy_z"].value > 4


def test_copies_among_other_samples(parts: Parts, net: Callable[[Tensor], Tensor]) -> None:
    train, held_out, fresh, copies = parts
    real = net(train), net(held_out)
    half = all_scores(net(torch.cat([fresh, copies])), *real)
    assert half["copy_rate"].value == pytest.approx(0.5, abs=0.2)
    assert marked(half) and half["c_t"].value < -3
    # samples of low quality, one in four a copy: not nearer than real images on average, but marked
    noise = torch.randint(-60, 61, fresh.shape, generator=torch.Generator().manual_seed(0))
    rough = (fresh + noise).clamp(0, 255).to(torch.uint8)
    mixture = all_scores(net(torch.cat([rough, copies[:59]])), *real)
    assert mixture["c_t"].value > -1 and marked(mixture)
    assert not marked(all_scores(net(rough), *real))


def test_narrow_gaussians_around_training_images_are_copies_and_one_gaussian_is_not(
    parts: Parts, net: Callable[[Tensor], Tensor]
) -> None:
    train, held_out = net(parts[0]), net(parts[1])
    distance = float(torch.cdist(train, train).fill_diagonal_(torch.inf).amin(1).median())
    noise = normal(1000, 64, 0).float()
    narrow = train[torch.arange(1000)] + 0.3 * distance * noise / 8
    assert marked(all_scores(narrow, train, held_out))
    wide = all_scores(train[torch.arange(1000)] + distance * noise / 8, train, held_out)
    assert not is_copy(wide["copy_z"].value) and wide["copy_rate"].value > 0.9 and marked(wide), "no sample is near"
    factor = torch.linalg.cholesky(train.T.cov() + 1e-4 * torch.eye(64))
    fitted = all_scores(train.mean(0) + noise @ factor.T, train, held_out)
    assert not marked(fitted) and fitted["auth_pct"].value > 90


def test_typical_samples_are_not_copies() -> None:
    """A model without rare images is nearer to the training images, and C_T alone would call that copying."""
    train, held_out = normal(1500, 4, 0), normal(500, 4, 1)
    scores = all_scores(0.5 * normal(1000, 4, 2), train, held_out)
    assert scores["c_t"].value < -3 and not marked(scores)
    assert abs(scores["copy_rate"].value) < 0.15


@pytest.mark.slow
@pytest.mark.exhaustive
def test_fresh_images_are_rarely_marked(digits: dict[str, Tensor], net: Callable[[Tensor], Tensor]) -> None:
    images = net(torch.cat([digits["train"], digits["test"]]))
    zs, all_zs, rates, cells = [], [], [], []
    for seed in range(100):
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        fresh, held_out, train = images[order[:177]], images[order[177:532]], images[order[532:]]
        nearest_to, z, rate_z = copying(fresh, train, held_out)
        zs.append((z, rate_z))
        rates.append(1 - float(nearest_to.sum()) / len(fresh) * len(images[177:]) / 355)
        all_zs.append(rate_z)
        cells.append(compute(CTest(), fresh, train, held_out)["c_t"].value)
    assert np.mean([is_copy(*both) for both in zs]) <= 0.05
    assert 0.01 <= np.mean([is_copy(z) for z in all_zs]) <= 0.1
    assert np.std(all_zs) == pytest.approx(1, abs=0.15)
    assert abs(np.mean(rates)) < 3 * np.std(rates) / 100**0.5
    assert abs(np.mean(cells)) < 0.2 and 0.5 < np.std(cells) < 0.9
