"""Time grids: the decreasing times that a sampler visits, from noise to t = 0.

A grid is laid on the schedule of the sampler, which is that of the model unless the sampler is given another. `Karras`,
`UniformLogSNR` and `TimeShift` keep to the noise levels that the model was trained on, and are the same levels on every
schedule that reaches them; `Uniform` and `Quadratic` follow the time of the schedule.

Papers: Song et al. 2020, https://arxiv.org/abs/2010.02502 (quadratic); Karras et al. 2022,
https://arxiv.org/abs/2206.00364; Esser et al. 2024, https://arxiv.org/abs/2403.03206 (time shift)
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.families.diffusion.schedules import Schedule


class Grid(ABC):
    """A rule that places the steps of a sampler."""

    @abstractmethod
    def __call__(self, schedule: Schedule, steps: int) -> Tensor:
        """The times (steps + 1,) of the schedule, float64, strictly decreasing; the last is exactly 0.

        Args:
            schedule: whose times; its min_ratio and max_ratio are the limits of the model's training.
            steps: how many.
        """


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


class TimeShift(Grid):
    r"""Equal steps in a time u of the straight path that is then shifted towards noise.

        u' = shift u / (1 + (shift - 1) u),    u = sigma / (alpha + sigma),

    which multiplies every noise level sigma / alpha by `shift`. From the greatest level of training, u' = 1 on the
    straight path itself, to 0. The more pixels an image has, the more noise hides it, hence the larger the shift.

    Paper: Esser et al. 2024, https://arxiv.org/abs/2403.03206

    Args:
        shift: above 1 for more steps near noise; 1 is uniform in u.

    Raises:
        UserError: shift is not above 0.
    """

    def __init__(self, shift: float = 3.0) -> None:
        if not 0 < shift < math.inf:
            raise UserError(f"shift of the grid must be above 0, not {shift}")
        self.shift = shift

    def __call__(self, schedule: Schedule, steps: int) -> Tensor:
        start = 1 / (1 + self.shift / schedule.max_ratio)  # the u that the shift moves to max_ratio
        u = torch.linspace(start, 0, steps + 1, dtype=torch.float64)
        return schedule.time(self.shift * u / (1 - u))
