r"""Schedules: the affine path from data to noise.

    x_t = alpha(t) x_0 + sigma(t) eps,    eps ~ N(0, I),    t = 0 is data and t = 1 is noise, for every schedule.

What a denoiser can know of the noise depends on the ratio sigma / alpha alone (its square is 1 / SNR): two schedules at
equal ratio differ by a scale of x. So `ratio` and its inverse `time` carry a time of one schedule to that of another.

All is computed in float64; times may be numbers or tensors of any shape, and the answer has their shape and device.
"""

import math
from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor

from lit_gen.errors import UserError


def _double(value: Tensor | float) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64)


class Schedule(ABC):
    """The functions alpha(t) and sigma(t).

    Attributes:
        min_ratio: the least sigma / alpha that a model is trained on (0 where there is no such limit).
        max_ratio: the greatest (may be infinite).
    """

    min_ratio: float
    max_ratio: float

    @abstractmethod
    def __call__(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """The pair (alpha(t), sigma(t))."""

    @abstractmethod
    def derivatives(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """The pair (d alpha / dt, d sigma / dt); on a kink, those of the side of the data."""

    @abstractmethod
    def time(self, ratio: Tensor | float) -> Tensor:
        """The t at which sigma / alpha = ratio."""

    def ratio(self, t: Tensor | float) -> Tensor:
        """sigma(t) / alpha(t): the noise level in units of the data."""
        alpha, sigma = self(t)
        return sigma / alpha


class DiscreteVP(Schedule):
    r"""The variance-preserving chain of DDPM, alpha^2 + sigma^2 = 1, made continuous.

    At the knots t = k / T, alpha^2 = alpha_bar_k = prod_{j <= k} (1 - beta_j), with alpha_bar_0 = 1; between them
    -log alpha_bar is linear in t: the chain becomes a variance-preserving diffusion with piecewise constant rate.

    - linear: beta from 1e-4 to 0.02 at T = 1000; scaled by 1000 / T for other lengths, which end alike.
    - cosine: alpha_bar = cos^2((t + 0.008) / 1.008 pi / 2).

    Both are clipped to beta <= 0.999.

    Papers: Ho et al. 2020, https://arxiv.org/abs/2006.11239; Nichol and Dhariwal 2021, https://arxiv.org/abs/2102.09672

    Args:
        betas: which sequence of variances.
        num_timesteps: the length T of the chain.

    Raises:
        UserError: num_timesteps below 2.
    """

    def __init__(self, betas: Literal["linear", "cosine"] = "linear", num_timesteps: int = 1000) -> None:
        if num_timesteps < 2:
            raise UserError(f"num_timesteps must be at least 2, not {num_timesteps}")
        self.betas = betas
        self.num_timesteps = num_timesteps
        if betas == "linear":
            beta = torch.linspace(1e-4, 0.02, num_timesteps, dtype=torch.float64) * (1000 / num_timesteps)
        elif betas == "cosine":
            t = torch.linspace(0, 1, num_timesteps + 1, dtype=torch.float64)
            alpha_bar = ((t + 0.008) / 1.008 * (math.pi / 2)).cos() ** 2
            beta = 1 - alpha_bar[1:] / alpha_bar[:-1]
        else:
            raise UserError(f"betas must be linear or cosine, not {betas!r}")
        # decay = -log alpha_bar, at the knots.
        self._decay = torch.cat([torch.zeros(1, dtype=torch.float64), -torch.log1p(-beta.clamp(max=0.999)).cumsum(0)])
        self.min_ratio, self.max_ratio = float(self.ratio(1 / num_timesteps)), float(self.ratio(1.0))

    def _at(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """-log alpha_bar(t) and its slope."""
        k = _double(t) * self.num_timesteps
        decay = self._decay.to(k.device)
        right = (k - 1e-9).ceil().clamp(1, self.num_timesteps).long()
        step = decay[right] - decay[right - 1]
        return decay[right] + (k - right) * step, step * self.num_timesteps

    def __call__(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        decay, _ = self._at(t)
        return (-decay / 2).exp(), (-torch.expm1(-decay)).clamp(min=0).sqrt()

    def derivatives(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        decay, slope = self._at(t)
        alpha, sigma = self(t)
        return -slope / 2 * alpha, slope * (-decay).exp() / (2 * sigma)

    def time(self, ratio: Tensor | float) -> Tensor:
        target = torch.log1p(_double(ratio) ** 2)
        decay = self._decay.to(target.device)
        right = torch.searchsorted(decay, target).clamp(1, self.num_timesteps)
        k = right - (decay[right] - target) / (decay[right] - decay[right - 1])
        return (k / self.num_timesteps).clamp(max=1)


class EDMSchedule(Schedule):
    """The variance-exploding path of EDM: alpha = 1 and sigma = sigma_max t.

    Paper: Karras et al. 2022, https://arxiv.org/abs/2206.00364

    Args:
        sigma_min: the least noise level that samplers visit before 0.
        sigma_max: the noise level at t = 1.
    """

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0) -> None:
        if not 0 < sigma_min < sigma_max:
            raise UserError(f"the schedule needs 0 < sigma_min < sigma_max, not {sigma_min} and {sigma_max}")
        self.sigma_min = self.min_ratio = sigma_min
        self.sigma_max = self.max_ratio = sigma_max

    def __call__(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        t = _double(t)
        return torch.ones_like(t), self.sigma_max * t

    def derivatives(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        t = _double(t)
        return torch.zeros_like(t), torch.full_like(t, self.sigma_max)

    def time(self, ratio: Tensor | float) -> Tensor:
        return _double(ratio) / self.sigma_max


class Rectified(Schedule):
    """The straight path of rectified flow and flow matching: alpha = 1 - t and sigma = t.

    Papers: Liu et al. 2022, https://arxiv.org/abs/2209.03003; Lipman et al. 2022, https://arxiv.org/abs/2210.02747
    (both with time running the other way).
    """

    min_ratio = 0.0
    max_ratio = math.inf

    def __call__(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        t = _double(t)
        return 1 - t, t

    def derivatives(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        t = _double(t)
        return -torch.ones_like(t), torch.ones_like(t)

    def time(self, ratio: Tensor | float) -> Tensor:
        return 1 / (1 + 1 / _double(ratio))  # finite at both 0 and infinity
