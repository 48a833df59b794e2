"""Diffusion and flow matching: one module, and a few lines of objective for each model.

All of them learn one function, E[x_0 | x_t] under x_t = alpha(t) x_0 + sigma(t) eps, and differ only in the schedule,
in what the network predicts, and in which times it is trained on. So any sampler draws from any of them.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lit_gen.data import Batch
from lit_gen.diffusion.denoisers import (
    EDMPreconditioning,
    Epsilon,
    NetworkDenoiser,
    Parameterization,
    Velocity,
)
from lit_gen.diffusion.objectives import (
    LogitNormal,
    LognormalSigma,
    TimeDensity,
    UniformSteps,
    UniformTime,
    diffusion_loss,
)
from lit_gen.diffusion.samplers import DDIM, Euler, Heun, Sampler
from lit_gen.diffusion.schedules import DiscreteVP, EDMSchedule, Rectified, Schedule
from lit_gen.models.base import GenerativeModel, OptimizerFactory
from lit_gen.networks.unet import UNet
from lit_gen.noise import Noise

NetworkFactory = Callable[[tuple[int, int, int], int], nn.Module]


class Diffusion(GenerativeModel):
    """A network, a schedule, a parameterization and a density of training times.

    The loss of an image is the mean over pixels of |F(c_in x_t, c_noise, label) - target(x_0, eps, t)|^2 with t from
    the density and eps ~ N(0, I). A subclass gives the three parts and passes the rest on.

    Args:
        schedule: alpha(t) and sigma(t) of x_t = alpha x_0 + sigma eps.
        parameterization: What the network predicts.
        density: Which times it is trained on.
        network: The network, called with (x, c_noise, labels).
        optimizer: Optimizer of the network's parameters.
        clip: Clamp E[x_0 | x_t] to [-clip, clip] when sampling.
    """

    takes_sampler = True

    def __init__(
        self,
        schedule: Schedule,
        parameterization: Parameterization,
        density: TimeDensity,
        network: NetworkFactory = UNet,
        optimizer: OptimizerFactory = lambda p: torch.optim.Adam(p, lr=2e-4),
        clip: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.network = network(self.image_shape, self.num_classes)
        self.optimizer = optimizer
        self.schedule = schedule
        self.density = density
        self.denoiser = NetworkDenoiser(self.network, schedule, parameterization, clip)

    @property
    def generator(self) -> nn.Module:
        return self.network

    def configure_optimizers(self) -> Any:
        return self.warmup_schedule(self.optimizer(self.network.parameters()))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = diffusion_loss(self.denoiser, self.density, batch.images, self.conditioning(batch)).mean()
        self.log_training(loss=loss.detach())
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        torch.manual_seed(batch_idx)
        loss = diffusion_loss(self.denoiser, self.density, batch.images, self.conditioning(batch))
        self.log_validation(len(loss), loss=loss.mean())

    def draw(self, noise: Noise, labels: Tensor | None, sampler: Sampler | None) -> Tensor:
        assert sampler is not None
        before = self.denoiser.evaluations
        images = sampler.sample(self.denoiser, self.schedule, noise, self.image_shape, labels)
        self.nfe = float(self.denoiser.evaluations - before)
        return images


class DDPM(Diffusion):
    """Denoising diffusion probabilistic models (Ho et al. 2020, https://arxiv.org/abs/2006.11239).

    x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps at T discrete times, uniformly drawn; the network predicts eps
    (L_simple). As in the paper's code, sampling clamps the predicted x_0 to [-1, 1]. The cosine betas are those of
    Nichol and Dhariwal 2021, https://arxiv.org/abs/2102.09672.

    Args:
        betas: The noise schedule.
        num_timesteps: T, the number of discrete times.
        optimizer: Optimizer of the network's parameters.
    """

    def __init__(
        self,
        betas: Literal["linear", "cosine"] = "linear",
        num_timesteps: int = 1000,
        optimizer: OptimizerFactory = lambda p: torch.optim.Adam(p, lr=2e-4),
        **kwargs: Any,
    ) -> None:
        super().__init__(
            schedule=DiscreteVP(betas, num_timesteps),
            parameterization=Epsilon(num_timesteps),
            density=UniformSteps(),
            optimizer=optimizer,
            clip=1.0,
            **kwargs,
        )

    def default_sampler(self) -> Sampler:
        return DDIM(steps=50)


class EDM(Diffusion):
    """Elucidating the design space of diffusion models (Karras et al. 2022, https://arxiv.org/abs/2206.00364).

    x = x_0 + sigma eps with ln sigma ~ N(p_mean, p_std^2); D(x; sigma) = c_skip x + c_out F(c_in x; ln(sigma) / 4), and
    the loss weight makes F's own squared error the loss.

    Args:
        sigma_data: Standard deviation of the data that the preconditioning assumes.
        p_mean: Mean of ln sigma in training.
        p_std: Standard deviation of ln sigma in training.
        optimizer: Optimizer of the network's parameters.
    """

    def __init__(
        self,
        sigma_data: float = 0.5,
        p_mean: float = -1.2,
        p_std: float = 1.2,
        optimizer: OptimizerFactory = lambda p: torch.optim.Adam(p, lr=1e-3),
        **kwargs: Any,
    ) -> None:
        super().__init__(
            schedule=EDMSchedule(),
            parameterization=EDMPreconditioning(sigma_data),
            density=LognormalSigma(p_mean, p_std),
            optimizer=optimizer,
            clip=None,
            **kwargs,
        )

    def default_sampler(self) -> Sampler:
        return Heun(steps=18)


class RectifiedFlow(Diffusion):
    """Rectified flow (Liu et al. 2022, https://arxiv.org/abs/2209.03003).

    x_t = (1 - t) x_0 + t eps; the network predicts the velocity eps - x_0. Logit-normal times are those of Esser et al.
    2024, https://arxiv.org/abs/2403.03206.

    Args:
        density: Which times the network is trained on.
        optimizer: Optimizer of the network's parameters.
    """

    def __init__(
        self,
        density: Literal["uniform", "logit_normal"] = "uniform",
        optimizer: OptimizerFactory = lambda p: torch.optim.Adam(p, lr=2e-4),
        **kwargs: Any,
    ) -> None:
        super().__init__(
            schedule=Rectified(),
            parameterization=Velocity(),
            density=LogitNormal() if density == "logit_normal" else UniformTime(),
            optimizer=optimizer,
            clip=None,
            **kwargs,
        )

    def default_sampler(self) -> Sampler:
        return Euler(steps=50)
