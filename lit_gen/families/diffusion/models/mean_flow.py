"""MeanFlow: one step from noise to data by the mean velocity of the flow."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lit_gen.core.errors import UserError
from lit_gen.core.modes import evaluating
from lit_gen.families.diffusion.denoisers import Velocity, per_image
from lit_gen.families.diffusion.densities import LogitNormal
from lit_gen.families.diffusion.models.flow_map import FlowMapModel
from lit_gen.families.diffusion.models.general import check_not_given
from lit_gen.families.diffusion.schedules import Rectified
from lit_gen.families.optimizers import OptimizerFactory


class MeanVelocity(Velocity):
    """F = u, the mean velocity between two times; c_noise = 10 t.

    The derivative of the network in t is part of the target. The sinusoids of `Velocity`, of c_noise = 999 t, turn 160
    times from data to noise, and that derivative would be mostly theirs.
    """

    def c_noise(self, t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return 10 * t


class MeanFlow(FlowMapModel):
    r"""MeanFlow (Geng et al. 2025, https://arxiv.org/abs/2505.13447).

    On the straight path x_t = (1 - t) x_0 + t eps with v = eps - x_0, the network is the mean velocity between s and t,

        (t - s) u(x_t, t, s) = int_s^t v,    so    u = v - (t - s) (v . grad_x u + du/dt).

    The loss is the squared distance of u from the right side, which has no gradient; its derivative along the path is
    one forward-mode product. For a share of the images s = t, where it is flow matching. One step samples
    x_0 = eps - u(eps, 1, 0), and n steps x_s = x_t - (t - s) u.

    Guidance is part of the target and costs nothing in sampling: v is replaced by
    omega v + kappa u(x_t, t, t | label) + (1 - omega - kappa) u(x_t, t, t), which is guidance with the weight
    omega / (1 - kappa).

    Args:
        p_mean: Mean of the logit of the two times, of which t is the later.
        p_std: Standard deviation of the logit of the two times.
        flow_share: Share of the images with s = t; 0.25 in the paper on CIFAR-10, and 0.75 on ImageNet.
        power: Power p of the weight 1 / (error + offset)^p of an image, whose error is a sum over pixels; 0 for none.
        offset: Offset of the weight.
        omega: Weight of v in the guided target; 1, with kappa 0, for no guidance.
        kappa: Weight of the model with a class in the guided target.
        optimizer: Optimizer of the network's parameters.

    Raises:
        UserError: If a setting is out of range, or there is guidance without `label_drop`.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        p_mean: float = -0.4,
        p_std: float = 1.0,
        flow_share: float = 0.75,
        power: float = 1.0,
        offset: float = 1e-2,
        omega: float = 1.0,
        kappa: float = 0.0,
        optimizer: OptimizerFactory = lambda p: torch.optim.Adam(p, lr=6e-4),
        **kwargs: Any,
    ) -> None:
        check_not_given(self, kwargs, "schedule", "parameterization", "density", "clip")
        if not 0 < p_std < math.inf:
            raise UserError(f"model.p_std: {p_std} is not a standard deviation; give a number above 0")
        if not 0 <= flow_share <= 1:
            raise UserError(f"model.flow_share: {flow_share} is not a share of the images; give a number in [0, 1]")
        if not (0 <= power < math.inf and 0 < offset < math.inf):
            raise UserError(
                f"model.power: {power} and offset {offset} do not define a weight; give a power of at least 0 and an "
                "offset above 0"
            )
        if not (0 < omega < math.inf and 0 <= kappa < 1):
            raise UserError(
                f"model.omega: {omega} and kappa {kappa} do not define a guidance; give omega above 0, and kappa in "
                "[0, 1)"
            )
        super().__init__(
            image_shape=image_shape,
            schedule=Rectified(),
            parameterization=MeanVelocity(),
            density=LogitNormal(p_mean, p_std),
            optimizer=optimizer,
            clip=None,
            **kwargs,
        )
        self.flow_share = flow_share
        self.power = power
        self.offset = offset
        self.omega = omega
        self.kappa = kappa
        if self.guided and not self.label_drop:
            raise UserError(
                "model.omega: guidance needs a model that also learns images without a class; set "
                "--model.class_conditional true --model.label_drop 0.1"
            )

    @property
    def guided(self) -> bool:
        """Whether the target is guided."""
        return (self.omega, self.kappa) != (1, 0)

    def spans(self, t: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        return torch.maximum(t, other), torch.minimum(t, other)

    def training_spans(self, t: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        t, s = self.spans(t, other)
        num = round(self.flow_share * len(t))
        return t, torch.cat([t[:num], s[num:]])

    def error(
        self, images: Tensor, t: Tensor, s: Tensor, eps: Tensor, labels: Tensor | None, augment_labels: Tensor | None
    ) -> Tensor:
        alpha, sigma = self.schedule(t)
        x, v = per_image(alpha, images) * images + per_image(sigma, images) * eps, eps - images
        if self.guided:
            v = self._guided_velocity(x, v, t, labels, augment_labels)
        conditions = (labels,) if augment_labels is None else (labels, augment_labels)
        error = torch.zeros_like(images)
        for rows in (s == t, s < t):
            if rows.any():
                part = [None if condition is None else condition[rows] for condition in conditions]
                error[rows] = self._error(x[rows], v[rows], t[rows], s[rows], part)
        return error.square().flatten(1).mean(1)

    def _error(self, x: Tensor, v: Tensor, t: Tensor, s: Tensor, conditions: Sequence[Tensor | None]) -> Tensor:
        """Return u - (v - (t - s) du/dt), of images that all have s = t, or all s < t.

        u and its derivative are of one pass, with the same dropout mask.
        """
        if s[0] == t[0]:
            return self.flow_map.predict(x, t, t, *conditions) - v
        with sdpa_kernel(SDPBackend.MATH):  # fused attention has no forward-mode derivative
            u, du_dt = torch.func.jvp(  # type: ignore[misc]
                lambda x, t: self.flow_map.predict(x, t, s, *conditions), (x, t), (v, torch.ones_like(t))
            )
        error: Tensor = u - (v - per_image(t - s, v) * du_dt).detach()
        return error

    @torch.no_grad()
    def _guided_velocity(
        self, x: Tensor, v: Tensor, t: Tensor, labels: Tensor | None, augment_labels: Tensor | None
    ) -> Tensor:
        """Return the guided target in place of v; without a class, v itself."""
        assert labels is not None
        further = () if augment_labels is None else (augment_labels,)
        with evaluating(self.network):
            guided = self.omega * v + (1 - self.omega - self.kappa) * self.flow_map.predict(
                x, t, t, torch.full_like(labels, -1), *further
            )
            if self.kappa:
                guided += self.kappa * self.flow_map.predict(x, t, t, labels, *further)
        return torch.where(per_image(labels, x) < 0, v, guided)

    def reweighted(self, error: Tensor, t: Tensor, s: Tensor) -> Tensor:
        total = error * math.prod(self.image_shape)
        return total / (total.detach() + self.offset) ** self.power
