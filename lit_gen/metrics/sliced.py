r"""The sliced Wasserstein distance: the mean over directions of distances between projected features, which are exact.

    SW^2(P, Q) = E_theta W_2^2(theta . x, theta . y),    theta uniform on the unit sphere

On a line, W_2^2 is the integral of the squared difference of the quantile functions over (0, 1). Those of n samples and
m images are steps at multiples of 1/n and of 1/m, so the integral is a sum of at most n + m terms, also if n and m
differ. The directions are seeded, so a score has no noise of its own.

Sets of the same distribution have a distance too, which falls as n and m grow: distances are comparable only at equal
numbers of images.

Rabin et al., "Wasserstein Barycenter and Its Application to Texture Mixing", 2011; Bonneel et al., "Sliced and Radon
Wasserstein Barycenters of Measures", 2015, https://doi.org/10.1007/s10851-014-0506-3.
"""

import torch
from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.metrics.base import Direction, Estimate, ScoredBatch, StoredMetric, check_points
from lit_gen.metrics.halves import mean_deviations
from lit_gen.metrics.real import RealImages

CHUNK = 16
"""Number of directions at once."""


def directions(num_projections: int, width: int, seed: int = 0) -> Tensor:
    """Return seeded random directions, uniform on the unit sphere, float64 (L, d)."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(num_projections, width, dtype=torch.float64, generator=generator)
    return vectors.div_(vectors.norm(dim=1, keepdim=True))


def sliced_wasserstein(x: Tensor, y: Tensor, theta: Tensor) -> float:
    """Return SW between features x (n, d) and y (m, d) over directions theta (L, d)."""
    squares = [quantile_distance(_sorted(x, rows), _sorted(y, rows)) for rows in theta.split(CHUNK)]
    return float(torch.cat(squares).mean().sqrt())


def quantile_distance(a: Tensor, b: Tensor) -> Tensor:
    """Return W_2^2 between sorted numbers a (L, n) and b (L, m) of each row, (L,)."""
    n, m = a.shape[1], b.shape[1]
    steps = [torch.arange(1, count + 1, device=a.device) * other for count, other in ((n, m), (m, n))]
    ends = torch.cat(steps).unique()  # of the pieces where both quantile functions are constant, in units of 1/(n m)
    widths = ends.diff(prepend=ends.new_zeros(1)).double() / (n * m)
    differences = a[:, (ends - 1) // m] - b[:, (ends - 1) // n]
    return differences.square().mul(widths).sum(1)


def potentials(a: Tensor, b: Tensor) -> Tensor:
    """Return the influence of each a_i on W_2^2 between sorted numbers a (L, n) and b (L, m), up to a constant, (L, n).

    It is the Kantorovich potential u with u'(t) = 2 (t - T(t)), where T is the optimal transport from a to b. Between
    a_i and a_(i + 1), T(t) is the quantile of b at i/n.
    """
    n, m = a.shape[1], b.shape[1]
    middle = (torch.arange(1, n, device=a.device) * m - 1) // n
    step = a.diff(dim=1)
    slopes = a[:, 1:] + a[:, :-1] - 2 * b[:, middle]
    return torch.cat([a.new_zeros(len(a), 1), (step * slopes).cumsum(1)], 1)


class SlicedWasserstein(StoredMetric):
    """Sliced Wasserstein distance of order 2 between the features of samples and all real images.

    Args:
        num_projections: Number of directions.
        seed: Seed of the directions.
        max_images: Largest number of samples.
    """

    needs = frozenset({"features"})

    def __init__(self, num_projections: int = 256, seed: int = 0, max_images: int = 10_000) -> None:
        super().__init__()
        if num_projections < 1:
            raise UserError(f"num_projections: {num_projections} is too few; give at least 1")
        self.num_projections, self.seed, self.max_images = num_projections, seed, max_images

    def directions(self, real: RealImages) -> dict[str, Direction]:
        return {f"sw_{real.net_name}": "lower"}

    def begin(self) -> None:
        super().begin()
        self.real_features = self.real.features("reference")
        check_points(self.real_features, 1, "a sliced Wasserstein distance", "real images")

    def score(self, samples: ScoredBatch) -> dict[str, Estimate]:
        x, y = samples.features, self.real_features
        assert x is not None
        check_points(x, 2, "a sliced Wasserstein distance", "samples")
        theta = directions(self.num_projections, x.shape[1], self.seed)
        square, influence = 0.0, torch.zeros(len(x), dtype=torch.float64, device=x.device)
        for rows in theta.split(CHUNK):
            a, order = _project(x, rows).sort(1)
            b = _sorted(y, rows)
            square += float(quantile_distance(a, b).sum()) / len(theta)
            influence.index_add_(0, order.flatten(), potentials(a, b).flatten() / len(theta))
        value = square**0.5
        spread = mean_deviations(influence) / (2 * value) if value else None
        return {f"sw_{self.real.net_name}": Estimate(value, spread)}


def _project(x: Tensor, theta: Tensor) -> Tensor:
    """Return the projections of features (n, d), float64 (L, n)."""
    return torch.cat([theta.to(x.device) @ rows.double().T for rows in x.split(4096)], 1)


def _sorted(x: Tensor, theta: Tensor) -> Tensor:
    return _project(x, theta).sort(1).values
