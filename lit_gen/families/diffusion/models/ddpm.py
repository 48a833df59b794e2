"""Denoising diffusion on a chain of discrete steps: DDPM, and its improved form with a learned variance."""

import math
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.data.batches import Batch
from lit_gen.families.diffusion.denoisers import Epsilon
from lit_gen.families.diffusion.densities import ImportanceSampling, UniformSteps
from lit_gen.families.diffusion.models.general import Diffusion, NetworkFactory, check_not_given
from lit_gen.families.diffusion.networks.unet import UNet
from lit_gen.families.diffusion.objectives import hybrid_loss, variational_loss
from lit_gen.families.diffusion.samplers import ancestral
from lit_gen.families.diffusion.samplers.ancestral import DDIM
from lit_gen.families.diffusion.samplers.base import DiffusionSampler
from lit_gen.families.diffusion.schedules import DiscreteVP
from lit_gen.families.optimizers import OptimizerFactory

VLB_WEIGHT = 1e-3
"""Default weight of L_vlb in the hybrid loss."""


class DDPM(Diffusion):
    """Denoising diffusion probabilistic models (Ho et al. 2020, https://arxiv.org/abs/2006.11239).

    x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps at T discrete times, sampled uniformly; the network predicts eps
    (L_simple). As in the paper's code, sampling clamps the predicted x_0 to [-1, 1]. The cosine betas are those of
    Nichol and Dhariwal 2021, https://arxiv.org/abs/2102.09672.

    Args:
        betas: Noise schedule.
        num_timesteps: Number T of discrete times.
        optimizer: Optimizer of the network's parameters.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        betas: Literal["linear", "cosine"] = "linear",
        num_timesteps: int = 1000,
        optimizer: OptimizerFactory = lambda p: torch.optim.Adam(p, lr=2e-4),
        **kwargs: Any,
    ) -> None:
        check_not_given(self, kwargs, "schedule", "parameterization", "density", "clip")
        super().__init__(
            image_shape=image_shape,
            schedule=DiscreteVP(betas, num_timesteps),
            parameterization=Epsilon(num_timesteps),
            density=UniformSteps(),
            optimizer=optimizer,
            clip=1.0,
            **kwargs,
        )

    def default_sampler(self) -> DiffusionSampler:
        return DDIM(steps=50)


class ImprovedDDPM(Diffusion):
    """Improved DDPM (Nichol and Dhariwal 2021, https://arxiv.org/abs/2102.09672).

    In addition to DDPM's eps, the network predicts the variance of each ancestral step, between the smallest and the
    largest possible variance, in a second set of output channels. The loss is L_simple + vlb_weight L_vlb, or L_vlb
    alone. L_vlb is the variational bound in bits per dimension; in the sum it trains only the variance.

    Args:
        betas: Noise schedule.
        num_timesteps: Number T of discrete times; 4000 in the paper.
        objective: Train on the hybrid loss, or on the variational bound alone.
        vlb_weight: Weight of L_vlb in the hybrid loss.
        importance_sampling: Sample the steps in proportion to their loss. The paper does so for the variational bound,
            whose terms differ by orders of magnitude.
        network: Factory of the network, which is called with (x, c_noise, labels); it receives `out_channels`.
        optimizer: Optimizer of the network's parameters.

    Raises:
        UserError: If vlb_weight is below 0, or given for the variational bound alone.
    """

    learns_variance = True
    capabilities = replace(Diffusion.capabilities, learns="images")  # the last term of the bound needs 8-bit values

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        betas: Literal["linear", "cosine"] = "cosine",
        num_timesteps: int = 1000,
        objective: Literal["hybrid", "vlb"] = "hybrid",
        vlb_weight: float = VLB_WEIGHT,
        importance_sampling: bool = False,
        network: NetworkFactory = UNet,
        optimizer: OptimizerFactory = lambda p: torch.optim.Adam(p, lr=1e-4),
        **kwargs: Any,
    ) -> None:
        check_not_given(self, kwargs, "schedule", "parameterization", "density", "clip", "weight", "uncertainty")
        if not 0 <= vlb_weight < math.inf:
            raise UserError(f"model.vlb_weight: {vlb_weight} is not the weight of a loss; give 0 or more")
        if objective == "vlb" and vlb_weight != VLB_WEIGHT:
            raise UserError(
                f"model.vlb_weight: {vlb_weight} is not used by the objective vlb; remove the key, or set "
                "model.objective to hybrid"
            )
        super().__init__(
            image_shape=image_shape,
            schedule=DiscreteVP(betas, num_timesteps),
            parameterization=Epsilon(num_timesteps),
            density=UniformSteps(),
            network=lambda shape, num_classes, **settings: network(  # type: ignore[call-arg]
                shape, num_classes, out_channels=2 * shape[0], **settings
            ),
            optimizer=optimizer,
            clip=1.0,
            weight=None,
            uncertainty=False,
            **kwargs,
        )
        self.objective = objective
        self.vlb_weight = vlb_weight
        self.importance = ImportanceSampling(num_timesteps) if importance_sampling else None
        if self.importance is not None:
            self.proposal = self.importance

    def loss(
        self,
        images: Tensor,
        t: Tensor,
        eps: Tensor,
        labels: Tensor | None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        if self.objective == "vlb":
            return variational_loss(self.denoiser, images, t, eps, labels, augment_labels)
        return hybrid_loss(self.denoiser, images, t, eps, labels, augment_labels, self.vlb_weight)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        batch, augment_labels = self.augmented(batch)
        t = self.training_times(len(batch.images))
        loss = self.loss(batch.images, t, self.training_noise(batch), self.conditioning(batch), augment_labels)
        if self.importance is not None:
            share = self.importance.pdf(self.schedule, t).to(loss)
            self.importance.update(self.gathered(t), self.gathered(loss.detach()))
            loss = loss / share
        self.log_training(loss=loss.detach().mean())
        return loss.mean()

    def default_sampler(self) -> DiffusionSampler:
        return ancestral.DDPM(steps=50, variance="learned")
