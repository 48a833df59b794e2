r"""Copying of training images: measures of samples x in feature space, and the rule that marks a copier.

Let T be the training images and H the held-out ones, d(x, A) the distance from x to its nearest element of A, and q the
share of H among all real images.

| score | definition | fresh real images | copies |
| --- | --- | --- | --- |
| copy_rate | 1 - P(the nearest real image of x is in H) / q | 0 | 1 |
| copy_rate_z | z of the permutation test that it is 0 | below 3 | above 3 |
| copy_z | z of the same test for samples very near to a real image | below 1.6 | above 1.6 |
| c_t | mean z over cells: are the d(x, T) larger than the d(h, T) of h in H? | about 0 | below -3 |
| auth_pct | 100 P(d(x, T) > d(t, T \ t)), t the training image nearest to x | depends on the data | 0 |

copy_rate asks whether x is nearer to T than to H. It does not depend on quality: samples that are blurred, or far from
all data, are as near to H as to T, in proportion to their sizes. In a mixture of copies and fresh images it estimates
the share of copies, whatever that proportion is.

Given the samples, a model that does not remember its training images would be as likely with any other choice of T
among the real images. This gives the exact mean and variance of the number of samples whose nearest real image is in T,
the noise of a small H included:

    var = |T| |H| / (N (N - 1)) sum_r (c_r - mean c)^2,    N = |T| + |H|,    c_r = number of samples nearest to real r

z has a continuity correction of 1/2. copy_rate_z considers all samples. copy_z considers only those that are nearer to
a real image than 95 % of real images are to each other: it finds a few copies among many other samples, which
copy_rate_z does not, but not samples that lie around training images at a larger distance. The spread of copy_rate
comes from the same chance: H is a random part of the N real images, so for copies of training images and fresh samples
mixed in any proportion

    var(copy_rate) = (N / n)^2 (1 - |H| / N) var_H(c) / |H| + r (1 - r) / n,    n samples, r = copy_rate within [0, 1]

c_t asks whether x is nearer to T than real images are. Samples that are too smooth or too typical are nearer as well,
and a few copies among many samples of ordinary quality do not lower it.

Papers: Alaa et al. 2022, https://arxiv.org/abs/2102.08921 (authenticity); Meehan et al. 2020,
https://arxiv.org/abs/2004.05675 (C_T).
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.metrics.base import Direction, Estimate, ScoredBatch, StoredMetric
from lit_gen.metrics.halves import mean_deviations
from lit_gen.metrics.nearest import nearest
from lit_gen.metrics.real import RealImages
from lit_gen.metrics.rows import Distinct, distinct, take

Z_95 = 1.6448536269514722
"""Largest `copy_z` of a row without a mark: a one-sided test at 95 %, which most models pass more often than that."""

Z_OF_RATE = 3.0
"""Largest `copy_rate_z` of a row without a mark: a one-sided test at 99.87 %."""

MOST_CELLS = 50
PER_CELL = 50
LEAST_IN_CELL = 20
MOST_CLUSTERED = 10_000
MOST_COMPARED = 2000


def is_copy(copy_z: float, copy_rate_z: float = 0.0) -> bool:
    """Return whether samples copy training images, outside the noise: whether `copy_z` > 1.645 or `copy_rate_z` > 3.

    More of the samples are nearest to a training image than chance explains: of those that are nearer to a real image
    than 95 % of real images are to each other, or of all. A model that does not remember its training images is marked
    with a probability of at most about 5 %.
    """
    return copy_z > Z_95 or copy_rate_z > Z_OF_RATE


def copying(samples: Tensor, train: Tensor, held_out: Tensor, near: float = 0.05) -> tuple[Tensor, float, float]:
    """Return the number of samples nearest to each held-out image, and z of the permutation tests of near and all.

    Equal real images share their samples, so a number may be a fraction.

    Args:
        samples: (n, d).
        train: (t, d).
        held_out: (h, d).
        near: Quantile of the distances of real images to their nearest different one, up to which a sample is near.

    Returns:
        Numbers (h,), float64, then z of near samples and z of all samples: positive if they are nearer to training
        images; 0 if there are no such samples, or all real images are equal.
    """
    real = [train, held_out]
    different = distinct(real)
    _, number, repeats = different
    distance, index = nearest(samples, real)
    index = number[index]
    # number of samples nearest to each real image
    near_to, nearest_to = (
        (chosen.bincount(minlength=len(repeats)).double() / repeats)[number]
        for chosen in (index[distance <= near_limit(real, different, near)], index.flatten())
    )
    return nearest_to[len(train) :], permutation_z(near_to, len(train)), permutation_z(nearest_to, len(train))


def permutation_z(counts: Tensor, num_train: int) -> float:
    """Return z of the test that the choice of training images among the real ones is independent of the samples.

    Args:
        counts: Number of samples nearest to each real image, (N,), the training images first.
        num_train: Number of training images.
    """
    total = len(counts)
    num_held_out = total - num_train
    excess = float(counts.sum()) * num_held_out / total - float(counts[num_train:].sum())
    excess -= max(-0.5, min(0.5, excess))
    variance = num_train * num_held_out / (total * (total - 1)) * float((counts - counts.mean()).square().sum())
    return excess / math.sqrt(variance) if variance > 0 else 0.0


def copy_rate(nearest_to_held_out: Tensor, num_samples: int, num_train: int) -> Estimate:
    """Return 1 - p / q with its spread, where p is the share of samples that are nearest to held-out images.

    Deviations are random halves of the held-out images, the same in every call, so two results share that noise.

    Args:
        nearest_to_held_out: Number of samples nearest to each held-out image, (h,).
        num_samples: Number of samples n.
        num_train: Number of training images.
    """
    h = len(nearest_to_held_out)
    rates = 1 - nearest_to_held_out * (num_train + h) / num_samples
    rate = float(rates.mean())
    if h < 2:
        return Estimate(rate)
    deviations = mean_deviations(rates) * math.sqrt(num_train / (num_train + h))
    of_split, share = float(deviations.var()), min(max(rate, 0.0), 1.0)
    of_samples = share * (1 - share) / num_samples
    return Estimate(rate, deviations * math.sqrt(1 + of_samples / of_split) if of_split > 0 else deviations)


def near_limit(real: Sequence[Tensor], different: Distinct, near: float) -> float:
    """Return a quantile of the distances from different points to their nearest other, over at most 2000 of them.

    Args:
        real: Parts of the points, (n_i, d).
        different: The distinct ones of them.
        near: The quantile.
    """
    first = different.first
    if len(first) < 2:
        return math.inf
    own = torch.randperm(len(first), generator=torch.Generator().manual_seed(0))[:MOST_COMPARED].to(first.device)
    queries = take(real, first[own])
    if len(first) < len(different.number):
        real = [take(real, first)]
    else:  # the points are where they are; a copy would take as much again
        own = first[own]
    return float(nearest(queries, real, own=own).distance.quantile(near))


def authentic(samples: Tensor, train: Tensor) -> Tensor:
    """Return which samples (n, d) are farther from their nearest training image than that is from its nearest other.

    The nearest other training image is the nearest *different* one. Repeated training images therefore do not matter;
    to the letter of the paper, every sample next to a repeated image would be authentic.

    Raises:
        UserError: If all training images are equal.
    """
    first = distinct([train]).first
    different = train if len(first) == len(train) else train[first]
    if len(different) < 2:
        raise UserError(
            f"auth_pct: the features of all {len(train)} training images are equal; remove AuthPct from the metrics"
        )
    distance, index = nearest(samples, different)
    used, which = index[:, 0].unique(return_inverse=True)
    radius = nearest(different[used], different, own=used).distance[:, 0]
    return distance[:, 0] > radius[which]


def mann_whitney_in_cells(
    samples: Tensor, sample_cells: Tensor, held_out: Tensor, held_out_cells: Tensor, least: int = LEAST_IN_CELL
) -> tuple[float, Tensor]:
    r"""Return C_T, and the influence of each sample on it.

    In a cell with m samples and n held-out images, U is the number of pairs in which the distance of the sample is
    larger; equal distances count half.

        z = (U - m n / 2) / sqrt(m n (m + n + 1) / 12),    C_T = sum_cells n z / sum_cells n

    Cells with fewer than `least` samples or held-out images are left out. If no cell remains, all are one cell.

    Args:
        samples: Distances of samples to their nearest training image, (N,).
        sample_cells: Cells of the samples, (N,).
        held_out: Distances of held-out images to their nearest training image, (M,).
        held_out_cells: Cells of the held-out images, (M,).
        least: Least number of samples and of held-out images in a cell.
    """
    z, weights = [], []
    influence = torch.zeros_like(samples, dtype=torch.float64)
    for cell in held_out_cells.unique():
        chosen = sample_cells == cell
        theirs = held_out[held_out_cells == cell].sort().values
        ours = samples[chosen]
        m, n = len(ours), len(theirs)
        if min(m, n) < least:
            continue
        ranks = (torch.searchsorted(theirs, ours) + torch.searchsorted(theirs, ours, right=True)).double() / (2 * n)
        scale = math.sqrt(12 * m * n / (m + n + 1))
        z.append(scale * (float(ranks.mean()) - 0.5))
        weights.append(n)
        influence[chosen] = n * scale * len(samples) / m * (ranks - ranks.mean())
    if not z:
        zeros = [torch.zeros_like(cells) for cells in (sample_cells, held_out_cells)]
        return mann_whitney_in_cells(samples, zeros[0], held_out, zeros[1], least=1)
    return float(np.average(z, weights=weights)), influence / sum(weights)


class AuthPct(StoredMetric):
    """Percentage of samples that are authentic: farther from the training images than those are from each other.

    Copies have 0. Samples far from the data are all authentic, so a high value does not mean good samples.

    Args:
        max_images: Number of samples that are compared.
    """

    needs = frozenset({"features", "training images"})

    def __init__(self, max_images: int = 10_000) -> None:
        super().__init__()
        self.max_images = max_images

    def directions(self, real: RealImages) -> dict[str, Direction]:
        return {"auth_pct": "higher"}

    def score(self, samples: ScoredBatch) -> dict[str, Estimate]:
        assert samples.features is not None
        percent = 100 * authentic(samples.features, self.real.features("train")).double()
        return {"auth_pct": Estimate(float(percent.mean()), mean_deviations(percent))}


class CopyRate(StoredMetric):
    """Estimated share of samples that are copies, 0 for fresh images, and z of two tests for copies, see `is_copy`.

    The share may be negative by noise, of a standard deviation of at least sqrt((1 - q) / (q n)) for n samples and a
    share q of held-out images among the real ones. Its spread accounts for the choice of the held-out images. Both z
    need none: their standard deviation is 1 for a model that does not remember its training images.

    Args:
        near: Share of real images that are nearer to another real image than a sample that the test counts.
        max_images: Number of samples that are compared.
    """

    needs = frozenset({"features", "training images", "held out"})

    def __init__(self, near: float = 0.05, max_images: int = 10_000) -> None:
        super().__init__()
        if not 0 <= near <= 1:
            raise UserError(f"near: {near} is not a quantile; give a number in [0, 1]")
        self.near = near
        self.max_images = max_images

    def directions(self, real: RealImages) -> dict[str, Direction]:
        return {"copy_rate": "lower", "copy_z": "lower", "copy_rate_z": "lower"}

    def score(self, samples: ScoredBatch) -> dict[str, Estimate]:
        assert samples.features is not None
        train, held_out = self.real.features("train"), self.real.features("held out")
        nearest_to, z, rate_z = copying(samples.features, train, held_out, self.near)
        rate = copy_rate(nearest_to, len(samples.features), len(train))
        return {"copy_rate": rate, "copy_z": Estimate(z), "copy_rate_z": Estimate(rate_z)}


class CTest(StoredMetric):
    """C_T of Meehan et al.: are samples nearer to the training images than held-out images are?

    Below 0 they are; about 0 is best, and samples that are farther than real images are above 0. The direction is
    "higher" because only values below 0 are copies. A mean of z grows with the numbers of samples and of held-out
    images, so it is comparable at equal numbers only.

    The cells are k-means clusters of training features, of at most 10,000 training images. Distances are to the nearest
    training image of any cell.

    Args:
        cells: Number of cells; 0: one for every 50 samples or held-out images, whichever are fewer, from 1 to 50.
        seed: Seed of the clusters.
        max_images: Number of samples that are compared.
    """

    needs = frozenset({"features", "training images", "held out"})

    def __init__(self, cells: int = 0, seed: int = 0, max_images: int = 10_000) -> None:
        super().__init__()
        if cells < 0:
            raise UserError(f"cells: {cells} is negative; give a number of cells, or 0 for a default")
        self.cells, self.seed = cells, seed
        self.max_images = max_images

    def directions(self, real: RealImages) -> dict[str, Direction]:
        return {"c_t": "higher"}

    def score(self, samples: ScoredBatch) -> dict[str, Estimate]:
        assert samples.features is not None
        train, held_out = self.real.features("train"), self.real.features("held out")
        distances = [nearest(features, train).distance[:, 0] for features in (samples.features, held_out)]
        cells = self.cells or max(1, min(len(samples.features) // PER_CELL, len(held_out) // PER_CELL, MOST_CELLS))
        centres = cluster(train, cells, self.seed)
        sample_cells, held_out_cells = (nearest(x, centres).indices[:, 0] for x in (samples.features, held_out))
        value, influence = mann_whitney_in_cells(distances[0], sample_cells, distances[1], held_out_cells)
        return {"c_t": Estimate(value, mean_deviations(influence))}


def cluster(features: Tensor, num: int, seed: int) -> Tensor:
    """Return the centres of k-means clusters of features (n, d), at most `num`, of a sample of at most 10,000."""
    from sklearn.cluster import KMeans  # slow to import

    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(features), generator=generator)[:MOST_CLUSTERED].to(features.device)
    points = features[chosen].double().cpu()
    num = min(num, len(points.unique(dim=0)))
    centres = KMeans(num, n_init=1, random_state=seed).fit(points.numpy()).cluster_centers_
    return torch.from_numpy(centres).to(features)
