"""Densities of the training times.

A density is defined by its quantile function t(u): if u is uniform on (0, 1), t(u) has the density. Times can therefore
be sampled independently for each image, or stratified over a batch by a lattice of u.

`pdf` is the density p(t) in the time of the schedule; on a chain of T steps it is T times the probability of a step.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from lit_gen.core.errors import UserError
from lit_gen.families.diffusion.schedules import DiscreteVP, Schedule


def independent(num: int, device: torch.device | str | None = None) -> Tensor:
    """Sample numbers (num,), uniform on the open interval (0, 1), float64, from torch's global random state."""
    return _open(torch.rand(num, dtype=torch.float64, device=device))


def lattice(offset: float, first: int, num: int, total: int, device: torch.device | str | None = None) -> Tensor:
    """Return u_i = (offset + i / total) mod 1 for i = first .. first + num - 1, (num,) float64.

    With an offset uniform on (0, 1), each u_i is uniform, and the `total` numbers leave no gap above 1 / total: the
    mean of a function of u over the batch varies less than with independent numbers.

    Paper: Kingma et al. 2021, https://arxiv.org/abs/2107.00630

    Args:
        offset: Random number of the whole batch.
        first: Position of the first image in the batch.
        num: Number of images from that position on.
        total: Number of images in the batch, over all processes.
        device: Device of the result.
    """
    place = torch.arange(first, first + num, dtype=torch.float64, device=device)
    return _open((offset + place / total) % 1)


def _open(u: Tensor) -> Tensor:
    return u.clamp(min=2.0**-54, max=1 - 2.0**-53)


def _log_ratio_slope(schedule: Schedule, t: Tensor) -> Tensor:
    """Return d ln(sigma / alpha) / dt."""
    alpha, sigma = schedule(t)
    d_alpha, d_sigma = schedule.derivatives(t)
    return d_sigma / sigma - d_alpha / alpha


def _normal_pdf(x: Tensor, mean: float, std: float) -> Tensor:
    return (-0.5 * ((x - mean) / std) ** 2).exp() / (std * math.sqrt(2 * math.pi))


def _check_std(std: float) -> None:
    if std <= 0:
        raise UserError(f"std: {std} is not a standard deviation; give a number above 0")


class TimeDensity(ABC):
    """Distribution of the training times."""

    @abstractmethod
    def quantile(self, schedule: Schedule, u: Tensor) -> Tensor:
        """Return the quantile at u in (0, 1), the time below which a fraction u of the training times lies.

        Args:
            schedule: Schedule of the times.
            u: Fractions, float64; the result has their shape and data type.
        """

    @abstractmethod
    def pdf(self, schedule: Schedule, t: Tensor) -> Tensor:
        """Return the density p(t), in the shape of t."""

    def __call__(self, schedule: Schedule, num: int, device: torch.device | str | None = None) -> Tensor:
        """Sample independent times of the schedule, (num,) float64, from torch's global random state."""
        return self.quantile(schedule, independent(num, device))


class UniformTime(TimeDensity):
    """t uniform between the times of the schedule's smallest and largest noise level (from 0 if min_ratio is 0)."""

    def _start(self, schedule: Schedule) -> float:
        return float(schedule.time(schedule.min_ratio))

    def quantile(self, schedule: Schedule, u: Tensor) -> Tensor:
        start = self._start(schedule)
        return start + (1 - start) * u

    def pdf(self, schedule: Schedule, t: Tensor) -> Tensor:
        return torch.full_like(t, 1 / (1 - self._start(schedule)))


class UniformSteps(TimeDensity):
    """t uniform on the steps k / T, k = 1 .. T, of a discrete chain.

    Paper: Ho et al. 2020, https://arxiv.org/abs/2006.11239
    """

    def quantile(self, schedule: Schedule, u: Tensor) -> Tensor:
        if not isinstance(schedule, DiscreteVP):
            raise UserError(
                f"model.density: UniformSteps needs the schedule DiscreteVP, not {type(schedule).__name__}; choose "
                "UniformTime"
            )
        return (u * schedule.num_timesteps).ceil() / schedule.num_timesteps

    def pdf(self, schedule: Schedule, t: Tensor) -> Tensor:
        return torch.ones_like(t)


class LognormalSigma(TimeDensity):
    """ln(sigma / alpha) ~ N(mean, std^2).

    Paper: Karras et al. 2022, https://arxiv.org/abs/2206.00364

    Args:
        mean: Mean of the logarithm of the noise level.
        std: Standard deviation of the logarithm of the noise level.

    Raises:
        UserError: If std is not above 0.
    """

    def __init__(self, mean: float = -1.2, std: float = 1.2) -> None:
        _check_std(std)
        self.mean = mean
        self.std = std

    def quantile(self, schedule: Schedule, u: Tensor) -> Tensor:
        return schedule.time((self.mean + self.std * torch.special.ndtri(u)).exp())

    def pdf(self, schedule: Schedule, t: Tensor) -> Tensor:
        return _normal_pdf(schedule.ratio(t).log(), self.mean, self.std) * _log_ratio_slope(schedule, t)


