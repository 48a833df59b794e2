"""EDM: preconditioned denoising over continuous noise levels."""

import math
from typing import Any

import torch

from lit_gen.core.errors import UserError
from lit_gen.families.diffusion.denoisers import EDMPreconditioning
from lit_gen.families.diffusion.densities import LognormalSigma
from lit_gen.families.diffusion.models.general import Diffusion, check_not_given
from lit_gen.families.diffusion.samplers.base import DiffusionSampler
from lit_gen.families.diffusion.samplers.ode import Heun
from lit_gen.families.diffusion.schedules import EDMSchedule
from lit_gen.families.optimizers import OptimizerFactory


class EDM(Diffusion):
    """Elucidating the design space of diffusion models (Karras et al. 2022, https://arxiv.org/abs/2206.00364).

    x = x_0 + sigma eps with ln sigma ~ N(p_mean, p_std^2), and D(x; sigma) = c_skip x + c_out F(c_in x; ln(sigma) / 4).
    With the paper's loss weight, the loss is the squared error of F.

    Args:
        sigma_data: Standard deviation of the data that the preconditioning assumes.
        p_mean: Mean of ln sigma in training.
        p_std: Standard deviation of ln sigma in training.
        optimizer: Optimizer of the network's parameters.

    Raises:
        UserError: If sigma_data or p_std is not above 0.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        sigma_data: float = 0.5,
        p_mean: float = -1.2,
        p_std: float = 1.2,
        optimizer: OptimizerFactory = lambda p: torch.optim.Adam(p, lr=1e-3),
        **kwargs: Any,
    ) -> None:
        check_not_given(self, kwargs, "schedule", "parameterization", "density", "clip")
        for name, std in {"sigma_data": sigma_data, "p_std": p_std}.items():
            if not 0 < std < math.inf:
                raise UserError(f"model.{name}: {std} is not a standard deviation; give a number above 0")
        super().__init__(
            image_shape=image_shape,
            schedule=EDMSchedule(),
            parameterization=EDMPreconditioning(sigma_data),
            density=LognormalSigma(p_mean, p_std),
            optimizer=optimizer,
            clip=None,
            **kwargs,
        )

    def default_sampler(self) -> DiffusionSampler:
        return Heun(steps=18)
