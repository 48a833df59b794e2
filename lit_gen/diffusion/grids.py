"""Time grids: the decreasing times that a sampler visits, from noise to t = 0.

A grid is evaluated on the schedule of the model, so that on one model all samplers visit the same noise levels. Grids
in sigma stay within the levels that the model was trained on.

Papers: Song et al. 2020, https://arxiv.org/abs/2010.02502 (quadratic); Karras et al. 2022,
https://arxiv.org/abs/2206.00364
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from lit_gen.diffusion.schedules import Schedule
from lit_gen.errors import UserError


class Grid(ABC):
    """A rule that places the steps of a sampler."""

    @abstractmethod
    def __call__(self, schedule: Schedule, steps: int) -> Tensor:
        """The times (steps + 1,) of the schedule, float64, strictly decreasing; the last is exactly 0."""


class Uniform(Grid):
    """Equal steps in the time of the schedule, from t = 1."""

    def __call__(self, schedule: Schedule, steps: int) -> Tensor:
        return torch.linspace(1, 0, steps + 1, dtype=torch.float64)


class Quadratic(Grid):
    """t = start u^2 with equal steps in u: finer near the data.

    Args:
        start: the first time. DDIM's code begins its quadratic sub-sequence at 0.8.
    """

    def __init__(self, start: float = 1.0) -> None:
        if not 0 < start <= 1:
            raise UserError(f"start of the grid must lie in (0, 1], not {start}")
        self.start = start

    def __call__(self, schedule: Schedule, steps: int) -> Tensor:
        return self.start * torch.linspace(1, 0, steps + 1, dtype=torch.float64) ** 2


class _SigmaGrid(Grid):
    """Noise levels sigma / alpha from sigma_max to sigma_min, both visited, and then 0."""

    def __init__(self, sigma_min: float, sigma_max: float) -> None:
        if not 0 < sigma_min < sigma_max < math.inf:
            raise UserError(f"the grid needs 0 < sigma_min < sigma_max, not {sigma_min} and {sigma_max}")
        self.sigma_min = sigma_min
        self.sigma_max = sigma_max

    def __call__(self, schedule: Schedule, steps: int) -> Tensor:
        low, high = max(self.sigma_min, schedule.min_ratio), min(self.sigma_max, schedule.max_ratio)
        if low >= high:
            raise UserError(
                f"the grid's noise levels [{self.sigma_min}, {self.sigma_max}] lie outside the model's"
                f" [{schedule.min_ratio:.4g}, {schedule.max_ratio:.4g}]"
            )
        fraction = torch.linspace(0, 1, steps, dtype=torch.float64)
        return torch.cat([schedule.time(self.levels(fraction, low, high)), fraction.new_zeros(1)])

    @abstractmethod
    def levels(self, fraction: Tensor, low: float, high: float) -> Tensor:
        """The noise levels at the given fractions of the way from high to low."""


class Karras(_SigmaGrid):
    """EDM's grid: equal steps in sigma^(1 / rho).

    Args:
        rho: the greater, the more steps near the data. 1 is uniform in sigma, infinity in log sigma.
        sigma_min: the least noise level before 0; raised to the least that the model was trained on.
        sigma_max: the greatest noise level; lowered to the greatest that the model was trained on.
    """

    def __init__(self, rho: float = 7.0, sigma_min: float = 0.002, sigma_max: float = 80.0) -> None:
        super().__init__(sigma_min, sigma_max)
        if rho <= 0:
            raise UserError(f"rho of the grid must be above 0, not {rho}")
        self.rho = rho

    def levels(self, fraction: Tensor, low: float, high: float) -> Tensor:
        start, end = high ** (1 / self.rho), low ** (1 / self.rho)
        return (start + fraction * (end - start)) ** self.rho


class UniformLogSNR(_SigmaGrid):
    """Equal steps in log SNR = -2 log(sigma / alpha), that is in log sigma.

    Args:
        sigma_min: the least noise level before 0; raised to the least that the model was trained on.
        sigma_max: the greatest noise level; lowered to the greatest that the model was trained on.
    """

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0) -> None:
        super().__init__(sigma_min, sigma_max)

    def levels(self, fraction: Tensor, low: float, high: float) -> Tensor:
        return high * (low / high) ** fraction
