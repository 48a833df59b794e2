r"""The Wasserstein distances between two sets of as many points, exactly.

    W_p(a, b)^p = min over permutations pi of 1/n sum_i |a_i - b_pi(i)|^p

It is a distance between the sets and not between the distributions they are drawn from: two sets of one distribution
are apart as well, by less the more points there are. So numbers compare only at equal n, and none can be expected
below the distance between two sets of real points.
"""

from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchmetrics import Metric

from lit_gen.core.errors import UserError

MAX_POINTS = 5000


def wasserstein(a: Tensor, b: Tensor, order: int = 2) -> float:
    """W_p, p = `order`, between points a (n, d) and b (n, d), on the CPU: of order n^3, about a second at n = 2000.

    Raises:
        ValueError: The shapes differ.
        UserError: There are too many points, or some are not finite.
    """
    if a.shape != b.shape:
        raise ValueError(f"points of shapes {tuple(a.shape)} and {tuple(b.shape)} have no assignment to each other")
    if len(a) > MAX_POINTS:
        raise UserError(
            f"an exact Wasserstein distance takes time of order n^3, so at most {MAX_POINTS} points and not {len(a)}: "
            "set --evaluation.num_samples 2000"
        )
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        raise UserError(f"some of {len(a)} points are not finite, so they have no Wasserstein distance")
    cost = (a.double()[:, None] - b.double()[None]).square().sum(-1).cpu().numpy() ** (order / 2)
    rows, columns = linear_sum_assignment(cost)
    return float(cost[rows, columns].mean() ** (1 / order))


class WassersteinDistance(Metric):
    """W_2 between the features it was updated with and as many fixed ones.

    Features are kept at the index of their image, so that neither the order nor the number of processes matters.
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
        """Adds features (N, d) of the images with the given indices, (N,) in 0 .. n - 1, each once."""
        self.features[index] = features.to(self.features)
        self.count += len(features)

    def compute(self) -> Tensor:
        """The distance, a float64 scalar.

        Raises:
            UserError: As `wasserstein`; on every rank alike.
            ValueError: The number of images seen is not that of the reference.
        """
        if int(self.count) != len(self.reference):
            raise ValueError(f"the distance is between {len(self.reference)} images, but saw {int(self.count)}")
        return torch.tensor(wasserstein(self.features, self.reference), dtype=torch.float64)
