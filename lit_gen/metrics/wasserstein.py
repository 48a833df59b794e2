r"""Exact Wasserstein distances between two sets of n points.

    W_p(a, b)^p = min over permutations pi of 1/n sum_i |a_i - b_pi(i)|^p

This is a distance between the sets, not between the distributions that they are drawn from: two sets from the same
distribution have a distance too, which decreases with n. Distances are therefore comparable only at equal n, and the
distance between two sets of real points is the least to expect.

The best assignment has potentials, the solution of the dual problem,

    W_p^p = mean_i u_i + mean_j v_j,    u_i + v_j <= |a_i - b_j|^p,    equal where j = pi(i),

and W_p^p of n random points spreads as the mean of u over them: u_i is the influence of a_i on it.

Spread: del Barrio and Loubes 2019, "Central limit theorems for empirical transportation cost in general dimension",
https://arxiv.org/abs/1705.01299
"""

import math

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.metrics.base import Direction, Estimate, SampleMetric, ScoredBatch
from lit_gen.metrics.halves import mean_deviations
from lit_gen.metrics.real import Part, RealImages

MAX_POINTS = 5000


def wasserstein(a: Tensor, b: Tensor, order: int = 2) -> float:
    """Return W_p, p = `order`, between points a (n, d) and b (n, d).

    It is computed on the CPU in time of order n^3: about a second for n = 2000.

    Raises:
        ValueError: If the shapes differ.
        UserError: If there are too many points, or some are not finite.
    """
    cost, columns = assign(a, b, order)
    return float(_mean_cost(cost, columns) ** (1 / order))


def assign(a: Tensor, b: Tensor, order: int = 2) -> tuple[Tensor, Tensor]:
    """Return the costs |a_i - b_j|^p (n, n), float64, and the best assignment: the index (n,) of the b of each a.

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
    cost = (a.double()[:, None] - b.double()[None]).square().sum(-1).cpu() ** (order / 2)
    return cost, torch.from_numpy(linear_sum_assignment(cost.numpy())[1])


def potentials(cost: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Return the potentials u (n,) and v (n,) of the best assignment of costs (n, n), float64.

    v_j is the length of the shortest path to j that goes from pi(i) to j at the price cost_ij - cost_i,pi(i): no other
    assignment is cheaper, so no circle has a negative length. Bellman and Ford's rounds run over the cheapest steps of
    each i until nothing changes, and then once over all steps, which are few rounds.
    """
    matched = cost.gather(1, columns[:, None])[:, 0]
    steps = cost - matched[:, None]
    cheap, ends = steps.topk(min(len(cost), max(64, len(cost) // 30)), largest=False)
    v, tolerance = cost.new_zeros(len(cost)), 1e-12 * float(cost.max())
    changed = True
    while changed:
        before = v
        shorter = torch.minimum(v, (steps + v[columns][:, None]).amin(0))
        while float((v - shorter).max()) > tolerance:
            v = shorter
            shorter = v.scatter_reduce(0, ends.flatten(), (cheap + v[columns][:, None]).flatten(), "amin")
        changed = v is not before
    return matched - v[columns], v


def _mean_cost(cost: Tensor, columns: Tensor) -> float:
    return float(cost.gather(1, columns[:, None]).mean())


class WassersteinDistance(SampleMetric):
    """W_2 between n samples and n real images in feature space, and its floor.

    The floor is the mean distance of the real images to other sets of n real images, of which at most 4 are used: those
    of the training split, or held-out ones if the reference is the training split.

    The spread of W_2 is that of W_2^2, whose influences are the potentials u, divided by 2 W_2.

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
        cost, columns = assign(self.features, self.reference)
        distance = _mean_cost(cost, columns) ** 0.5
        influence = potentials(cost, columns)[0] / (2 * distance) if distance > 0 else torch.zeros(len(cost))
        estimates = (Estimate(distance, mean_deviations(influence)), Estimate(self.floor))
        return dict(zip(self.directions(self.real), estimates, strict=True))
