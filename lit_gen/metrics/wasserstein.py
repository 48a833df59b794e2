r"""Exact Wasserstein distances between two sets of n points.

    W_p(a, b)^p = min over permutations pi of 1/n sum_i |a_i - b_pi(i)|^p

This is a distance between the sets, not between the distributions that they are drawn from: two sets from the same
distribution have a distance too, which decreases with n. Distances are therefore comparable only at equal n, and the
distance between two sets of real points is the least to expect.
"""

from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchmetrics import Metric

from lit_gen.core.errors import UserError

MAX_POINTS = 5000


def wasserstein(a: Tensor, b: Tensor, order: int = 2) -> float:
    """Return W_p, p = `order`, between points a (n, d) and b (n, d).

    It is computed on the CPU in time of order n^3: about a second for n = 2000.

    Raises:
        ValueError: If the shapes differ.
        UserError: If there are too many points, or some are not finite.
    """
    if a.shape != b.shape:
        raise ValueError(f"points of shapes {tuple(a.shape)} and {tuple(b.shape)} cannot be assigned to each other")
    if len(a) > MAX_POINTS:
        raise UserError(
            "evaluation.num_samples: an exact Wasserstein distance takes time of order n^3, so it is limited to "
            f"{MAX_POINTS} points, not {len(a)}; set --evaluation.num_samples 2000"
        )
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        raise UserError(
            f"some of {len(a)} points are not finite, so the Wasserstein distance is undefined; sample with more steps"
        )
    cost = (a.double()[:, None] - b.double()[None]).square().sum(-1).cpu().numpy() ** (order / 2)
    rows, columns = linear_sum_assignment(cost)
    return float(cost[rows, columns].mean() ** (1 / order))


class WassersteinDistance(Metric):
    """Metric: W_2 between the features it was updated with and an equal number of fixed features.

    Features are stored by image index, so the result does not depend on the order or the number of processes.
    `compute` is collective: call it on every rank.

    Args:
        reference: Features (n, d) of n real images.
        **kwargs: Arguments of `torchmetrics.Metric`.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    features: Tensor
    count: Tensor

    def __init__(self, reference: Tensor, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.reference = reference.double().cpu()
        self.add_state("features", torch.zeros_like(self.reference), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, features: Tensor, index: Tensor) -> None:
        """Add features (N, d) of images with the given indices, (N,) in 0 .. n - 1; add each index once."""
        self.features[index] = features.to(self.features)
        self.count += len(features)

    def compute(self) -> Tensor:
        """Return the distance, a float64 scalar.

        Raises:
            UserError: If `wasserstein` raises it; raised on every rank.
            ValueError: If the number of images seen is not that of the reference.
        """
        if int(self.count) != len(self.reference):
            raise ValueError(f"the distance expects {len(self.reference)} images, but saw {int(self.count)}")
        return torch.tensor(wasserstein(self.features, self.reference), dtype=torch.float64)
