r"""Schedules: the affine path from data to noise.

    x_t = alpha(t) x_0 + sigma(t) eps,    eps ~ N(0, I),    t = 0 is data and t = 1 is noise, for every schedule.

The posterior of x_0 depends on the noise only through the ratio sigma / alpha (its square is 1 / SNR): at equal ratio,
two schedules differ by a scale of x. `ratio` and its inverse `time` therefore convert times between schedules.

All values are computed in float64. Times may be numbers or tensors of any shape; results have their shape and device.
"""

import math
from abc import ABC, abstractmethod
from copy import copy
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from lit_gen.core.errors import UserError


def _double(value: Tensor | float) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64)


class Schedule(ABC):
    """Functions alpha(t) and sigma(t).

    Attributes:
        min_ratio: Smallest sigma / alpha of training (0 if there is no limit).
        max_ratio: Largest sigma / alpha of training (may be infinite), the ratio at t = 1.
    """

    min_ratio: float
    max_ratio: float

    @abstractmethod
    def __call__(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """Return (alpha(t), sigma(t))."""

    @abstractmethod
    def derivatives(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """Return (d alpha / dt, d sigma / dt); at a kink, the derivatives on the side of the data."""

    @abstractmethod
    def time(self, ratio: Tensor | float) -> Tensor:
        """Return the t at which sigma / alpha = ratio."""

    def ratio(self, t: Tensor | float) -> Tensor:
        """Return sigma(t) / alpha(t), the noise level in units of the data."""
        alpha, sigma = self(t)
        return sigma / alpha

    def with_levels_of(self, other: "Schedule") -> "Schedule":
        """Return this schedule with the training noise levels of another, to sample a model of the other schedule."""
        path = copy(self)
        path.min_ratio, path.max_ratio = other.min_ratio, min(other.max_ratio, self.max_ratio)
        return path

    def sde(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """Return (f(t), g(t)^2) of the SDE dx = f x dt + g dw with the marginals of the path.

        f = (d alpha / dt) / alpha and g^2 = d sigma^2 / dt - 2 f sigma^2; at alpha = 0, f = -inf and g^2 = inf.

        Paper: Song et al. 2021, https://arxiv.org/abs/2011.13456
        """
        alpha, sigma = self(t)
        d_alpha, d_sigma = self.derivatives(t)
        f = d_alpha / alpha
        return f, 2 * sigma * d_sigma - 2 * f * sigma**2


@lru_cache(maxsize=4096)
def level_at(schedule: Schedule, t: float) -> tuple[Tensor, Tensor]:
    """Return (alpha(t), sigma(t)), 0-d, remembered: a sampler asks for the same times several times in every batch."""
    return schedule(t)


@lru_cache(maxsize=4096)
def log_snr(schedule: Schedule, t: float) -> float:
    """Return lambda = log(alpha / sigma), half the logarithm of the signal-to-noise ratio; infinite at both ends."""
    return -float(schedule.ratio(t).log())


class VariancePreserving(Schedule):
    """alpha^2 + sigma^2 = 1: the path of dx = -beta(t) x / 2 dt + sqrt(beta(t)) dw.

    alpha^2 = exp(-decay) with decay(t) = int_0^t beta; a subclass gives the decay.

    Paper: Song et al. 2021, https://arxiv.org/abs/2011.13456
    """

    @abstractmethod
    def decay(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """Return (int_0^t beta, beta(t))."""

    @abstractmethod
    def decay_time(self, decay: Tensor) -> Tensor:
        """Return the t of a decay; 1 for any decay beyond that of t = 1."""

    def __call__(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        decay, _ = self.decay(t)
        return (-decay / 2).exp(), (-torch.expm1(-decay)).clamp(min=0).sqrt()

    def derivatives(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        _, beta = self.decay(t)
        alpha, sigma = self(t)
        return -beta / 2 * alpha, beta * alpha**2 / (2 * sigma)

    def time(self, ratio: Tensor | float) -> Tensor:
        return self.decay_time(torch.log1p(_double(ratio) ** 2))

    def sde(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        _, beta = self.decay(t)
        return -beta / 2, beta


class DiscreteVP(VariancePreserving):
    r"""DDPM's variance-preserving chain in continuous time.

    At the knots t = k / T, alpha^2 = alpha_bar_k = prod_{j <= k} (1 - beta_j), with alpha_bar_0 = 1. Between them
    -log alpha_bar is linear in t: the chain becomes a variance-preserving diffusion with piecewise constant rate.

    - linear: beta from 1e-4 to 0.02 at T = 1000; scaled by 1000 / T for other lengths, so that all end alike.
    - cosine: alpha_bar = cos^2((t + 0.008) / 1.008 pi / 2).

    Both are clipped to beta <= 0.999.

    Papers: Ho et al. 2020, https://arxiv.org/abs/2006.11239; Nichol and Dhariwal 2021, https://arxiv.org/abs/2102.09672

    Args:
        betas: Sequence of variances.
        num_timesteps: Length T of the chain.

    Raises:
        UserError: If num_timesteps is below 2, or betas is not one of the sequences.
    """

    def __init__(self, betas: Literal["linear", "cosine"] = "linear", num_timesteps: int = 1000) -> None:
        if num_timesteps < 2:
            raise UserError(f"num_timesteps: {num_timesteps} is too short for a chain; give 2 or more")
        self.betas = betas
        self.num_timesteps = num_timesteps
        if betas == "linear":
            beta = torch.linspace(1e-4, 0.02, num_timesteps, dtype=torch.float64) * (1000 / num_timesteps)
        elif betas == "cosine":
            t = torch.linspace(0, 1, num_timesteps + 1, dtype=torch.float64)
            alpha_bar = ((t + 0.008) / 1.008 * (math.pi / 2)).cos() ** 2
            beta = 1 - alpha_bar[1:] / alpha_bar[:-1]
        else:
            raise UserError(f"betas: {betas!r} is not a sequence of variances; choose linear or cosine")
        # decay = -log alpha_bar at the knots
        self._decay = torch.cat([torch.zeros(1, dtype=torch.float64), -torch.log1p(-beta.clamp(max=0.999)).cumsum(0)])
        self.min_ratio, self.max_ratio = float(self.ratio(1 / num_timesteps)), float(self.ratio(1.0))

    def decay(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        k = _double(t) * self.num_timesteps
        decay = self._decay.to(k.device)
        right = (k - 1e-9).ceil().clamp(1, self.num_timesteps).long()
        step = decay[right] - decay[right - 1]
        return decay[right] + (k - right) * step, step * self.num_timesteps

    def decay_time(self, decay: Tensor) -> Tensor:
        knots = self._decay.to(decay.device)
        right = torch.searchsorted(knots, decay).clamp(1, self.num_timesteps)
        k = right - (knots[right] - decay) / (knots[right] - knots[right - 1])
        return (k / self.num_timesteps).clamp(max=1)


class LinearVP(VariancePreserving):
    """Variance-preserving SDE with beta(t) = beta_min + (beta_max - beta_min) t, the limit of DDPM's linear betas.

    Paper: Song et al. 2021, https://arxiv.org/abs/2011.13456

    Args:
        beta_min: Rate at t = 0.
        beta_max: Rate at t = 1.
        min_time: Smallest time of training.

    Raises:
        UserError: If not 0 < beta_min <= beta_max, or not 0 < min_time < 1.
    """

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0, min_time: float = 1e-5) -> None:
        if not 0 < beta_min <= beta_max < math.inf:
            raise UserError(
                f"beta_min: {beta_min} to beta_max {beta_max} is not a range of rates; give finite numbers with "
                "0 < beta_min <= beta_max"
            )
        if not 0 < min_time < 1:
            raise UserError(f"min_time: {min_time} is outside (0, 1); give a time in that interval")
        self.beta_min = beta_min
        self.beta_max = beta_max
        self.min_time = min_time
        self.min_ratio, self.max_ratio = float(self.ratio(min_time)), float(self.ratio(1.0))

    def decay(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        t, slope = _double(t), self.beta_max - self.beta_min
        return t * (self.beta_min + slope / 2 * t), self.beta_min + slope * t

    def decay_time(self, decay: Tensor) -> Tensor:
        decay = decay.clamp(max=(self.beta_min + self.beta_max) / 2)
        # Root of the quadratic in the form without cancellation near 0.
        return 2 * decay / (self.beta_min + (self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * decay).sqrt())


class SubVP(Schedule):
    """Sub-variance-preserving SDE: alpha as in `LinearVP` and sigma = 1 - alpha^2, so alpha^2 + sigma^2 <= 1.

    Paper: Song et al. 2021, https://arxiv.org/abs/2011.13456

    Args:
        beta_min: Rate at t = 0.
        beta_max: Rate at t = 1.
        min_time: Smallest time of training.

    Raises:
        UserError: If not 0 < beta_min <= beta_max, or not 0 < min_time < 1.
    """

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0, min_time: float = 1e-5) -> None:
        self.beta_min = beta_min
        self.beta_max = beta_max
        self.min_time = min_time
        self._vp = LinearVP(beta_min, beta_max, min_time)
        self.min_ratio, self.max_ratio = float(self.ratio(min_time)), float(self.ratio(1.0))

    def __call__(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        decay, _ = self._vp.decay(t)
        return (-decay / 2).exp(), -torch.expm1(-decay)

    def derivatives(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        decay, beta = self._vp.decay(t)
        return -beta / 2 * (-decay / 2).exp(), beta * (-decay).exp()

    def time(self, ratio: Tensor | float) -> Tensor:
        # sigma / alpha = exp(decay / 2) - exp(-decay / 2)
        return self._vp.decay_time(2 * torch.asinh(_double(ratio) / 2))


class VE(Schedule):
    r"""Variance-exploding SDE: alpha = 1 and sigma^2 = sigma_min^2 ((sigma_max / sigma_min)^(2 t) - 1).

    This is the exact variance of the paper's SDE dx = g dw started at the data. The paper's sigma omits the -1, which
    leaves noise of size sigma_min at t = 0; here t = 0 is data, as on every schedule. The same model serves both,
    because it is conditioned on sigma: only the sigma of a given t differs, visibly only near sigma_min.

    Paper: Song et al. 2021, https://arxiv.org/abs/2011.13456

    Args:
        sigma_min: Smallest noise level of training.
        sigma_max: Scale of the largest noise level, which is sqrt(sigma_max^2 - sigma_min^2) at t = 1.

    Raises:
        UserError: If not 0 < sigma_min < sigma_max / sqrt(2).
    """

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50.0) -> None:
        if not 0 < math.sqrt(2) * sigma_min < sigma_max < math.inf:
            raise UserError(
                f"sigma_min: {sigma_min} to sigma_max {sigma_max} is not a range of noise levels; give finite numbers "
                "with 0 < sigma_min < sigma_max / sqrt(2)"
            )
        self.sigma_min = self.min_ratio = sigma_min
        self.sigma_max = sigma_max
        self._rate = 2 * math.log(sigma_max / sigma_min)  # d log(sigma^2 + sigma_min^2) / dt
        self.max_ratio = float(self.ratio(1.0))

    def __call__(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        t = _double(t)
        return torch.ones_like(t), self.sigma_min * torch.expm1(self._rate * t).sqrt()

    def derivatives(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        alpha, sigma = self(t)
        _, g_squared = self.sde(t)
        return torch.zeros_like(alpha), g_squared / (2 * sigma)

    def time(self, ratio: Tensor | float) -> Tensor:
        return torch.log1p((_double(ratio) / self.sigma_min) ** 2) / self._rate

    def sde(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        t = _double(t)
        return torch.zeros_like(t), self._rate * self.sigma_min**2 * (self._rate * t).exp()


class EDMSchedule(Schedule):
    """EDM's variance-exploding path: alpha = 1 and sigma = sigma_max t.

    Paper: Karras et al. 2022, https://arxiv.org/abs/2206.00364

    Args:
        sigma_min: Smallest noise level that samplers visit before 0.
        sigma_max: Noise level at t = 1.

    Raises:
        UserError: If not 0 < sigma_min < sigma_max.
    """

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0) -> None:
        if not 0 < sigma_min < sigma_max:
            raise UserError(
                f"sigma_min: {sigma_min} to sigma_max {sigma_max} is not a range of noise levels; give finite numbers "
                "with 0 < sigma_min < sigma_max"
            )
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
    """Straight path of rectified flow and flow matching: alpha = 1 - t and sigma = t.

    Papers: Liu et al. 2022, https://arxiv.org/abs/2209.03003; Lipman et al. 2022, https://arxiv.org/abs/2210.02747
    (both with time reversed).
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


class Cosine(Schedule):
    """Quarter circle alpha = cos(pi t / 2) and sigma = sin(pi t / 2): variance-preserving at constant speed.

    Papers: Albergo and Vanden-Eijnden 2022, https://arxiv.org/abs/2209.15571 (trigonometric interpolant); Nichol and
    Dhariwal 2021, https://arxiv.org/abs/2102.09672 (here without their offset and discrete steps)
    """

    min_ratio = 0.0
    max_ratio = math.inf

    def __call__(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        t = _double(t)
        return (math.pi / 2 * (1 - t)).sin(), (math.pi / 2 * t).sin()  # alpha as a sine is exactly 0 at t = 1

    def derivatives(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        alpha, sigma = self(t)
        return -math.pi / 2 * sigma, math.pi / 2 * alpha

    def time(self, ratio: Tensor | float) -> Tensor:
        return _double(ratio).atan() / (math.pi / 2)
