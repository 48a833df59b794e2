"""Points in the plane with a known density, on which the theory can be checked.

Points are float32 images of shape (2, 1, 1) within [-1, 1], whose channels are x and y; they are never quantised. The
targets of a network are known exactly: the density of x_t = alpha x_0 + sigma eps at every noise level, and the
denoiser E[x_0 | x_t].
"""

import math
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.data.sources import ImageSet, ImageSource, Part
from lit_gen.distributions.mixtures import GaussianMixture, Mixture, UniformMixture

_FIRST_OF_TEST = 2**32  # index of the first test point: a longer training part extends a shorter one


class PointSource(ImageSource):
    """Density in the plane, and points drawn from it; point i is a function of (seed, i).

    Args:
        num_points: Number of training points, and of test points.
        seed: Seed of the points.

    Raises:
        UserError: If there are no points, or the density extends beyond [-1, 1].
    """

    quantised = False
    image_shape = (2, 1, 1)
    num_classes = 0

    def __init__(self, num_points: int = 20_000, seed: int = 0) -> None:
        if num_points < 1:
            raise UserError(f"data.source.num_points: {num_points} is too few; give at least 1")
        self.num_points = num_points
        self.seed = seed

    @property
    @abstractmethod
    def exact(self) -> Mixture:
        """Mixture that the points are drawn from, with the exact density and posterior mean of x_t."""

    def classes(self, component: Tensor) -> Tensor | None:
        """Return the labels (N,) of points from the given components of the mixture; None without labels."""
        return None

    def load(self, part: Part) -> ImageSet:
        first = 0 if part == "train" else _FIRST_OF_TEST
        points, component = self.exact.draw(Noise(self.seed, range(first, first + self.num_points)))
        labels = self.classes(component)
        return ImageSet(points.float()[:, :, None, None].numpy(), None if labels is None else labels.numpy())


class GaussianMixture2D(PointSource):
    """Mixture of equal normal distributions on a ring, labelled by component.

    Args:
        num_components: Number of components.
        radius: Radius of the ring.
        std: Standard deviation of each component in both directions.
    """

    name = "mixture2d"

    def __init__(self, num_components: int = 8, radius: float = 0.65, std: float = 0.08, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if num_components < 1:
            raise UserError(f"data.source.num_components: {num_components} is too few; give at least 1")
        _check_extent(radius, std)
        self.num_components = self.num_classes = num_components
        self.radius = radius
        self.std = std

    @property
    def exact(self) -> GaussianMixture:
        angle = torch.arange(self.num_components, dtype=torch.float64) * (2 * math.pi / self.num_components)
        return _normals(self.radius * torch.stack([angle.cos(), angle.sin()], 1), self.std)

    def classes(self, component: Tensor) -> Tensor:
        return component


class TwoMoons(PointSource):
    """Two interleaved half circles of radius 1/2 with normal noise, labelled by half circle.

    Args:
        std: Standard deviation of the noise.
    """

    name = "two_moons"
    num_classes = 2

    def __init__(self, std: float = 0.05, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        _check_extent(0.75, std)
        self.std = std

    @property
    def exact(self) -> GaussianMixture:
        angle = math.pi * _on_curve(math.pi / 2, self.std)
        upper = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], 1)
        return _normals(torch.cat([upper, -upper]) / 2, self.std)

    def classes(self, component: Tensor) -> Tensor:
        return component // (len(self.exact.weights) // 2)


class Spiral(PointSource):
    """Spiral from the centre to radius 0.8 with normal noise, without labels.

    Args:
        turns: Number of turns.
        std: Standard deviation of the noise.
    """

    name = "spiral"

    def __init__(self, turns: float = 2.0, std: float = 0.03, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 < turns <= 5:
            raise UserError(f"data.source.turns: {turns} is not in (0, 5]; give a number in that range")
        _check_extent(0.8, std)
        self.turns = turns
        self.std = std

    @property
    def exact(self) -> GaussianMixture:
        share = _on_curve(0.8 * (1 + math.pi * self.turns), self.std).sqrt()  # about evenly along the curve
        angle = 2 * math.pi * self.turns * share
        return _normals(0.8 * share[:, None] * torch.stack([angle.cos(), angle.sin()], 1), self.std)


class Checkerboard(PointSource):
    """Uniform distribution on every other cell of a square board, without labels.

    Args:
        num_cells: Number of cells along a side.
        half_width: Half the width of the board.
    """

    name = "checkerboard"

    def __init__(self, num_cells: int = 4, half_width: float = 0.8, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if num_cells < 1:
            raise UserError(f"data.source.num_cells: {num_cells} is too few; give at least 1")
        if not 0 < half_width <= 1:
            raise UserError(f"data.source.half_width: {half_width} is not in (0, 1]; give a number in that range")
        self.num_cells = num_cells
        self.half_width = half_width

    @property
    def exact(self) -> UniformMixture:
        size = 2 * self.half_width / self.num_cells
        cells = [[i, j] for i in range(self.num_cells) for j in range(self.num_cells) if (i + j) % 2 == 0]
        low = torch.tensor(cells, dtype=torch.float64) * size - self.half_width
        return UniformMixture(low, low + size)


def grid_of_points(reach: float, num: int = 160) -> Tensor:
    """Return the centres of num x num pixels of [-reach, reach]^2, row by row from below: (num^2, 2)."""
    middles = ((torch.arange(num, dtype=torch.float64) + 0.5) / num * 2 - 1) * reach
    y, x = torch.meshgrid(middles, middles, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], 1)


def _normals(means: Tensor, std: float) -> GaussianMixture:
    return GaussianMixture(means, torch.full((len(means),), std, dtype=torch.float64))


def _on_curve(length: float, std: float) -> Tensor:
    """Return the centres of equal parts of [0, 1], as positions of normal distributions along a curve.

    The parts of the curve are at most `std` long. For evenly spaced distributions, the sum then varies along the curve
    by one part in 10^8.
    """
    num = math.ceil(length / std)
    return (torch.arange(num, dtype=torch.float64) + 0.5) / num


def _check_extent(reach: float, std: float) -> None:
    if std <= 0 or reach < 0 or reach + 4 * std > 1:
        raise UserError(
            f"data.source.std: a density of std {std} around points up to {reach} from the centre is not within [-1, "
            "1]; choose std above 0, with that distance + 4 std at most 1"
        )
