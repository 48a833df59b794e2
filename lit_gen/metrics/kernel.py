r"""The kernel distance: the squared maximum mean discrepancy between features x of samples and y of real images.

    MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y),    k(x, y) = (x . y / d + 1)^3

With this kernel MMD^2 is 0 if and only if the first three moments of both distributions agree. The estimate is the
U-statistic over all pairs of n samples and m images, without the pairs of an image with itself:

    1/(n (n - 1)) sum_(i != j) k(x_i, x_j)  +  1/(m (m - 1)) sum_(i != j) k(y_i, y_j)  -  2/(n m) sum_ij k(x_i, y_j)

Unlike the Frechet distance it is unbiased for every n and m, so it may be negative. Other programs average it over
random subsets of 1000 images; that has the same expectation, but a larger spread.

The kernel does not normalise the features. Its values grow with their sixth power, so distances of one feature net can
be compared with each other, and not with those of another.

Binkowski et al., "Demystifying MMD GANs", 2018, https://arxiv.org/abs/1801.01401; Gretton et al., "A Kernel Two-Sample
Test", 2012.
"""

from typing import Literal

import torch
from torch import Tensor

from lit_gen.metrics.base import Direction, Estimate, ScoredBatch, StoredMetric, check_points
from lit_gen.metrics.halves import mean_deviations
from lit_gen.metrics.real import Part, RealImages

BLOCK = 2048


def kernel_distance(x: Tensor, y: Tensor) -> float:
    """Return the unbiased estimate of MMD^2 between features x (n, d) and y (m, d), with n and m at least 2."""
    return float(_own_means(x).mean() + _own_means(y).mean() - 2 * _means(x, y).mean())


class KernelDistance(StoredMetric):
    """Kernel distance between the features of samples and all real images, kid for those of Inception.

    The spread follows from the influence of each sample, 2 (E k(x, x') - E k(x, y)). If the distributions are equal, it
    is up to sqrt(2) times too large.

    Args:
        against: The real images: the reference split, or held-out images.
        max_images: Largest number of samples.
    """

    def __init__(self, against: Literal["reference", "held out"] = "reference", max_images: int = 10_000) -> None:
        super().__init__()
        self.against: Part = against
        self.needs = frozenset({"features", "held out"} if against == "held out" else {"features"})
        self.max_images = max_images

    def directions(self, real: RealImages) -> dict[str, Direction]:
        return {self._name(real): "lower"}

    def begin(self) -> None:
        super().begin()
        self.real_features = self.real.features(self.against)
        check_points(self.real_features, 2, "a kernel distance", f"{self.against} images")

    def score(self, samples: ScoredBatch) -> dict[str, Estimate]:
        x, y = samples.features, self.real_features
        assert x is not None
        check_points(x, 2, "a kernel distance", "samples")
        own, across = _own_means(x), _means(x, y)
        value = float(own.mean() + _own_means(y).mean() - 2 * across.mean())
        return {self._name(self.real): Estimate(value, mean_deviations(2 * (own - across)))}

    def _name(self, real: RealImages) -> str:
        return real.name("kd") + ("_held_out" if self.against == "held out" else "")


def _own_means(x: Tensor) -> Tensor:
    """Return the mean kernel of each x_i (n, d) with all others of them, float64 (n,)."""
    n = len(x)
    sums = torch.zeros(n, dtype=torch.float64, device=x.device)
    for start in range(0, n, BLOCK):
        rows = slice(start, start + BLOCK)
        sums[rows] += _kernel(x[rows], x[rows]).fill_diagonal_(0).sum(1)
        for other in range(start + BLOCK, n, BLOCK):  # k is symmetric
            columns = slice(other, other + BLOCK)
            kernel = _kernel(x[rows], x[columns])
            sums[rows] += kernel.sum(1)
            sums[columns] += kernel.sum(0)
            del kernel  # before the next one is computed
    return sums / (n - 1)


def _means(x: Tensor, y: Tensor) -> Tensor:
    """Return the mean kernel of each x_i (n, d) with all y_j (m, d), float64 (n,)."""
    sums = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for start in range(0, len(x), BLOCK):
        rows = slice(start, start + BLOCK)
        for columns in y.split(BLOCK):
            sums[rows] += _kernel(x[rows], columns).sum(1)
    return sums / len(y)


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    base = (x.double() @ y.double().T).div_(x.shape[1]).add_(1)
    return base.square().mul_(base)
