r"""The Frechet distance of infinitely many samples, by extrapolation.

The expected distance of n samples is close to a line in 1/n. Distances of random subsets of 15 sizes from N/10 to N,
evenly spaced, are fitted with a line by least squares, whose value at 1/n = 0 is the score:

    d(n) = a + b / n,    score = a

The bias of the n samples disappears up to terms of order 1/n^2, and that of the real images remains. The price is
variance: the spread is larger than that of the distance of all samples.

The intercept is a weighted sum of the distances, sum_s w_s d_s, so sample i has the influence
sum_s w_s N/n_s [i in subset s] IF(x_i), with IF of `metrics.frechet.frechet_influence`.

Chong and Forsyth, "Effectively Unbiased FID and Inception Score and where to find them", 2020,
https://arxiv.org/abs/1911.07023.
"""

import torch
from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.metrics.base import Direction, Estimate, ScoredBatch, StoredMetric, check_points
from lit_gen.metrics.frechet import frechet_distance, frechet_influence
from lit_gen.metrics.halves import mean_deviations
from lit_gen.metrics.moments import Moments
from lit_gen.metrics.real import RealImages

NUM_SIZES = 15
LEAST_SHARE = 10
"""The smallest subset holds one in so many samples."""


def subsets(n: int, seed: int = 0) -> list[Tensor]:
    """Return random subsets of n samples, as indices of 15 sizes from n // 10 to n, shuffled anew for each size."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.linspace(n // LEAST_SHARE, n, NUM_SIZES, dtype=torch.float64).round().long()
    return [torch.randperm(n, generator=generator)[:size] for size in sizes.tolist()]


def intercept_weights(sizes: Tensor) -> Tensor:
    """Return the weights (S,) of values at sizes n (S,) in the value at 1/n = 0 of their least-squares line."""
    design = torch.stack([torch.ones(len(sizes), dtype=torch.float64), 1 / sizes.double()], 1)
    weights: Tensor = torch.linalg.pinv(design)[0]
    return weights


class FrechetInfinity(StoredMetric):
    """Frechet distance between the features of samples and real images, extrapolated to infinitely many samples.

    The smallest subset must hold more samples than there are features.

    Args:
        seed: Seed of the subsets.
        max_images: Largest number of samples.
    """

    needs = frozenset({"features"})

    def __init__(self, seed: int = 0, max_images: int = 50_000) -> None:
        super().__init__()
        self.seed, self.max_images = seed, max_images

    def directions(self, real: RealImages) -> dict[str, Direction]:
        return {self._name(real): "lower"}

    def begin(self) -> None:
        super().begin()
        self.reference = self.real.moments("reference")
        width = len(self.reference.mean)
        if self.num_stored // LEAST_SHARE <= width:
            needed = LEAST_SHARE * (width + 1)
            key = "evaluation.num_samples" if self.num_samples < needed else "max_images"
            raise UserError(
                f"{key}: {self._name(self.real)} of {width} features needs at least {needed} samples, not "
                f"{self.num_stored}; raise it"
            )

    def score(self, samples: ScoredBatch) -> dict[str, Estimate]:
        features = samples.features
        assert features is not None
        check_points(features, 2, self._name(self.real), "samples")
        n, chosen = len(features), subsets(len(features), self.seed)
        weights = intercept_weights(torch.tensor([len(each) for each in chosen])).tolist()
        value, share = 0.0, torch.zeros(n, dtype=torch.float64)
        for weight, subset in zip(weights, chosen, strict=True):
            moments = Moments.of(features[subset.to(features.device)])
            value += weight * frechet_distance(moments, self.reference)
            share[subset] += weight * n / len(subset)
        influence = frechet_influence(features, Moments.of(features), self.reference)
        return {self._name(self.real): Estimate(value, mean_deviations(share * influence))}

    def _name(self, real: RealImages) -> str:
        return f"{real.distance_name}_infinity"
