"""Time grids: the decreasing times that a sampler visits, from noise to t = 0.

A grid is evaluated on the schedule of the sampler, by default that of the model. `Karras`, `UniformLogSNR` and
`TimeShift` stay within the noise levels of training and give the same levels on every schedule that contains them.
`Uniform` and `Quadratic` follow the time of the schedule.

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
    """Rule for the times of a sampler's steps."""

    @abstractmethod
    def __call__(self, schedule: Schedule, steps: int) -> Tensor:
        """Return the times (steps + 1,) of the schedule, float64, strictly decreasing to exactly 0.

        Args:
            schedule: Schedule of the times; its min_ratio and max_ratio are the limits of the model's training.
            steps: Number of steps.
        """

    def before_search(self) -> "Grid":
        """Return the grid for a rehearsal without a network: this one, unless it has to be searched with one."""
        return self


class Uniform(Grid):
    """Equal steps in the time of the schedule, from t = 1."""

    def __call__(self, schedule: Schedule, steps: int) -> Tensor:
        return torch.linspace(1, 0, steps + 1, dtype=torch.float64)


class Quadratic(Grid):
    """t = start u^2 with equal steps in u: finer near the data.

    Args:
        start: First time. DDIM's code starts its quadratic sub-sequence at 0.8.

    Raises:
        UserError: If start is not in (0, 1].
    """

    def __init__(self, start: float = 1.0) -> None:
        if not 0 < start <= 1:
            raise UserError(f"start: {start} is outside (0, 1]; give a time in that interval")
        self.start = start

    def __call__(self, schedule: Schedule, steps: int) -> Tensor:
        return self.start * torch.linspace(1, 0, steps + 1, dtype=torch.float64) ** 2


class _SigmaGrid(Grid):
    """Noise levels sigma / alpha from sigma_max to sigma_min, both included, and then 0."""

    def __init__(self, sigma_min: float, sigma_max: float) -> None:
        if not 0 < sigma_min < sigma_max < math.inf:
            raise UserError(
                f"sigma_min: {sigma_min} to sigma_max {sigma_max} is not a range of noise levels; give finite "
                "numbers with 0 < sigma_min < sigma_max"
            )
        self.sigma_min = sigma_min
        self.sigma_max = sigma_max

    def __call__(self, schedule: Schedule, steps: int) -> Tensor:
        low, high = max(self.sigma_min, schedule.min_ratio), min(self.sigma_max, schedule.max_ratio)
        if low >= high:
            raise UserError(
                f"sigma_min: the levels {self.sigma_min} to {self.sigma_max} of {type(self).__name__} are outside the "
                f"model's {schedule.min_ratio:.4g} to {schedule.max_ratio:.4g}; choose sigma_min and sigma_max inside"
            )
        fraction = torch.linspace(0, 1, steps, dtype=torch.float64)
        return torch.cat([schedule.time(self.levels(fraction, low, high)), fraction.new_zeros(1)])

    @abstractmethod
    def levels(self, fraction: Tensor, low: float, high: float) -> Tensor:
        """Return the noise levels at the given fractions of the way from high to low."""


class Karras(_SigmaGrid):
    """EDM's grid: equal steps in sigma^(1 / rho).

    Args:
        rho: Exponent; larger values place more steps near the data. The grid is uniform in sigma at rho = 1, and in
            log sigma as rho goes to infinity.
        sigma_min: Smallest noise level before 0; at least the smallest noise level of training.
        sigma_max: Largest noise level; at most the largest noise level of training.

    Raises:
        UserError: If rho is not above 0, or not 0 < sigma_min < sigma_max.
    """

    def __init__(self, rho: float = 7.0, sigma_min: float = 0.002, sigma_max: float = 80.0) -> None:
        super().__init__(sigma_min, sigma_max)
        if rho <= 0:
            raise UserError(f"rho: {rho} is not a positive exponent; give a number above 0")
        self.rho = rho

    def levels(self, fraction: Tensor, low: float, high: float) -> Tensor:
        start, end = high ** (1 / self.rho), low ** (1 / self.rho)
        sigma: Tensor = (start + fraction * (end - start)) ** self.rho
        return sigma


class UniformLogSNR(_SigmaGrid):
    """Equal steps in log SNR = -2 log(sigma / alpha), that is in log sigma.

    Args:
        sigma_min: Smallest noise level before 0; at least the smallest noise level of training.
        sigma_max: Largest noise level; at most the largest noise level of training.

    Raises:
        UserError: If not 0 < sigma_min < sigma_max.
    """

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0) -> None:
        super().__init__(sigma_min, sigma_max)

    def levels(self, fraction: Tensor, low: float, high: float) -> Tensor:
        return high * (low / high) ** fraction


class TimeShift(Grid):
    r"""Equal steps in the time u of the straight path, shifted towards noise.

        u' = shift u / (1 + (shift - 1) u),    u = sigma / (alpha + sigma),

    which multiplies every noise level sigma / alpha by `shift`. The times run from the largest noise level of training,
    u' = 1 on the straight path itself, to 0. The more pixels an image has, the more noise it takes to hide it, so
    larger images need a larger shift.

    Paper: Esser et al. 2024, https://arxiv.org/abs/2403.03206

    Args:
        shift: Factor of the noise levels; values above 1 place more steps near noise, and 1 is uniform in u.

    Raises:
        UserError: If shift is not above 0.
    """

    def __init__(self, shift: float = 3.0) -> None:
        if not 0 < shift < math.inf:
            raise UserError(f"shift: {shift} is not a positive factor; give a finite number above 0")
        self.shift = shift

    def __call__(self, schedule: Schedule, steps: int) -> Tensor:
        start = 1 / (1 + self.shift / schedule.max_ratio)  # the u that the shift maps to max_ratio
        u = torch.linspace(start, 0, steps + 1, dtype=torch.float64)
        return schedule.time(self.shift * u / (1 - u))
