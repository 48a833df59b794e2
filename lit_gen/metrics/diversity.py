"""How much of the real images' variety the generated ones have: numbers that show a collapse.

Of features (n, d) of real and (m, d) of generated images, with B_k(x_i) the ball about the real x_i that reaches to its
k-th nearest real neighbour:

    density  = 1/(k m) sum_ij [y_j in B_k(x_i)]        1 for the real distribution, not bounded by it
    coverage = 1/n sum_i [some y_j in B_k(x_i)]        1 - P(none) for the real distribution, falls where modes are lost

Paper: Naeem et al. 2020, https://arxiv.org/abs/2002.09797
"""

import torch
from torch import Tensor


def density_and_coverage(real: Tensor, fake: Tensor, k: int = 5) -> tuple[float, float]:
    """Density and coverage of generated features (m, d) by real ones (n, d)."""
    radius = _to_others(real).kthvalue(k, dim=1).values
    inside = torch.cdist(real, fake) <= radius[:, None]
    return float(inside.sum() / (k * len(fake))), float(inside.any(1).float().mean())


def duplicate_rate(real: Tensor, fake: Tensor) -> float:
    """Share of generated images whose nearest other generated image is a duplicate.

    A duplicate is nearer than half the median distance between a real image and its nearest different real one, or
    the same. So the rate of real images is not 0 where they repeat, as binarised ones may.
    """
    different = _to_others(real)
    nearest = different.masked_fill(different == 0, torch.inf).amin(1)
    limit = nearest[nearest.isfinite()].median() / 2 if nearest.isfinite().any() else torch.tensor(0.0)
    distance = _to_others(fake).amin(1)
    return float(((distance < limit) | (distance == 0)).float().mean())


def _to_others(points: Tensor) -> Tensor:
    """Distances (n, n) between points, infinite from each to itself."""
    # not by products, whose rounding keeps equal points apart
    return torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(torch.inf)
