"""Real images for the tests of metrics."""

import torch
from torch import Tensor

from lit_gen.metrics import FrechetDistance, InceptionScore, Moments, RealFeatures, ScoredBatch, WassersteinDistance
from lit_gen.metrics.real import Part


class RealMoments(RealFeatures):
    """Real images of which only the moments are known."""

    def __init__(self, moments: Moments) -> None:
        super().__init__(torch.zeros(2, len(moments.mean)))
        self._moments = moments

    def moments(self, part: Part) -> Moments:
        return self._moments


def frechet(reference: Moments, num_samples: int = 10**6) -> FrechetDistance:
    """Return a distance to a reference, ready for samples."""
    return FrechetDistance().prepare(RealMoments(reference), num_samples)


def inception(num_classes: int, num_samples: int, splits: int) -> InceptionScore:
    """Return an inception score, ready for samples."""
    return InceptionScore(splits).prepare(RealFeatures(torch.zeros(2, 1), num_classes=num_classes), num_samples)


def wasserstein_to(points: Tensor) -> WassersteinDistance:
    """Return a distance to points, ready for as many samples."""
    return WassersteinDistance().prepare(RealFeatures(points, net_name="points"), len(points))


def batch(features: Tensor, index: Tensor | None = None) -> ScoredBatch:
    """Return samples with these features."""
    return ScoredBatch(torch.arange(len(features)) if index is None else index, features=features)


def value(metric: FrechetDistance | WassersteinDistance) -> float:
    """Return the first score of a metric."""
    return next(iter(metric.compute().values())).value
