r"""Flow maps X(x_t, t, s) = x_s: the probability flow from a time t to an earlier time s in one evaluation.

The exact map is the solution of dx/dt = v(x, t) = alpha'(t) D + sigma'(t) eps_hat, with D = E[x_0 | x_t] and
eps_hat = (x - alpha D) / sigma. It satisfies

    X(X(x, t, r), r, s) = X(x, t, s),    dX/ds = v(X, s),    dX/dt + (v(x, t) . grad_x) X = 0.

A network represents the map by a denoiser of two times, D(x_t, t, s):

    x_s = alpha_s D + sigma_s (x_t - alpha_t D) / sigma_t.

D(x, t, t) is E[x_0 | x_t], so the network is a denoiser as well, and D(x, t, 0) is x_0, the consistency function. On
the straight path, u = (x_t - D) / t is the mean velocity between s and t:

    x_s = x_t - (t - s) u,    (t - s) u = int_s^t v,    u = v - (t - s) (v . grad_x u + du/dt).

Papers: Song et al. 2023, https://arxiv.org/abs/2303.01469 (consistency); Kim et al. 2023,
https://arxiv.org/abs/2310.02279 (any two times); Geng et al. 2025, https://arxiv.org/abs/2505.13447 (mean velocity)
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from lit_gen.core.errors import UserError
from lit_gen.distributions.mixtures import GaussianMixture
from lit_gen.families.diffusion.denoisers import NetworkDenoiser, per_image
from lit_gen.families.diffusion.schedules import Schedule


class FlowMap(ABC):
    """Map from x_t to x_s along the probability flow of a schedule.

    Attributes:
        schedule: Schedule of the times.
        evaluations: Number of network evaluations so far (NFE).
        fresh: Share of fresh noise in the steps of a sampler that sets none.
    """

    schedule: Schedule
    evaluations: float = 0
    fresh: float = 0.0

    def __call__(self, x: Tensor, t: Tensor | float, s: Tensor | float, labels: Tensor | None = None) -> Tensor:
        """Return x_s, in the shape and data type of x.

        Args:
            x: States x_t, (N, ...).
            t: Current time in (0, 1], 0-d or (N,).
            s: Next time in [0, t], 0-d or (N,).
            labels: Classes (N,) for a conditional map.
        """
        self.evaluations += 1
        return self.jump(x, _double(t), _double(s), labels)

    @abstractmethod
    def jump(self, x: Tensor, t: Tensor, s: Tensor, labels: Tensor | None) -> Tensor:
        """Return x_s as `__call__` does, without counting the evaluation; times are float64."""


class MixtureFlowMap(FlowMap):
    r"""Exact flow map of a mixture of Gaussians, the limit of a perfectly trained network. Labels are ignored.

    With z = x / sqrt(alpha^2 + sigma^2) and the angle a = arctan(sigma / alpha), the flow is finite at both ends:

        dz/da = sin a sum_k p(k | z) (cos a (1 - s_k^2) (z - cos a m_k) / (cos^2 a s_k^2 + sin^2 a) - m_k).

    The classical Runge-Kutta rule of order four solves it in equal steps, each differentiable in x, t and s.

    Args:
        mixture: Distribution of x_0.
        schedule: Schedule of the times.
        steps: Number of Runge-Kutta steps.
    """

    def __init__(self, mixture: GaussianMixture, schedule: Schedule, steps: int = 200) -> None:
        self.mixture = mixture
        self.schedule = schedule
        self.steps = steps

    def jump(self, x: Tensor, t: Tensor, s: Tensor, labels: Tensor | None) -> Tensor:
        (alpha_t, sigma_t), (alpha_s, sigma_s) = self.schedule(t), self.schedule(s)
        first, last = torch.atan2(sigma_t, alpha_t), torch.atan2(sigma_s, alpha_s)
        first, h = first.reshape(-1, 1), ((last - first) / self.steps).reshape(-1, 1)
        z = x.double().flatten(1) / torch.hypot(alpha_t, sigma_t).reshape(-1, 1)
        for step in range(self.steps):
            angle = first + step * h
            k_1 = self._velocity(z, angle)
            k_2 = self._velocity(z + h / 2 * k_1, angle + h / 2)
            k_3 = self._velocity(z + h / 2 * k_2, angle + h / 2)
            k_4 = self._velocity(z + h * k_3, angle + h)
            z = z + h / 6 * (k_1 + 2 * k_2 + 2 * k_3 + k_4)
        return (z * torch.hypot(alpha_s, sigma_s).reshape(-1, 1)).reshape(x.shape).to(x.dtype)

    def _velocity(self, z: Tensor, angle: Tensor) -> Tensor:
        """Return dz/da, (N, D), at angles (1, 1) or (N, 1)."""
        cos, sin = angle.cos(), angle.sin()
        shares = self.mixture.responsibilities(z, cos[:, 0], sin[:, 0])
        means, variances = self.mixture.means.to(z.device), self.mixture.variances.to(z.device)
        cos, sin = cos[..., None], sin[..., None]
        scaled = cos * (1 - variances) * (z[:, None] - cos * means) / (cos**2 * variances + sin**2)
        return (shares[..., None] * sin * (scaled - means)).sum(1)


class NetworkFlowMap(FlowMap):
    """Flow map of a network that is trained as one.

    Args:
        denoiser: Network with its schedule and parameterization.
        two_times: Whether the network is conditioned on s. A network of t alone, such as a consistency model, is exact
            at s = 0 only. To any other time, it goes along the straight line from x_t to its x_0, and samplers use
            fresh noise by default.
    """

    def __init__(self, denoiser: NetworkDenoiser, two_times: bool) -> None:
        self.denoiser = denoiser
        self.schedule = denoiser.schedule
        self.two_times = two_times
        self.fresh = 0.0 if two_times else 1.0

    def jump(self, x: Tensor, t: Tensor, s: Tensor, labels: Tensor | None) -> Tensor:
        (alpha_t, sigma_t), (alpha_s, sigma_s) = self.schedule(t), self.schedule(s)
        denoised, shrink = self.denoised(x, t, s, labels), sigma_s / sigma_t
        return per_image(shrink, x) * x + per_image(alpha_s - shrink * alpha_t, x) * denoised

    def denoised(self, x: Tensor, t: Tensor, s: Tensor, *conditions: Tensor | None) -> Tensor:
        """Return D(x, t, s); arguments as in `predict`."""
        _, c_skip, c_out = self.denoiser.parameterization.coefficients(*self.schedule(t))
        return per_image(c_skip, x) * x + per_image(c_out, x) * self.predict(x, t, s, *conditions)

    def predict(self, x: Tensor, t: Tensor, s: Tensor, *conditions: Tensor | None) -> Tensor:
        """Return the output of the network, F of its parameterization, in the data type of x.

        Args:
            x: States x_t, (N, ...).
            t: Times of the states, 0-d or (N,), float64.
            s: Times that the map leads to, 0-d or (N,), float64.
            conditions: Labels and augmentation labels, as the network takes them.
        """
        network, parameterization = self.denoiser.network, self.denoiser.parameterization
        alpha, sigma = self.schedule(t)
        c_noise = parameterization.c_noise(t, alpha, sigma).expand(len(x))
        if self.two_times:
            c_noise = torch.stack([c_noise, c_noise - parameterization.c_noise(s, *self.schedule(s))], 1)
        parameter = next(network.parameters(), None) if isinstance(network, nn.Module) else None
        dtype = x.dtype if parameter is None else parameter.dtype
        c_noise = c_noise.to(x.device, torch.promote_types(dtype, torch.float32))
        c_in = parameterization.c_in(alpha, sigma)
        output: Tensor = network((per_image(c_in, x) * x).to(dtype), c_noise, *conditions).to(x.dtype)
        return output


def condition_on_span(network: nn.Module) -> nn.Module:
    """Condition a network on a second time and return it.

    Raises:
        UserError: If the network does not support it.
    """
    if not hasattr(network, "condition_on_span"):
        raise UserError(
            f"model.network: {type(network).__name__} is conditioned on one time; choose UNet, DiT or ResidualMLP"
        )
    network.condition_on_span()  # type: ignore[operator]
    return network


def _double(value: Tensor | float) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64)
