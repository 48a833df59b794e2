r"""Exact Wasserstein distances between two sets of n points.

    W_p(a, b)^p = min over permutations pi of 1/n sum_i |a_i - b_pi(i)|^p

This is a distance between the sets, not between the distributions that they are drawn from: two sets from the same
distribution have a distance too, which decreases with n. Distances are therefore comparable only at equal n, and the
distance between two sets of real points is the least to expect.
"""

import math

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.metrics.base import Direction, Estimate, SampleMetric, ScoredBatch
from lit_gen.metrics.real import Part, RealImages

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


class WassersteinDistance(SampleMetric):
    """W_2 between n samples and n real images in feature space, and its floor.

    The floor is the mean distance of the real images to other sets of n real images, of which at most 4 are used: those
    of the training split, or held-out ones if the reference is the training split.

    Features are stored by image index, so the result does not depend on the order or the number of processes.
    """

    needs = frozenset({"features"})

    features: Tensor
    count: Tensor

    def directions(self, real: RealImages) -> dict[str, Direction]:
        return {f"w2_{real.net_name}": "lower", f"w2_{real.net_name}_floor": "lower"}

    def begin(self) -> None:
        n = self.num_samples
        reference = self.real.features("reference").double().cpu()
        if len(reference) < n:
            raise UserError(
                f"evaluation.num_samples: a Wasserstein distance needs as many real images as samples, and there are "
                f"{len(reference)}, not {n}; give at most {len(reference)}"
            )
        self.reference = reference[:n]
        other: Part = "held out" if self.real.trains_on_reference else "train"
        others = self.real.features(other).double().cpu() if self.real.has(other) else reference[:0]
        sets = [others[start : start + n] for start in range(0, len(others) - n + 1, n)][:4]
        self.floor = sum(wasserstein(self.reference, each) for each in sets) / len(sets) if sets else math.nan
        self.add_state("features", torch.zeros_like(self.reference), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, batch: ScoredBatch) -> None:
        assert batch.features is not None
        self.features[batch.index.to(self.features.device, non_blocking=True)] = batch.features.to(self.features)
        self.count += len(batch.features)

    def compute(self) -> dict[str, Estimate]:
        if int(self.count) != self.num_samples:
            raise ValueError(f"the distance expects {self.num_samples} images, but saw {int(self.count)}")
        values = (wasserstein(self.features, self.reference), self.floor)
        return {name: Estimate(value) for name, value in zip(self.directions(self.real), values, strict=True)}