class UniformLogSigma(TimeDensity):
    """ln(sigma / alpha) uniform between the ends of the schedule, as for variance-exploding models.

    Paper: Song et al. 2021, https://arxiv.org/abs/2011.13456
    """

    def _ends(self, schedule: Schedule) -> tuple[float, float]:
        low, high = schedule.min_ratio, schedule.max_ratio
        if low <= 0 or not math.isfinite(high):
            raise UserError(
                f"model.density: UniformLogSigma needs a schedule with a smallest and a largest noise level, and "
                f"{type(schedule).__name__} ranges from {low} to {high}; choose UniformTime"
            )
        return low, high

    def quantile(self, schedule: Schedule, u: Tensor) -> Tensor:
        low, high = self._ends(schedule)
        return schedule.time(low * (high / low) ** u)

    def pdf(self, schedule: Schedule, t: Tensor) -> Tensor:
        low, high = self._ends(schedule)
        return _log_ratio_slope(schedule, t) / math.log(high / low)


class LogitNormal(TimeDensity):
    """ln(t / (1 - t)) ~ N(mean, std^2), which favours the middle of the straight path.

    Paper: Esser et al. 2024, https://arxiv.org/abs/2403.03206

    Args:
        mean: Mean of the logit; values above 0 favour noise.
        std: Standard deviation of the logit.

    Raises:
        UserError: If std is not above 0.
    """

    def __init__(self, mean: float = 0.0, std: float = 1.0) -> None:
        _check_std(std)
        self.mean = mean
        self.std = std

    def quantile(self, schedule: Schedule, u: Tensor) -> Tensor:
        t: Tensor = (self.mean + self.std * torch.special.ndtri(u)).sigmoid()
        return t

    def pdf(self, schedule: Schedule, t: Tensor) -> Tensor:
        return _normal_pdf(t.logit(), self.mean, self.std) / (t * (1 - t))


class FixedTime(TimeDensity):
    """A single time for all images: at t = 1, a rectified flow learns to map noise to data in one step (distillation).

    Paper: Liu et al. 2022, https://arxiv.org/abs/2209.03003

    Args:
        t: Training time.

    Raises:
        UserError: If t is not in (0, 1].
    """

    def __init__(self, t: float = 1.0) -> None:
        if not 0 < t <= 1:
            raise UserError(f"t: {t} is outside (0, 1]; give a time in that interval")
        self.t = t

    def quantile(self, schedule: Schedule, u: Tensor) -> Tensor:
        return torch.full_like(u, self.t)

    def pdf(self, schedule: Schedule, t: Tensor) -> Tensor:
        raise UserError(
            "model.density: FixedTime has all its mass at one time, and the weight ELBO divides by p(t); choose "
            "another density or weight"
        )


class ImportanceSampling(TimeDensity, nn.Module):
    r"""Steps of a chain with probabilities p_k ~ sqrt(E[L_k^2]) given by their losses L_k.

    The mean is over the most recent losses of each step, and p_k is mixed with a small share of the uniform
    distribution. The steps are uniform until every step has a full history. Dividing the losses by `pdf` = T p_k keeps
    their mean under uniform steps and minimises the variance.

    Paper: Nichol and Dhariwal 2021, https://arxiv.org/abs/2102.09672

    Args:
        num_timesteps: Length T of the chain.
        num_losses: Number of losses stored for each step.
        uniform: Weight of the uniform distribution.

    Attributes:
        losses: Recent losses (T, num_losses), saved with the weights; the oldest loss of a step is replaced first.
        counts: Number of losses recorded for each step, (T,).
    """

    losses: Tensor
    counts: Tensor

    def __init__(self, num_timesteps: int, num_losses: int = 10, uniform: float = 1e-3) -> None:
        super().__init__()
        self.num_timesteps = num_timesteps
        self.num_losses = num_losses
        self.uniform = uniform
        self.register_buffer("losses", torch.zeros(num_timesteps, num_losses, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(num_timesteps, dtype=torch.int64))

    @property
    def probabilities(self) -> Tensor:
        """Probabilities p_k for k = 1 .. T, (T,) float64."""
        share = self.losses.square().mean(1).sqrt()
        share = share / share.sum().clamp(min=torch.finfo(share.dtype).tiny)
        share = (1 - self.uniform) * share + self.uniform / self.num_timesteps
        warm = (self.counts >= self.num_losses).all() & (share > 0).all()
        return torch.where(warm, share, torch.full_like(share, 1 / self.num_timesteps))

    def quantile(self, schedule: Schedule, u: Tensor) -> Tensor:
        below = self.probabilities.cumsum(0)
        return (torch.searchsorted(below, u.to(below.device) * below[-1]) + 1) / self.num_timesteps

    def pdf(self, schedule: Schedule, t: Tensor) -> Tensor:
        return self.num_timesteps * self.probabilities[self._step(t)]

    def update(self, t: Tensor, loss: Tensor) -> None:
        """Record losses (N,) at times t (N,); among equal times, later positions are more recent."""
        step, order = self._step(t).sort(stable=True)
        loss = loss.detach().to(self.losses)[order]
        new = torch.bincount(step, minlength=self.num_timesteps)
        nth = torch.arange(len(step), device=step.device) - (new.cumsum(0) - new)[step]
        kept = nth >= new[step] - self.num_losses
        place = (self.counts[step] + nth) % self.num_losses
        self.losses[step[kept], place[kept]] = loss[kept]
        self.counts += new

    def _step(self, t: Tensor) -> Tensor:
        """Return the row k - 1 of t = k / T."""
        return (t.to(self.losses) * self.num_timesteps).round().long() - 1
