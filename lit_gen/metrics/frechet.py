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

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_gen.core.errors import UserError


@dataclass(frozen=True)
class Moments:
    """Mean and unbiased covariance of features, float64.

    Attributes:
        n: Number of samples.
        mean: (d,)
        cov: (d, d), with the divisor n - 1.
    """

    n: int
    mean: Tensor
    cov: Tensor

    @classmethod
    def from_sums(cls, n: int, total: Tensor, outer: Tensor, origin: Tensor) -> "Moments":
        """Return the moments, given sums over the differences y = x - origin.

        Every origin gives the same moments; an origin near the mean avoids cancellation.

        Args:
            n: Number of samples.
            total: sum y, (d,).
            outer: sum y y^T, (d, d).
            origin: (d,)

        Raises:
            UserError: If there are fewer than two samples, or a feature is not finite.
        """
        if n < 2:
            raise UserError(f"a Frechet distance needs at least 2 images of each kind, not {n}; raise their number")
        if not (torch.isfinite(total).all() and torch.isfinite(outer).all()):
            raise UserError(
                f"some features of {n} images are not finite, so the Frechet distance is undefined; run the feature "
                "net in float32, and check its weights file"
            )
        mean = total / n
        return cls(n, origin + mean, (outer - n * torch.outer(mean, mean)) / (n - 1))

    @classmethod
    def of(cls, features: Tensor) -> "Moments":
        """Return the moments of features (n, d); raises as `from_sums` does."""
        features = features.double()
        origin = features[:1].sum(0)
        centred = features - origin
        return cls.from_sums(len(features), centred.sum(0), centred.T @ centred, origin)


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


class FrechetDistance(Metric):
    """Metric: the Frechet distance between the features it was updated with and a fixed reference.

    Its state consists of float64 sums, which DDP adds up, so ranks may see different numbers of images and batches.
    `compute` is collective: call it on every rank.

    Args:
        reference: Moments of the real images' features.
        **kwargs: Arguments of `torchmetrics.Metric`.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    count: Tensor
    total: Tensor
    outer: Tensor
    origin: Tensor

    def __init__(self, reference: Moments, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.reference = reference
        width = len(reference.mean)
        self.register_buffer("origin", reference.mean.clone(), persistent=False)
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros(width, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("outer", torch.zeros(width, width, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, features: Tensor) -> None:
        """Add features (N, width)."""
        centred = features.to(self.total) - self.origin
        self.count += len(centred)
        self.total += centred.sum(0)
        self.outer += centred.T @ centred

    def moments(self) -> Moments:
        """Return the moments of the features of this rank, or of all ranks while the metric is synced."""
        return Moments.from_sums(int(self.count), self.total, self.outer, self.origin)

    def compute(self) -> Tensor:
        """Return the distance, a float64 scalar.

        Raises:
            UserError: If there are fewer than two samples or features are not finite; raised on every rank.
        """
        return torch.tensor(frechet_distance(self.moments(), self.reference), dtype=torch.float64)
