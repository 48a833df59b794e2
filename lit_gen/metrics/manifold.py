r"""Fidelity and variety apart: which samples lie among the real images, and which real images among the samples.

Let x_i be features of n real images, y_j features of m samples, and B_k(p) the closed ball around a point p that
reaches the k-th nearest other point of its own set. The balls of a set stand for its manifold.

    precision = 1/m sum_j [y_j in some B_k(x_i)]          share of samples that look real
    recall    = 1/n sum_i [x_i in some B_k(y_j)]          share of real images that the samples surround
    density   = 1/(k m) sum_ij [y_j in B_k(x_i)]          1 for the real distribution; may exceed 1
    coverage  = 1/n sum_i [some y_j in B_k(x_i)]          share of real images with a sample in their ball

For m samples of the real distribution, the expected coverage is that of a ball with n - 1 other real images, of which k
are inside: 1 - (n - 1)! (m + n - k - 1)! / ((m + n - 1)! (n - k - 1)!), or about 1 - 2^-k if m = n. All four depend on
m, n and k, so scores are comparable only if these are equal.

Kynkaanniemi et al., "Improved Precision and Recall Metric for Assessing Generative Models", 2019,
https://arxiv.org/abs/1904.06991; Naeem et al., "Reliable Fidelity and Diversity Metrics for Generative Models", 2020,
https://arxiv.org/abs/2002.09797.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from lit_gen.metrics.base import Direction, Estimate, ScoredBatch, StoredMetric, check_points
from lit_gen.metrics.halves import from_halves, half_samples, mean_deviations
from lit_gen.metrics.pairwise import CLOSED, PointSet
from lit_gen.metrics.real import RealImages


def precision_and_recall(real: Tensor, fake: Tensor, k: int = 3) -> tuple[float, float]:
    """Return precision and recall of generated features (m, d) with respect to real ones (n, d)."""
    precise, recalled = (
        torch.cat([inside.any(1) for _, inside in _in_balls(centres, others, k)])
        for centres, others in ((real, fake), (fake, real))
    )
    return float(precise.double().mean()), float(recalled.double().mean())


def density_and_coverage(real: Tensor, fake: Tensor, k: int = 5) -> tuple[float, float]:
    """Return density and coverage of generated features (m, d) with respect to real ones (n, d)."""
    num_balls, covered = 0, torch.zeros(len(real), dtype=torch.bool, device=real.device)
    for _, inside in _in_balls(real, fake, k):
        num_balls += int(inside.sum())
        covered |= inside.any(0)
    return num_balls / (k * len(fake)), float(covered.double().mean())


class BallMetric(StoredMetric):
    """A metric of balls around at most `max_images` samples and as many evenly spaced real images.

    Args:
        k: Number of neighbours that a ball reaches.
        max_images: Largest number of samples and of real images.
    """

    needs = frozenset({"features"})

    def __init__(self, k: int, max_images: int = 10_000) -> None:
        super().__init__()
        self.k, self.max_images = k, max_images

    def begin(self) -> None:
        super().begin()
        self.real_features = self.real.evenly("reference", self.max_images)
        first = next(iter(self.directions(self.real)))
        check_points(self.real_features, self.k + 1, f"{first} with {self.k} neighbours", "real images")


class PrecisionRecall(BallMetric):
    """Precision and recall of at most `max_images` samples and as many evenly spaced real images.

    Args:
        k: Number of neighbours that a ball reaches.
        max_images: Largest number of samples and of real images.
    """

    def __init__(self, k: int = 3, max_images: int = 10_000) -> None:
        super().__init__(k, max_images)

    def directions(self, real: RealImages) -> dict[str, Direction]:
        return {"precision": "higher", "recall": "higher"}

    def score(self, samples: ScoredBatch) -> dict[str, Estimate]:
        fake = samples.features
        assert fake is not None
        check_points(fake, self.k + 1, f"recall with {self.k} neighbours", "samples")
        precise = torch.cat([inside.any(1) for _, inside in _in_balls(self.real_features, fake, self.k)]).double()
        return {
            "precision": Estimate(float(precise.mean()), mean_deviations(precise)),
            "recall": self._recall(fake),
        }

    def _recall(self, fake: Tensor) -> Estimate:
        n, balls = len(fake), PointSet(fake)
        radii = self._radii(*balls.nearest(min(n - 1, 8 * self.k + 32)))  # enough for k of them to be in a half
        counts = torch.zeros(radii.shape[1], dtype=torch.int64, device=fake.device)
        for _, distances in balls.squared_distances(self.real_features):
            counts += _in_some(distances, radii).sum(0)
        recall = counts.double().cpu() / len(self.real_features)
        return Estimate(float(recall[0]), from_halves(recall[1:], n) if len(recall) > 1 else None)

    def _radii(self, squares: Tensor, others: Tensor) -> Tensor:
        """Return the squared radii of the samples, among all in column 0 and in each half, -1 outside it, (n, 1 + R).

        Args:
            squares: Squared distances to the nearest other samples, (n, K), in order.
            others: Indices of these, (n, K).
        """
        radii = [squares[:, self.k - 1] * CLOSED]
        if len(squares) // 2 > self.k:
            for half in half_samples(len(squares)).to(others.device):
                rank = (half[others].cumsum(1) < self.k).sum(1).clamp(max=others.shape[1] - 1)
                radius = squares.gather(1, rank[:, None])[:, 0] * CLOSED
                radii.append(radius.masked_fill(~half, -1))
        return torch.stack(radii, 1)


class DensityCoverage(BallMetric):
    """Density and coverage, of at most `max_images` samples and as many evenly spaced real images.

    Coverage is not a mean over samples. Its spread is that of the jackknife: the influence of a sample is the share of
    real images that no other sample covers. On average it is never too small (Efron and Stein 1981), is right while few
    balls hold several samples, and is up to half too large for coverages near 1.

    Args:
        k: Number of neighbours that a ball reaches.
        max_images: Largest number of samples and of real images.
    """

    def __init__(self, k: int = 5, max_images: int = 10_000) -> None:
        super().__init__(k, max_images)

    def directions(self, real: RealImages) -> dict[str, Direction]:
        return {"density": "higher", "coverage": "higher"}

    def score(self, samples: ScoredBatch) -> dict[str, Estimate]:
        fake = samples.features
        assert fake is not None
        check_points(fake, 2, "coverage", "samples")
        m, n = len(fake), len(self.real_features)
        num_balls = torch.zeros(m, dtype=torch.float64, device=fake.device)
        num_inside, last = (torch.zeros(n, dtype=torch.int64, device=fake.device) for _ in range(2))
        for rows, inside in _in_balls(self.real_features, fake, self.k):
            num_balls[rows] = inside.sum(1).double()
            num_inside += inside.sum(0)
            last = torch.where(inside.any(0), rows.start + inside.int().argmax(0), last)
        density = num_balls / self.k
        alone = last[num_inside == 1].bincount(minlength=m).double() / n
        return {
            "density": Estimate(float(density.mean()), mean_deviations(density)),
            "coverage": Estimate(float((num_inside > 0).double().mean()), mean_deviations((m - 1) * alone)),
        }


def _in_balls(centres: Tensor, others: Tensor, k: int) -> Iterator[tuple[slice, Tensor]]:
    """Yield the rows of a block of other points (m, d), and which of n balls they are in, (block, n)."""
    balls = PointSet(centres)
    radii = balls.nearest(k)[0][:, -1] * CLOSED
    for rows, distances in balls.squared_distances(others):
        yield rows, distances <= radii


def _in_some(distances: Tensor, radii: Tensor) -> Tensor:
    """Return whether points are in some ball of each set of balls, bool (block, S).

    Args:
        distances: Squared distances to the centres, (block, n).
        radii: Squared radii (n, S), or -1 if the set lacks the ball; those of column 0 are the least.
    """
    found = (distances <= radii[:, 0]).float() @ (radii >= 0).float() > 0
    rest = (~found).any(1).nonzero()[:, 0]  # few points: most are in several of the least balls
    for rows in rest.split(16):
        near = distances[rows]
        point, ball = (near <= radii.amax(1)).nonzero(as_tuple=True)
        for pairs in torch.arange(len(point), device=near.device).split(2**15):
            inside = near[point[pairs], ball[pairs], None] <= radii[ball[pairs]]
            hits = torch.zeros(len(rows), radii.shape[1], device=near.device)
            found[rows] |= hits.index_add_(0, point[pairs], inside.float()) > 0
    return found
