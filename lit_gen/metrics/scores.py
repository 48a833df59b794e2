"""All metrics of one evaluation, computed from its samples."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from lit_gen.metrics.feature_nets import FeatureNet, Points
from lit_gen.metrics.frechet import FrechetDistance, Moments
from lit_gen.metrics.inception_score import InceptionScore
from lit_gen.metrics.wasserstein import WassersteinDistance, wasserstein


class Scores(ABC):
    """Metrics of a known number of samples over all processes."""

    @abstractmethod
    def update(self, images: Tensor, index: Tensor) -> None:
        """Add samples (N, C, H, W), in the data type of the data, with their indices (N,)."""

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """Return the metrics by name; collective: call it on every rank."""


class ImageScores(Scores):
    """Frechet distance and inception score of images.

    Args:
        net: Feature net on the device of the samples.
        reference: Moments of the features of the real images.
        num_samples: Number of images to score.
        splits: Number of splits of the inception score.
        device: Device of the samples.
    """

    def __init__(
        self, net: FeatureNet, reference: Moments, num_samples: int, splits: int, device: torch.device
    ) -> None:
        self.net = net
        self.distance = FrechetDistance(reference).to(device)
        self.inception = InceptionScore(net.num_classes, num_samples, splits).to(device)

    def update(self, images: Tensor, index: Tensor) -> None:
        features, logits = self.net(images)
        self.distance.update(features)
        self.inception.update(logits, index)

    def compute(self) -> dict[str, float]:
        metrics = {self.net.distance_name: float(self.distance.compute())}
        mean, std = self.inception.compute()
        return metrics | {"inception_score": float(mean), "inception_score_std": float(std)}


class PointScores(Scores):
    """Wasserstein distance to n real points, and its floor: the mean distance of those to n other real points.

    Args:
        net: Feature net of points.
        real: Points (n, 2, 1, 1).
        others: More points of the same density. They are split into sets of n points; at most 4 sets are used.
        device: Device of the samples.
    """

    def __init__(self, net: Points, real: Tensor, others: Tensor, device: torch.device) -> None:
        self.net = net
        self.distance = WassersteinDistance(net(real)[0]).to(device)
        sets = others[: len(others) // len(real) * len(real)].split(len(real))[:4]
        self.floor = sum(wasserstein(net(real)[0], net(other)[0]) for other in sets) / len(sets) if sets else math.nan

    def update(self, images: Tensor, index: Tensor) -> None:
        self.distance.update(self.net(images)[0], index)

    def compute(self) -> dict[str, float]:
        name = self.net.distance_name
        return {name: float(self.distance.compute()), f"{name}_floor": self.floor}
