"""What training minimises: a density of noise levels and a mean squared error.

    loss = E mean over pixels of |F(c_in x_t, c_noise, labels) - F*|^2,    x_t = alpha(t) x_0 + sigma(t) eps,

over t, x_0 and eps, with F* the target of the parameterization. In terms of the denoiser this is |D - x_0|^2 / c_out^2:
the parameterization sets the weight of each noise level, and the density of t how often it is seen.

These draw from the global random state of torch, which training seeds before every batch.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from lit_gen.diffusion.denoisers import NetworkDenoiser, per_image
from lit_gen.diffusion.schedules import DiscreteVP, Schedule
from lit_gen.errors import UserError


class TimeDensity(ABC):
    """The distribution of training times."""

    @abstractmethod
    def __call__(self, schedule: Schedule, num: int, device: torch.device | str | None = None) -> Tensor:
        """Draws times of the schedule, (num,) float64."""


class UniformTime(TimeDensity):
    """t uniform on (0, 1]."""

    def __call__(self, schedule: Schedule, num: int, device: torch.device | str | None = None) -> Tensor:
        return 1 - torch.rand(num, dtype=torch.float64, device=device)


class UniformSteps(TimeDensity):
    """t uniform on the steps k / T, k = 1 .. T, of a discrete chain.

    Paper: Ho et al. 2020, https://arxiv.org/abs/2006.11239
    """

    def __call__(self, schedule: Schedule, num: int, device: torch.device | str | None = None) -> Tensor:
        if not isinstance(schedule, DiscreteVP):
            raise UserError(
                f"density UniformSteps needs the schedule DiscreteVP, not {type(schedule).__name__}: use UniformTime"
            )
        return torch.randint(1, schedule.num_timesteps + 1, (num,), device=device).double() / schedule.num_timesteps


class LognormalSigma(TimeDensity):
    """ln(sigma / alpha) ~ N(mean, std^2).

    Paper: Karras et al. 2022, https://arxiv.org/abs/2206.00364

    Args:
        mean: of the logarithm of the noise level.
        std: of the logarithm of the noise level.
    """

    def __init__(self, mean: float = -1.2, std: float = 1.2) -> None:
        self.mean = mean
        self.std = std

    def __call__(self, schedule: Schedule, num: int, device: torch.device | str | None = None) -> Tensor:
        return schedule.time((self.mean + self.std * torch.randn(num, dtype=torch.float64, device=device)).exp())


class LogitNormal(TimeDensity):
    """ln(t / (1 - t)) ~ N(mean, std^2), which favours the middle of the straight path.

    Paper: Esser et al. 2024, https://arxiv.org/abs/2403.03206

    Args:
        mean: of the logit; above 0 leans towards noise.
        std: of the logit.
    """

    def __init__(self, mean: float = 0.0, std: float = 1.0) -> None:
        self.mean = mean
        self.std = std

    def __call__(self, schedule: Schedule, num: int, device: torch.device | str | None = None) -> Tensor:
        return (self.mean + self.std * torch.randn(num, dtype=torch.float64, device=device)).sigmoid()


def diffusion_loss(
    denoiser: NetworkDenoiser, density: TimeDensity, images: Tensor, labels: Tensor | None = None
) -> Tensor:
    """The loss of each image, (N,): mean over its pixels of |F - F*|^2 at one random time and one random eps.

    Args:
        denoiser: the network with its schedule and parameterization.
        density: of the training times.
        images: x_0, (N, ...).
        labels: classes (N,) for a conditional network.
    """
    schedule, parameterization = denoiser.schedule, denoiser.parameterization
    t = density(schedule, len(images), images.device)
    alpha, sigma = schedule(t)
    eps = torch.randn_like(images)
    x_t = per_image(alpha, images) * images + per_image(sigma, images) * eps
    c_in, _, _ = parameterization.coefficients(alpha, sigma)
    c_noise = parameterization.c_noise(t, alpha, sigma).to(images.dtype)
    output = denoiser.network(per_image(c_in, x_t) * x_t, c_noise, labels)
    target = parameterization.target(images, eps, alpha, sigma)
    return (output.to(target.dtype) - target).square().flatten(1).mean(1)
