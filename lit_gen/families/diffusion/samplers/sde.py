r"""Reverse SDEs: a family with the marginals of the probability-flow ODE, one for each diffusion coefficient g."""

from typing import Any, Literal

import torch
from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.families.diffusion.denoisers import Denoiser
from lit_gen.families.diffusion.samplers.base import GridSampler
from lit_gen.families.diffusion.samplers.ode import scale_and_level
from lit_gen.families.diffusion.schedules import Schedule, level_at


class EulerMaruyama(GridSampler):
    r"""Euler-Maruyama integration of the reverse SDE, for any g.

    For every g(t) >= 0, the SDE

        dx = (the increment of the probability flow) + g^2 / 2 score |dt| + g sqrt(|dt|) N(0, I)

    run from noise to data has the marginals of the flow. With dalpha and dsigma over a step, from t to s, and
    v = g^2 |dt|, a step is

        x <- x + dalpha D + (dsigma - v / (2 sigma)) eps_hat + sqrt(v) N(0, I).

    Here g is noise_scale times that of the forward process, v = 2 sigma (sigma dalpha / alpha - dsigma): noise_scale 0
    is `Euler` in the same coordinates, and 1 is the reverse SDE of Song et al. All schedules have the same forward
    process between two noise levels, so noise_scale means the same on every schedule and in all coordinates. The last
    step, to sigma = 0, returns D; a plain step would overshoot, because its v is not small compared to sigma^2.

    A step multiplies the noise in x by about 1 - (1 + noise_scale^2) (1 - sigma_s / sigma_t). In the coordinates sigma
    it is stable up to noise_scale = 1 on any grid; more noise needs more steps.

    Paper: Song et al. 2021, https://arxiv.org/abs/2011.13456; damped as in Ma et al. 2024,
    https://arxiv.org/abs/2401.08740

    Args:
        noise_scale: g in units of that of the forward process; 0 is deterministic and uses no noise.
        g: Shape of g over time: forward is that of the forward process; damped multiplies g^2 by
            alpha / (alpha + sigma), which gives g^2 = 2 u on the path (1 - u) x_0 + u eps and is finite at pure noise.
        coordinates: Coordinates of the step: sigma (x_0 + sigma eps), rectified ((1 - u) x_0 + u eps), or schedule (the
            model's own time and scale, as in the paper). With the first two, the same noise levels give the same images
            on every schedule.

    Raises:
        UserError: If an option is not one of its choices or is out of range.
    """

    def __init__(
        self,
        noise_scale: float = 1.0,
        g: Literal["forward", "damped"] = "forward",
        coordinates: Literal["sigma", "rectified", "schedule"] = "sigma",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if noise_scale < 0:
            raise UserError(f"sampler.noise_scale: {noise_scale} is not an amount of noise; give 0 or more")
        if g not in ("forward", "damped"):
            raise UserError(f"sampler.g: {g!r} is not a diffusion coefficient; choose forward or damped")
        if coordinates not in ("sigma", "rectified", "schedule"):
            raise UserError(
                f"sampler.coordinates: {coordinates!r} are not coordinates; choose sigma, rectified or schedule"
            )
        self.noise_scale = noise_scale
        self.g = g
        self.coordinates = coordinates

    def step(self, denoiser: Denoiser, schedule: Schedule, x: Tensor, t: float, s: float, noise: Noise) -> Tensor:
        alpha, sigma = level_at(schedule, t)
        alpha_s, sigma_s = level_at(schedule, s)
        denoised = denoiser(x, alpha, sigma)
        if sigma_s == 0:
            return denoised
        if self.coordinates == "schedule":
            scale_t = scale_s = torch.ones_like(alpha)
            d_alpha, d_sigma = ((s - t) * rate for rate in schedule.derivatives(t))
        else:
            scale_t, sigma = scale_and_level(self.coordinates, alpha, sigma, self.grid)
            scale_s, level_s = scale_and_level(self.coordinates, alpha_s, sigma_s, self.grid)
            alpha, alpha_s = alpha / scale_t, alpha_s / scale_s
            d_alpha, d_sigma = alpha_s - alpha, level_s - sigma
        v = self._variance(alpha, sigma, d_alpha, d_sigma) if self.noise_scale > 0 else 0 * sigma
        of_eps = (d_sigma - v / (2 * sigma)) / sigma
        x = scale_s / scale_t * (1 + of_eps) * x + scale_s * (d_alpha - of_eps * alpha) * denoised
        return x + scale_s * v.sqrt() * noise.normal(x.shape[1:], x.dtype) if v > 0 else x

    def _variance(self, alpha: Tensor, sigma: Tensor, d_alpha: Tensor, d_sigma: Tensor) -> Tensor:
        """Return v = g^2 |dt|."""
        if self.g == "forward" and alpha == 0:
            raise UserError(
                f"sampler.grid: {type(self.grid).__name__} starts at pure noise (alpha = 0), at which g of the forward "
                "process is infinite; choose the g damped, or the grid Karras"
            )
        norm = alpha if self.g == "forward" else alpha + sigma
        return self.noise_scale**2 * 2 * sigma * (sigma * d_alpha - alpha * d_sigma) / norm
