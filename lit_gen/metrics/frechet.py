r"""The Frechet distance between Gaussians fitted to the features of two sets of images.

    d(a, b) = |mu_a - mu_b|^2 + tr(S_a) + tr(S_b) - 2 tr((S_a S_b)^(1/2))

S_a S_b is not symmetric. With any factorisation S_a = F F^T, its non-zero eigenvalues are those of the symmetric matrix
F^T S_b F. The last trace is therefore the sum of their square roots, which are real and, up to rounding, non-negative.

For n and m samples of two equal distributions N(0, I_d), the expected distance is not 0 but about
(1/n + 1/m) (d + d (d + 1) / 4). Distances are therefore comparable only at equal numbers of images.

Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", 2017,
https://arxiv.org/abs/1706.08500; Dowson and Landau, "The Frechet distance between multivariate normal distributions",
1982.
"""

import math
import warnings
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from lit_gen.metrics.base import Direction, Estimate, SampleMetric, ScoredBatch
from lit_gen.metrics.halves import mean_deviations
from lit_gen.metrics.moments import Moments
from lit_gen.metrics.real import Part, RealImages


def frechet_distance(a: Moments, b: Moments) -> float:
    """Return the squared Frechet (2-Wasserstein) distance of N(a.mean, a.cov) and N(b.mean, b.cov).

    It is computed on the CPU. A warning says if a covariance is rank-deficient, with no more samples than features.

    Raises:
        ValueError: If the numbers of features differ.
    """
    width = len(a.mean)
    if len(b.mean) != width:
        raise ValueError(f"moments of {width} and of {len(b.mean)} features cannot be compared; use one feature net")
    n = min(a.n, b.n)
    if n <= width:
        warnings.warn(
            f"the covariance of {width} features from {n} images is rank-deficient, so the Frechet distance is "
            f"strongly biased upwards; use more than {width} images",
            stacklevel=2,
        )
    mean_a, cov_a, mean_b, cov_b = (x.cpu() for x in (a.mean, a.cov, b.mean, b.cov))
    factor, info = torch.linalg.cholesky_ex(cov_a)
    if info:
        values, vectors = torch.linalg.eigh(cov_a)
        kept = values > values[-1] * width * torch.finfo(values.dtype).eps
        factor = vectors[:, kept] * values[kept].sqrt()
        product = factor.T @ cov_b @ factor
    else:
        product = _congruence(factor, cov_b)
    cross = torch.linalg.eigvalsh(product).clamp(min=0).sqrt().sum()
    distance = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross
    value: float = distance.item()
    return max(0.0, value)


def _congruence(lower: Tensor, symmetric: Tensor, block: int = 256) -> Tensor:
    """Overwrite `lower` with the lower triangle of `lower^T symmetric lower`, and return it.

    Blocks of zeros are skipped, which leaves a third of the work of dense products. A block of columns can be
    overwritten once its products are computed.
    """
    for start in range(0, len(lower), block):
        columns = slice(start, start + block)
        right = symmetric[start:, start:] @ lower[start:, columns]
        for row in range(start, len(lower), block):
            rows = slice(row, row + block)
            lower[rows, columns] = lower[row:, rows].T @ right[row - start :]
    return lower


class FrechetDistance(SampleMetric):
    """Frechet distance between the features of samples and of real images.

    Its state consists of float64 sums, which DDP adds up, so ranks may see different numbers of images and batches. The
    features of the first `max_images` samples are stored for the spread of the distance.

    Args:
        against: The real images: the reference split, or held-out images.
        max_images: Number of samples that give the spread.
    """

    count: Tensor
    total: Tensor
    outer: Tensor
    origin: Tensor
    index: list[Tensor]
    stored: list[Tensor]

    def __init__(self, against: Literal["reference", "held out"] = "reference", max_images: int = 10_000) -> None:
        super().__init__()
        self.against: Part = against
        self.needs = frozenset({"features", "held out"} if against == "held out" else {"features"})
        self.max_images = max_images

    def settings(self) -> dict[str, Any]:
        return {"against": self.against}  # the spread is not part of the score

    def directions(self, real: RealImages) -> dict[str, Direction]:
        return {self._name(real): "lower"}

    def begin(self) -> None:
        self.reference = self.real.moments(self.against)
        width = len(self.reference.mean)
        self.register_buffer("origin", self.reference.mean.clone(), persistent=False)
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros(width, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("outer", torch.zeros(width, width, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("index", [], dist_reduce_fx="cat")
        self.add_state("stored", [], dist_reduce_fx="cat")

    def update(self, batch: ScoredBatch) -> None:
        assert batch.features is not None
        centred = batch.features.to(self.total) - self.origin
        self.count += len(centred)
        self.total += centred.sum(0)
        self.outer += centred.T @ centred
        kept = batch.first(self.max_images)  # also if it is none, so that ranks agree on types and shapes
        self.index.append(kept.index)
        self.stored.append(cast(Tensor, kept.features))

    def moments(self) -> Moments:
        """Return the moments of the features of this rank, or of all ranks while the metric is synced."""
        return Moments.from_sums(int(self.count), self.total, self.outer, self.origin)

    def compute(self) -> dict[str, Estimate]:
        moments = self.moments()
        value = frechet_distance(moments, self.reference)
        order = dim_zero_cat(self.index).argsort()
        features = dim_zero_cat(self.stored)[order]
        spread = mean_deviations(frechet_influence(features, moments, self.reference))
        return {self._name(self.real): Estimate(value, spread * math.sqrt(len(features) / moments.n))}

    def _name(self, real: RealImages) -> str:
        return real.distance_name + ("_held_out" if self.against == "held out" else "")


def frechet_influence(features: Tensor, moments: Moments, reference: Moments) -> Tensor:
    r"""Return the influence of each sample on the squared distance between its distribution and a reference, (n,).

    With the covariance S of the samples and the optimal transport T from N(0, S) to N(0, S_r),

        IF(x) = 2 (mu - mu_r)^T (x - mu) + (x - mu)^T (I - T) (x - mu) - tr((I - T) S),
        T     = S^(-1/2) (S^(1/2) S_r S^(1/2))^(1/2) S^(-1/2).

    The variance of the distance of n samples is about var(IF) / n. If S is singular, T maps its range alone.

    Args:
        features: (n, d).
        moments: Moments of all samples.
        reference: Moments of the real images.
    """
    mean, cov, other = (x.cpu() for x in (moments.mean, moments.cov, reference.cov))
    values, vectors = torch.linalg.eigh(cov)
    kept = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    root, vectors = values[kept].sqrt(), vectors[:, kept]
    inner = torch.linalg.eigh(root[:, None] * (vectors.T @ other @ vectors) * root)
    middle = (inner.eigenvectors * inner.eigenvalues.clamp(min=0).sqrt()) @ inner.eigenvectors.T
    gradient = torch.eye(len(mean), dtype=cov.dtype) - vectors @ (middle / root[:, None] / root) @ vectors.T
    parts = []
    for block in features.split(1024):  # of float64, whose whole would take several times the memory of the features
        centred = block.to(mean) - mean
        parts.append(2 * centred @ (mean - reference.mean.cpu()) + ((centred @ gradient) * centred).sum(1))
    influence: Tensor = torch.cat(parts) - (gradient * cov).sum()
    return influence
