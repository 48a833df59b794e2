"""Shortcut models: steps of any power of two, each learned from two steps of half its size."""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.core.modes import evaluating
from lit_gen.families.diffusion.denoisers import NetworkDenoiser, Velocity, per_image
from lit_gen.families.diffusion.densities import UniformTime
from lit_gen.families.diffusion.flow_maps import NetworkFlowMap
from lit_gen.families.diffusion.grids import Uniform
from lit_gen.families.diffusion.models.flow_map import FlowMapModel
from lit_gen.families.diffusion.models.general import check_not_given
from lit_gen.families.diffusion.samplers.flow_map import FlowMapSampler
from lit_gen.families.diffusion.schedules import Rectified
from lit_gen.families.optimizers import OptimizerFactory
from lit_gen.families.settings import Sampler


class Shortcut(FlowMapModel):
    r"""Shortcut models (Frans et al. 2024, https://arxiv.org/abs/2410.12557).

    On the straight path x_t = (1 - t) x_0 + t eps the network is the mean velocity u(x_t, t, s). A share of the images
    learns a step of length 2 d = 1, 1/2, ..., 2 / num_steps from t, a multiple of 2 d, by two steps of half its length:

        u(x_t, t, t - 2 d) = (u(x_t, t, t - d) + u(x_m, t - d, t - 2 d)) / 2,    x_m = x_t - d u(x_t, t, t - d).

    The right side has no gradient, and is that of averaged weights. For the shortest, d = 1 / num_steps, it is the
    velocity u(x, t, t). The other images have s = t, where the target is eps - x_0: flow matching. One step samples
    x_0 = eps - u(eps, 1, 0), and 2, 4, 8, ... equal steps, of the grid `Uniform`, are those that were learned.

    Args:
        bootstrap_share: Share of the images that learn from two steps.
        num_steps: Number of the shortest steps from noise to data, a power of two.
        target_decay: Largest decay per training step of the averaged weights of the target; in step k it is
            (1 + k) / (10 + k) at most.
        optimizer: Optimizer of the network's parameters; the paper has AdamW with a weight decay of 0.1.

    Raises:
        UserError: If a setting is out of range.
    """

    num_averaged: Tensor

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        bootstrap_share: float = 0.25,
        num_steps: int = 128,
        target_decay: float = 0.999,
        optimizer: OptimizerFactory = lambda p: torch.optim.Adam(p, lr=1e-4),
        **kwargs: Any,
    ) -> None:
        check_not_given(self, kwargs, "schedule", "parameterization", "density", "clip")
        if not 0 <= bootstrap_share <= 1:
            raise UserError(
                f"model.bootstrap_share: {bootstrap_share} is not a share of the images; give a number in [0, 1]"
            )
        if num_steps < 2 or num_steps & (num_steps - 1):
            raise UserError(f"model.num_steps: {num_steps} is not a power of two above 1; give for example 128")
        if not 0 <= target_decay < 1:
            raise UserError(f"model.target_decay: {target_decay} is not a decay; give a number in [0, 1)")
        super().__init__(
            image_shape=image_shape,
            schedule=Rectified(),
            parameterization=Velocity(),
            density=UniformTime(),
            optimizer=optimizer,
            clip=None,
            **kwargs,
        )
        self.bootstrap_share = bootstrap_share
        self.num_steps = num_steps
        self.target_decay = target_decay
        self.target = copy.deepcopy(self.network).requires_grad_(False)
        self.register_buffer("num_averaged", torch.zeros(()))
        self.teacher = NetworkFlowMap(NetworkDenoiser(self.target, self.schedule, Velocity(), None), self.two_times)

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.average()

    @torch.no_grad()
    def average(self) -> None:
        """Move the weights of the target towards those of the network, fast at first, and copy the buffers."""
        self.num_averaged += 1
        decay = torch.clamp((1 + self.num_averaged) / (10 + self.num_averaged), max=self.target_decay)
        for kept, new in zip(self.target.parameters(), self.network.parameters(), strict=True):
            kept.data.lerp_(new.data, 1 - decay)
        for buffer, new_buffer in zip(self.target.buffers(), self.network.buffers(), strict=True):
            buffer.copy_(new_buffer)

    def spans(self, t: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        """Return s = t, or a step of a random length from a random multiple of it, by two uniform numbers."""
        levels = int(math.log2(self.num_steps))
        place = (other / max(self.bootstrap_share, 1e-12)).clamp(max=1 - 1e-12)
        num = 2.0 ** (place * levels).floor()  # of steps of this length
        start = (t * num).ceil() / num
        short = other < self.bootstrap_share
        return torch.where(short, start, t), torch.where(short, start - 1 / num, t)

    def error(
        self, images: Tensor, t: Tensor, s: Tensor, eps: Tensor, labels: Tensor | None, augment_labels: Tensor | None
    ) -> Tensor:
        alpha, sigma = self.schedule(t)
        x = per_image(alpha, images) * images + per_image(sigma, images) * eps
        conditions = (labels,) if augment_labels is None else (labels, augment_labels)
        target, rows = eps - images, s < t
        if rows.any():
            part = [None if condition is None else condition[rows] for condition in conditions]
            target[rows] = self.of_two_steps(x[rows], t[rows], s[rows], part).to(target)
        return (self.flow_map.predict(x, t, s, *conditions) - target).square().flatten(1).mean(1)

    @torch.no_grad()
    def of_two_steps(self, x: Tensor, t: Tensor, s: Tensor, conditions: Sequence[Tensor | None]) -> Tensor:
        """Return the mean velocity of two steps of the target from t to s."""
        middle = (t + s) / 2
        shortest = t - s < 3 / self.num_steps
        with evaluating(self.target):
            first = self.teacher.predict(x, t, torch.where(shortest, t, middle), *conditions)
            x = x - per_image((t - s) / 2, x) * first
            second = self.teacher.predict(x, middle, torch.where(shortest, middle, s), *conditions)
        return (first + second) / 2

    def reweighted(self, error: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return error

    def default_sampler(self) -> Sampler:
        return FlowMapSampler(steps=1, grid=Uniform())
