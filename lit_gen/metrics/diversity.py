"""Variety of generated images in comparison with real ones; these metrics reveal a collapse.

Let x_i be features (n, d) of real images, y_j features (m, d) of generated images, and B_k(x_i) the ball around x_i
that reaches its k-th nearest real neighbour:

    density  = 1/(k m) sum_ij [y_j in B_k(x_i)]        1 for the real distribution; may exceed 1
    coverage = 1/n sum_i [some y_j in B_k(x_i)]        1 - P(none) for the real distribution; falls if modes are lost

Paper: Naeem et al. 2020, https://arxiv.org/abs/2002.09797
"""

import torch
from torch import Tensor


def density_and_coverage(real: Tensor, fake: Tensor, k: int = 5) -> tuple[float, float]:
    """Return density and coverage of generated features (m, d) with respect to real ones (n, d)."""
    radius = _to_others(real).kthvalue(k, dim=1).values
    inside = torch.cdist(real, fake) <= radius[:, None]
    return float(inside.sum() / (k * len(fake))), float(inside.any(1).float().mean())


def _to_others(points: Tensor) -> Tensor:
    """Return the distances (n, n) between points, with infinity on the diagonal."""
    # without matrix products, whose rounding gives equal points a distance
    return torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(torch.inf)
