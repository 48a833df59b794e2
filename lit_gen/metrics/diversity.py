"""The rate of duplicates among generated images, which reveals a collapse."""

import torch
from torch import Tensor


def duplicate_rate(real: Tensor, fake: Tensor) -> float:
    """Return the share of generated images whose nearest other generated image is a duplicate.

    A duplicate is identical, or nearer than half the median distance between a real image and its nearest different
    real image. The rate of real images is therefore above 0 if some of them repeat, as binarised images may.
    """
    different = _to_others(real)
    nearest = different.masked_fill(different == 0, torch.inf).amin(1)
    limit = nearest[nearest.isfinite()].median() / 2 if nearest.isfinite().any() else torch.tensor(0.0)
    distance = _to_others(fake).amin(1)
    return float(((distance < limit) | (distance == 0)).float().mean())


def _to_others(points: Tensor) -> Tensor:
    """Return the distances (n, n) between points, with infinity on the diagonal."""
    # without matrix products, whose rounding gives equal points a distance
    return torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(torch.inf)
