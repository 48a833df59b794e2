"""Base class of the models that learn a flow map: a few steps, or one, from noise to data."""

from abc import abstractmethod
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lit_gen.core.noise import Noise
from lit_gen.data.batches import Batch
from lit_gen.families.diffusion.denoisers import GaussianMixtureDenoiser
from lit_gen.families.diffusion.flow_maps import MixtureFlowMap, NetworkFlowMap, condition_on_span
from lit_gen.families.diffusion.models.general import Diffusion, NetworkFactory
from lit_gen.families.diffusion.samplers.base import DiffusionSampler
from lit_gen.families.diffusion.samplers.flow_map import FlowMapSampler
from lit_gen.families.settings import Sampler


class FlowMapModel(Diffusion):
    """Model of a flow map; a subclass gives the times t and s of a training step, and its loss.

    If the network is conditioned on both times, D(x, t, t) is E[x_0 | x_t], so every sampler and likelihood of a
    diffusion model works too. Otherwise the network is the consistency function D(x, t, 0), which has neither.
    """

    capabilities = replace(Diffusion.capabilities, samplers=(FlowMapSampler, DiffusionSampler))
    unused = frozenset({"clip", "weight", "uncertainty"})
    two_times: ClassVar[bool] = True
    """Whether the network is conditioned on s in addition to t."""

    def __init__(self, image_shape: tuple[int, int, int], *args: Any, **kwargs: Any) -> None:
        super().__init__(image_shape, *args, **kwargs)
        self.flow_map = NetworkFlowMap(self.denoiser, self.two_times)
        if not self.two_times:
            self.capabilities = replace(
                self.capabilities, samplers=(FlowMapSampler,), likelihood_kind=None, likelihood_methods=()
            )

    def _build(self, network: NetworkFactory) -> nn.Module:
        built = super()._build(network)
        return condition_on_span(built) if self.two_times else built

    @abstractmethod
    def spans(self, t: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        """Return the times t and s of each image, (N,) each, from two times of the density."""

    @abstractmethod
    def error(
        self, images: Tensor, t: Tensor, s: Tensor, eps: Tensor, labels: Tensor | None, augment_labels: Tensor | None
    ) -> Tensor:
        """Return the mean square error (N,) of the map from t to s, for images paired with noise eps."""

    @abstractmethod
    def reweighted(self, error: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Return the losses (N,) whose mean a training step minimises, from the mean square errors (N,)."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        batch, augment_labels = self.augmented(batch)
        num = len(batch.images)
        t, s = self.training_spans(self.training_times(num), self.proposal(self.schedule, num, self.device))
        eps = self.training_noise(batch)
        error = self.error(batch.images, t, s, eps, self.conditioning(batch), augment_labels)
        self.log_training(loss=error.detach().mean())
        return self.reweighted(error, t, s).mean()

    def training_spans(self, t: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        """Return the times of a training step; by default `spans`."""
        return self.spans(t, other)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        u = Noise(0, batch.index).uniform((2,), torch.float64)
        t, s = self.spans(self.density.quantile(self.schedule, u[:, 0]), self.density.quantile(self.schedule, u[:, 1]))
        error = self.error(batch.images, t, s, self.validation_noise(batch), self.conditioning(batch), None)
        self.log_validation(batch, loss=error.mean())

    def rehearse(self, sampler: Sampler | None) -> None:
        super().rehearse(sampler)
        if isinstance(sampler, FlowMapSampler):
            exact = GaussianMixtureDenoiser(torch.zeros(1, 1), torch.ones(1))
            sampler.sample(MixtureFlowMap(exact, self.schedule, 1), Noise(0, range(1)), (1,))

    def default_sampler(self) -> Sampler:
        return FlowMapSampler(steps=1)

    def draw(self, noise: Noise, labels: Tensor | None, sampler: Sampler | None) -> Tensor:
        if not isinstance(sampler, FlowMapSampler):
            return super().draw(noise, labels, sampler)
        before = self.flow_map.evaluations
        images = sampler.sample(self.flow_map, noise, self.image_shape, labels)
        self.nfe = float(self.flow_map.evaluations - before)
        return images
