r"""The Vendi score: the effective number of different samples.

Let x_i be the features of n samples, scaled to unit length, and K_ij = x_i . x_j their cosine similarities. With the
eigenvalues lambda of K / n, which add up to 1,

    VS = exp( - sum_k lambda_k log lambda_k )

It lies between 1, if all samples have the same direction, and min(n, d), if they are as many orthogonal ones. It needs
no real images, and measures variety alone: noise scores high. It grows with n, so compare it at equal n, also with the
score of real images.

K / n and S = 1/n sum_i x_i x_i^T have the same non-zero eigenvalues, so the smaller of the two is decomposed.
Sample x has the influence -x^T log(S) x + tr(S log S) on log VS.

Friedman and Dieng, "The Vendi Score: A Diversity Evaluation Metric for Machine Learning", 2023,
https://arxiv.org/abs/2210.02410.
"""

import torch
from torch import Tensor

from lit_gen.metrics.base import Direction, Estimate, ScoredBatch, StoredMetric, check_points
from lit_gen.metrics.halves import mean_deviations
from lit_gen.metrics.real import RealImages


def vendi_score(features: Tensor) -> float:
    """Return the Vendi score of features (n, d)."""
    return float(_information(features).mean().exp())


class VendiScore(StoredMetric):
    """Vendi score of the samples under the cosine kernel of their features.

    The spread is too small if there are fewer samples than features: then new samples would add new directions.

    A feature vector of zeros has no direction: such samples are equal to each other, and orthogonal to all others.

    Args:
        max_images: Largest number of samples.
    """

    needs = frozenset({"features"})

    def __init__(self, max_images: int = 10_000) -> None:
        super().__init__()
        self.max_images = max_images

    def directions(self, real: RealImages) -> dict[str, Direction]:
        return {f"vendi_{real.net_name}": "higher"}

    def score(self, samples: ScoredBatch) -> dict[str, Estimate]:
        assert samples.features is not None
        check_points(samples.features, 2, "a Vendi score", "samples")
        information = _information(samples.features)
        value = float(information.mean().exp())
        return {f"vendi_{self.real.net_name}": Estimate(value, value * mean_deviations(information))}


def _information(features: Tensor) -> Tensor:
    """Return -x^T log(S) x of each sample, float64 (n,); its mean is log VS."""
    n, x = len(features), _unit(features)
    if n <= x.shape[1]:
        values, vectors = torch.linalg.eigh(x @ x.T / n)
        squares = vectors.square_().mul_(n * values.clamp(min=0))
    else:
        values, vectors = torch.linalg.eigh(x.T @ x / n)
        squares = (x @ vectors).square_()
    positive = values > len(values) * torch.finfo(values.dtype).eps
    information: Tensor = squares.mv(-values.where(positive, 1).log())
    return information


def _unit(features: Tensor) -> Tensor:
    """Return features (n, d) scaled to unit length, with an additional feature that is 1 for those that are 0."""
    n, d = features.shape
    unit = torch.zeros(n, d + 1, dtype=torch.float64, device=features.device)
    vectors = unit[:, :d].copy_(features)
    largest = torch.maximum(vectors.amax(1), -vectors.amin(1))[:, None]
    vectors /= largest.where(largest > 0, 1)  # so that no square underflows
    length = vectors.norm(dim=1, keepdim=True)
    vectors /= length.where(length > 0, 1)
    unit[:, d:] = largest == 0
    return unit
