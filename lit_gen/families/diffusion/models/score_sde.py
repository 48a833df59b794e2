"""Score-based models of stochastic differential equations."""

import math
from typing import Any, Literal

import torch

from lit_gen.core.errors import UserError
from lit_gen.families.diffusion.denoisers import Score
from lit_gen.families.diffusion.densities import UniformLogSigma, UniformTime
from lit_gen.families.diffusion.models.general import Diffusion, check_not_given
from lit_gen.families.diffusion.samplers.base import DiffusionSampler
from lit_gen.families.diffusion.samplers.langevin import PredictorCorrector
from lit_gen.families.diffusion.schedules import VE, LinearVP, Schedule, SubVP
from lit_gen.families.optimizers import OptimizerFactory

SIGMA_MIN, SIGMA_MAX = 0.02, 100.0
"""Default noise levels of the variance-exploding SDE."""


class ScoreSDE(Diffusion):
    """Score-based generative modelling through SDEs (Song et al. 2021, https://arxiv.org/abs/2011.13456).

    Denoising score matching with the weight sigma(t)^2: the network predicts sigma times the score of x_t, and the loss
    is its squared distance from sigma grad log p(x_t | x_0) = -eps. In the variance-preserving and the
    sub-variance-preserving SDE, t is uniform and conditions the network; in the variance-exploding SDE, ln sigma is
    uniform and conditions it. The weight `ELBO` is the likelihood weighting g(t)^2 of Song et al. 2021,
    https://arxiv.org/abs/2101.09258.

    Args:
        sde: Variance preserving (beta from 0.1 to 20), sub-variance preserving or variance exploding.
        sigma_min: Smallest noise level of the variance-exploding SDE.
        sigma_max: Largest noise level of the variance-exploding SDE; about the largest distance between two images.
        scale_input: Scale the network's input to the norm of the variance-preserving path. The paper's input is as
            large as sigma_max, and normalisation layers discard its size, which the score of a small image needs to
            within a few per cent.
        optimizer: Optimizer of the network's parameters.

    Raises:
        UserError: If a noise level is given to an SDE that does not use it.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        sde: Literal["vp", "subvp", "ve"] = "vp",
        sigma_min: float = SIGMA_MIN,
        sigma_max: float = SIGMA_MAX,
        scale_input: bool = False,
        optimizer: OptimizerFactory = lambda p: torch.optim.Adam(p, lr=2e-4),
        **kwargs: Any,
    ) -> None:
        check_not_given(self, kwargs, "schedule", "parameterization", "density", "clip")
        for name, value, default in (("sigma_min", sigma_min, SIGMA_MIN), ("sigma_max", sigma_max, SIGMA_MAX)):
            if sde != "ve" and value != default:
                raise UserError(
                    f"model.{name}: {value} is not used by the SDE {sde}; remove the key, or set model.sde to ve"
                )
        schedules: dict[str, Schedule] = {"vp": LinearVP(), "subvp": SubVP(), "ve": VE(sigma_min, sigma_max)}
        super().__init__(
            image_shape=image_shape,
            schedule=schedules[sde],
            parameterization=Score("sigma" if sde == "ve" else "time", scale_input),
            density=UniformLogSigma() if sde == "ve" else UniformTime(),
            optimizer=optimizer,
            clip=None,
            **kwargs,
        )
        self.title = {"vp": "ScoreSDE-VP", "subvp": "ScoreSDE-subVP", "ve": "ScoreSDE-VE"}[sde]

    def default_sampler(self) -> DiffusionSampler:
        # In a few dimensions the norm of one image's score does not indicate a suitable step size.
        norm: Literal["image", "level"] = "image" if math.prod(self.image_shape) >= 50 else "level"
        return PredictorCorrector(nfe=50, predictor="ancestral", norm=norm)
