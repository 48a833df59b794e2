"""Points of the plane as their own features."""

import torch
from torch import Tensor

from lit_gen.metrics.feature_nets.base import FeatureNet


class Points(FeatureNet):
    """Coordinates of points in the plane, used as features without a network.

    Their distance is the exact 2-Wasserstein distance, which depends on more than means and covariances.
    """

    name = "points"
    version = "coordinates"
    width = 2
    num_classes = 0
    resize = "none"
    dtype = torch.float32

    @property
    def distance_name(self) -> str:
        return "w2_points"

    def extract(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return images.flatten(1), images.new_zeros(len(images), 0)
