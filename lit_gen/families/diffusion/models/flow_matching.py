"""Flow matching along straight paths, x_t = (1 - t) x_0 + t eps, and rectified flow."""

from typing import Any, Literal

import torch
from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.core.modes import evaluating
from lit_gen.core.noise import Noise
from lit_gen.data.batches import Batch
from lit_gen.families.diffusion.coupling import optimal_transport
from lit_gen.families.diffusion.denoisers import Velocity
from lit_gen.families.diffusion.densities import FixedTime, LogitNormal, TimeDensity, UniformTime
from lit_gen.families.diffusion.grids import Uniform
from lit_gen.families.diffusion.models.general import Diffusion, check_not_given
from lit_gen.families.diffusion.samplers.base import DiffusionSampler
from lit_gen.families.diffusion.samplers.ode import Euler
from lit_gen.families.diffusion.schedules import Rectified
from lit_gen.families.diffusion.straightness import straightness
from lit_gen.families.optimizers import OptimizerFactory
from lit_gen.families.settings import LikelihoodMethod

Times = Literal["uniform", "logit_normal", "noise"]
DENSITIES: dict[str, type[TimeDensity]] = {"uniform": UniformTime, "logit_normal": LogitNormal, "noise": FixedTime}


class FlowMatching(Diffusion):
    """Flow matching (Lipman et al. 2022, https://arxiv.org/abs/2210.02747; sigma_min = 0).

    x_t = (1 - t) x_0 + t eps; the network predicts the velocity eps - x_0. The coupling pairs each image with noise:
    independently, or by optimal transport between the images of a batch and as many noise samples (Tong et al. 2023,
    https://arxiv.org/abs/2302.00482), which makes the paths straighter. Optimal transport uses the batch of all
    processes together, so the pairs do not depend on the number of processes. A class-conditional model couples the
    images of each class separately, so the noise of each class is N(0, I). Logit-normal times are those of Esser et al.
    2024, https://arxiv.org/abs/2403.03206. Images with given noise (`Pairs`) keep it.

    Under optimal transport eps depends on x_0, so E[eps | x_t] is no longer -sigma times the score: the samplers of the
    ODE (Euler, Heun, DDIM with eta = 0) remain exact, and those that add noise do not.

    Args:
        coupling: Pairing of images and noise.
        density: Density of the training times. noise is t = 1 alone, which turns pairs into a one-step generator
            (`lit-gen reflow --distill`); its default sampler takes one step from pure noise, the only trained time.
        optimizer: Optimizer of the network's parameters.

    Raises:
        UserError: If the times are stratified and their density is a single time.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        coupling: Literal["independent", "ot"] = "independent",
        density: Times = "uniform",
        optimizer: OptimizerFactory = lambda p: torch.optim.Adam(p, lr=2e-4),
        **kwargs: Any,
    ) -> None:
        check_not_given(self, kwargs, "schedule", "parameterization", "clip")
        super().__init__(
            image_shape=image_shape,
            schedule=Rectified(),
            parameterization=Velocity(),
            density=DENSITIES[density](),
            optimizer=optimizer,
            clip=None,
            **kwargs,
        )
        if self.distilled and self.stratified:
            raise UserError(
                "model.stratified: true is not used with model.density noise, a single time; remove one of the two keys"
            )
        self.coupling = coupling
        if coupling == "ot":
            self.title = f"OT-{self.title}"

    @property
    def distilled(self) -> bool:
        """Whether the network is trained only at t = 1, and therefore only supports one-step sampling."""
        return isinstance(self.density, FixedTime)

    def training_noise(self, batch: Batch) -> Tensor:
        if batch.noise is not None:
            return batch.noise
        if self.coupling == "independent":
            return super().training_noise(batch)
        images = batch.images
        whole = self.gathered(images)
        # a batch that is coupled in more parts than when the run began has other noise for each of them
        part = f" {self.clock.batches_seen}" if self.clock.kept else ""
        generator = self.common_generator(f"coupling{part}", images.device)
        noise = torch.randn(whole.shape, generator=generator, dtype=images.dtype, device=images.device)
        first = self.global_rank * len(images)
        labels = self._classes(batch)
        coupled = optimal_transport(whole, noise, None if labels is None else self.gathered(labels))
        return coupled[first : first + len(images)]

    def validation_noise(self, batch: Batch) -> Tensor:
        if batch.noise is not None:
            return batch.noise
        noise = super().validation_noise(batch)
        if self.coupling == "independent":
            return noise
        return optimal_transport(batch.images, noise, self._classes(batch))

    def diagnostics(self, noise: Noise) -> dict[str, float]:
        """Return the straightness of the sampling paths (see `straightness`); empty for a distilled model."""
        if self.distilled:
            return {}
        labels = self.drawn_classes(noise.index)
        with evaluating(self):
            values = straightness(self.denoiser, noise, self.image_shape, labels=labels)
        return {"straightness": float(values.mean())}

    def check_likelihood(self, method: LikelihoodMethod | None = None) -> None:
        if self.distilled:
            raise UserError(
                f"evaluation.likelihood: {self.title} was trained only at pure noise (model.density noise) and has no "
                "path along which to compute one; leave it at 0"
            )
        super().check_likelihood(method)

    def default_sampler(self) -> DiffusionSampler:
        return Euler(steps=1, grid=Uniform()) if self.distilled else Euler(steps=50)

    def _classes(self, batch: Batch) -> Tensor | None:
        """Return the labels of a conditional model's batch, before any of them are dropped."""
        return batch.labels if self.num_classes else None


class RectifiedFlow(FlowMatching):
    """Rectified flow (Liu et al. 2022, https://arxiv.org/abs/2209.03003).

    The first flow of the procedure is flow matching with independent pairs of image and noise, at uniform times. The
    next flow is trained on pairs of noise and samples of the first (`lit-gen reflow RUN`); its paths are straighter.

    Args:
        density: Density of the training times. noise is t = 1 alone, which turns pairs into a one-step generator
            (`lit-gen reflow --distill`); its default sampler takes one step from pure noise, the only trained time.
    """

    def __init__(self, image_shape: tuple[int, int, int], density: Times = "uniform", **kwargs: Any) -> None:
        check_not_given(self, kwargs, "coupling")
        super().__init__(image_shape=image_shape, coupling="independent", density=density, **kwargs)
