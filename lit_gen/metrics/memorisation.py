r"""Copying of training images: measures of samples x in feature space, and the rule that marks a copier.

Let T be the training images and H the held-out ones, d(x, A) the distance from x to its nearest element of A, and q the
share of H among all real images.

| score | definition | fresh real images | copies |
| --- | --- | --- | --- |
| copy_rate | 1 - P(the nearest real image of x is in H) / q | 0 | 1 |
| copy_z | z of the permutation test that it is 0 for samples very near to a real image | below 1.6 | above 1.6 |
| c_t | mean z over cells: are the d(x, T) larger than the d(h, T) of h in H? | about 0 | below -3 |
| auth_pct | 100 P(d(x, T) > d(t, T \ t)), t the training image nearest to x | depends on the data | 0 |

copy_rate asks whether x is nearer to T than to H. It does not depend on quality: samples that are blurred, or far from
all data, are as near to H as to T, in proportion to their sizes. In a mixture of copies and fresh images it estimates
the share of copies, whatever that proportion is.

copy_z considers only samples that are nearer to a real image than 95 % of real images are to each other. Given the
samples, a model that does not remember its training images would be as likely with any other choice of T among the real
images. This gives the exact mean and variance of the number of samples whose nearest real image is in T, the noise of a
small H included:

    var = |T| |H| / (N (N - 1)) sum_r (c_r - mean c)^2,    N = |T| + |H|,    c_r = number of samples nearest to real r

z has a continuity correction of 1/2. c_t asks whether x is nearer to T than real images are. Samples that are too
smooth or too typical are nearer as well, and a few copies among many samples of ordinary quality do not lower it.

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
"""Quantile of the normal distribution that a one-sided test at 95 % uses."""

MOST_CELLS = 50
PER_CELL = 50
LEAST_IN_CELL = 20
MOST_CLUSTERED = 10_000
MOST_COMPARED = 2000


def is_copy(copy_z: float) -> bool:
    """Return whether samples copy training images, outside the noise at 95 %: whether `copy_z` > 1.645.

    Among the samples that are nearer to a real image than 95 % of real images are to each other, more are nearest to a
    training image than chance explains. A model that does not remember its training images is marked with a probability
    of at most about 5 %.
    """
    return copy_z > Z_95


def copying(samples: Tensor, train: Tensor, held_out: Tensor, near: float = 0.05) -> tuple[Tensor, float]:
    """Return whether the real image nearest to each sample is held out, and z of the permutation test of near samples.

    Equal real images share their samples, so a value may lie between 0 and 1.

    Args:
        samples: (n, d).
        train: (t, d).
        held_out: (h, d).
        near: Quantile of the distances of real images to their nearest different one, up to which a sample is near.

    Returns:
        Values (n,) in [0, 1], float64, and z: positive if near samples are nearer to training images; 0 if there are no
        such samples, or all real images are equal.
    """
    real = [train, held_out]
    different = distinct(real)
    _, number, repeats = different
    share = number[len(train) :].bincount(minlength=len(repeats)).double() / repeats
    distance, index = nearest(samples, real)
    index = number[index]
    chosen = index[distance <= near_limit(real, different, near)]
    counts = chosen.bincount(minlength=len(repeats)).double() / repeats
    total, q = len(number), len(held_out) / len(number)
    squares = float((repeats * (counts - len(chosen) / total).square()).sum())
    variance = len(train) * len(held_out) / (total * (total - 1)) * squares
    excess = len(chosen) * q - float(share[chosen].sum())
    excess -= max(-0.5, min(0.5, excess))
    z = excess / math.sqrt(variance) if variance > 0 else 0.0
    return share[index[:, 0]], z


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
    """Estimated share of samples that are copies, 0 for fresh images, and z of a test for copies, see `is_copy`.

    The share may be negative by noise, of a standard deviation of at least sqrt((1 - q) / (q n)) for n samples and a
    share q of held-out images among the real ones.

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
        return {"copy_rate": "lower", "copy_z": "lower"}

    def score(self, samples: ScoredBatch) -> dict[str, Estimate]:
        assert samples.features is not None
        train, held_out = self.real.features("train"), self.real.features("held out")
        in_held_out, z = copying(samples.features, train, held_out, self.near)
        rates = 1 - in_held_out * (len(train) + len(held_out)) / len(held_out)
        return {"copy_rate": Estimate(float(rates.mean()), mean_deviations(rates)), "copy_z": Estimate(z)}


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
