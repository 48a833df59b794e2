"""Consistency models: one function from every point of a path to its end, the image."""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.families.diffusion.denoisers import EDMPreconditioning, per_image
from lit_gen.families.diffusion.densities import LognormalSigma
from lit_gen.families.diffusion.models.flow_map import FlowMapModel
from lit_gen.families.diffusion.models.general import check_not_given
from lit_gen.families.diffusion.schedules import EDMSchedule
from lit_gen.families.optimizers import OptimizerFactory


class ConsistencyTraining(FlowMapModel):
    r"""Improved consistency training, iCT (Song and Dhariwal 2023, https://arxiv.org/abs/2310.14189).

    The network is f(x_t, t) = x_0 for all points of a path of the probability flow; x_t = x_0 + sigma eps. Neighbouring
    points of one image and one eps have to agree, at the levels sigma_1 < ... < sigma_N of a Karras grid of rho = 7:

        loss = (sqrt(|f(x_t, t) - f(x_s, s)|^2 + c^2) - c) / (sigma_t - sigma_s),    c = huber sqrt(dimension),

    where f(x_s, s) has no gradient, and the same dropout. sigma_t is the first level above a lognormal number, and
    sigma_s the one below; N - 1 is `first_levels` at the start and doubles after every `double_every` images, up to
    `last_levels`.

    Unlike in the paper, f is the identity at sigma = 0 instead of sigma_1, by EDM's preconditioning, and lognormal
    numbers outside the grid belong to its outermost intervals.

    Args:
        p_mean: Mean of ln(sigma).
        p_std: Standard deviation of ln(sigma).
        sigma_data: Standard deviation of the data, for the preconditioning.
        first_levels: Number of intervals of the grid at the start.
        last_levels: Largest number of intervals.
        double_every: Number of images after which the number of intervals doubles.
        huber: c / sqrt(dimension).
        optimizer: Optimizer of the network's parameters.

    Raises:
        UserError: If a setting is out of range.
    """

    two_times: ClassVar[bool] = False

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        p_mean: float = -1.1,
        p_std: float = 2.0,
        sigma_data: float = 0.5,
        first_levels: int = 10,
        last_levels: int = 1280,
        double_every: int = 1_000_000,
        huber: float = 0.00054,
        optimizer: OptimizerFactory = lambda p: torch.optim.RAdam(p, lr=1e-4),
        **kwargs: Any,
    ) -> None:
        check_not_given(self, kwargs, "schedule", "parameterization", "density", "clip")
        for name, std in {"sigma_data": sigma_data, "p_std": p_std}.items():
            if not 0 < std < math.inf:
                raise UserError(f"model.{name}: {std} is not a standard deviation; give a number above 0")
        if not 2 <= first_levels <= last_levels:
            raise UserError(
                f"model.first_levels: {first_levels} to last_levels {last_levels} is not a range of numbers of "
                "intervals; give 2 or more, and no more than last_levels"
            )
        if double_every < 1:
            raise UserError(f"model.double_every: {double_every} is not a number of images; give 1 or more")
        if not 0 < huber < math.inf:
            raise UserError(f"model.huber: {huber} is not an offset of a loss; give a number above 0")
        super().__init__(
            image_shape=image_shape,
            schedule=EDMSchedule(),
            parameterization=EDMPreconditioning(sigma_data),
            density=LognormalSigma(p_mean, p_std),
            optimizer=optimizer,
            clip=None,
            **kwargs,
        )
        self.first_levels = first_levels
        self.last_levels = last_levels
        self.double_every = double_every
        self.huber = huber

    @property
    def num_intervals(self) -> int:
        """Number of intervals of the grid at this moment of the training."""
        doublings = self.clock.images_seen // self.double_every
        return min(self.first_levels << min(doublings, 32), self.last_levels)

    def levels(self) -> Tensor:
        """Return the increasing levels (N,) at this moment of the training, float64."""
        place = torch.linspace(0, 1, self.num_intervals + 1, dtype=torch.float64)
        low, high = (self.schedule.min_ratio ** (1 / 7), self.schedule.max_ratio ** (1 / 7))
        levels: Tensor = (low + place * (high - low)) ** 7
        return levels

    def spans(self, t: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        levels = self.levels().to(t.device)
        above = torch.searchsorted(levels, self.schedule.ratio(t)).clamp(1, len(levels) - 1)
        return self.schedule.time(levels[above]), self.schedule.time(levels[above - 1])

    def error(
        self, images: Tensor, t: Tensor, s: Tensor, eps: Tensor, labels: Tensor | None, augment_labels: Tensor | None
    ) -> Tensor:
        conditions = (labels,) if augment_labels is None else (labels, augment_labels)

        def end(time: Tensor) -> Tensor:
            x = images + per_image(self.schedule(time)[1], images) * eps
            return self.flow_map.denoised(x, time, torch.zeros_like(time), *conditions)

        devices = [images.device] if images.is_cuda else []
        with torch.no_grad(), torch.random.fork_rng(devices):  # the same dropout at both points
            target = end(s)
        return (end(t) - target).square().flatten(1).mean(1)

    def reweighted(self, error: Tensor, t: Tensor, s: Tensor) -> Tensor:
        dimension = math.prod(self.image_shape)
        c = self.huber * math.sqrt(dimension)
        step = self.schedule.ratio(t) - self.schedule.ratio(s)
        return ((dimension * error + c**2).sqrt() - c) / step.to(error)
