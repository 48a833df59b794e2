r"""Fixed-step integration of the probability-flow ODE dx/dt = alpha'(t) D + sigma'(t) eps_hat: Euler and Heun."""

import math
from typing import Any, Literal

from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.families.diffusion.denoisers import Denoiser
from lit_gen.families.diffusion.grids import Grid
from lit_gen.families.diffusion.samplers.base import GridSampler, finite_ratio
from lit_gen.families.diffusion.schedules import Schedule, level_at


def scale_and_level(name: str, alpha: Tensor, sigma: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Return (scale, level) for which y = x / scale obeys dy / dlevel = (y - D) / level on the probability flow.

    - sigma: y = x_0 + level eps, level = sigma / alpha.
    - rectified: y = (1 - level) x_0 + level eps, level = sigma / (alpha + sigma).

    Args:
        name: Coordinates, sigma or rectified.
        alpha: Scale of the data, 0-d.
        sigma: Scale of the noise, 0-d.
        grid: Grid of the times, for the error message.

    Raises:
        UserError: If the coordinates are sigma and alpha is 0.
    """
    if name == "rectified":
        return alpha + sigma, sigma / (alpha + sigma)
    remedy = "choose the coordinates rectified, or the grid Karras"
    return alpha, finite_ratio(alpha, sigma, grid, remedy)


class Euler(GridSampler):
    r"""First-order integration of the probability-flow ODE.

    In the coordinates sigma and rectified, y <- y + (level_s - level_t) (y - D) / level_t with y = x / scale. Both give
    the same x_s as DDIM with eta = 0 on the same grid. In the time of the schedule,
    x <- x + (s - t) (alpha'(t) D + sigma'(t) eps_hat) is a different discretisation, unless the schedule's path is one
    of these two.

    Papers: Song et al. 2021, https://arxiv.org/abs/2011.13456; Liu et al. 2022, https://arxiv.org/abs/2209.03003

    Args:
        coordinates: Coordinates of the ODE: sigma (x_0 + sigma eps), rectified ((1 - u) x_0 + u eps) or schedule (the
            model's own time and scale).

    Raises:
        UserError: If coordinates is not one of these.
    """

    def __init__(self, coordinates: Literal["sigma", "rectified", "schedule"] = "rectified", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if coordinates not in ("sigma", "rectified", "schedule"):
            raise UserError(
                f"sampler.coordinates: {coordinates!r} are not coordinates; choose sigma, rectified or schedule"
            )
        self.coordinates = coordinates

    def step(self, denoiser: Denoiser, schedule: Schedule, x: Tensor, t: float, s: float, noise: Noise) -> Tensor:
        alpha_t, sigma_t = level_at(schedule, t)
        alpha_s, sigma_s = level_at(schedule, s)
        denoised = denoiser(x, alpha_t, sigma_t)
        if self.coordinates == "schedule":
            if sigma_s == 0:  # sigma' may be infinite at the data, and a straight line would leave noise behind
                return denoised
            d_alpha, d_sigma = schedule.derivatives(t)
            return x + (s - t) * (d_alpha * denoised + d_sigma / sigma_t * (x - alpha_t * denoised))
        scale_t, level_t = scale_and_level(self.coordinates, alpha_t, sigma_t, self.grid)
        scale_s, level_s = scale_and_level(self.coordinates, alpha_s, sigma_s, self.grid)
        y = x / scale_t
        return scale_s * (y + (level_s - level_t) / level_t * (y - denoised))


class Heun(GridSampler):
    r"""EDM's Algorithm 2: Heun's second-order rule with churn.

    A step first raises the noise level sigma by the factor 1 + gamma with fresh noise of standard deviation S_noise,
    at fixed alpha; gamma = min(S_churn / steps, sqrt(2) - 1) if sigma / alpha is in [S_min, S_max], and 0 otherwise.
    Then

        y' = y + (level_s - level_t) d(y, level_t),
        y <- y + (level_s - level_t) (d(y, level_t) + d(y', level_s)) / 2,

    with d = (y - D) / level and y = x / scale. The last step is an Euler step, so N steps take 2 N - 1 network
    evaluations. Without churn the sampler is deterministic and uses no noise.

    Paper: Karras et al. 2022, https://arxiv.org/abs/2206.00364

    Args:
        S_churn: Total amount of churn, divided among the steps.
        S_min: Smallest noise level with churn.
        S_max: Largest noise level with churn.
        S_noise: Standard deviation of the fresh noise; values slightly above 1 compensate for lost detail.
        coordinates: Coordinates of the ODE: sigma, as in EDM, or rectified ((1 - u) x_0 + u eps), which can start at
            alpha = 0.

    Raises:
        UserError: If an option is out of range.
    """

    def __init__(
        self,
        S_churn: float = 0.0,
        S_min: float = 0.0,
        S_max: float = math.inf,
        S_noise: float = 1.0,
        coordinates: Literal["sigma", "rectified"] = "sigma",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if coordinates not in ("sigma", "rectified"):
            raise UserError(f"sampler.coordinates: {coordinates!r} are not coordinates; choose sigma or rectified")
        if not 0 <= S_churn < math.inf:
            raise UserError(f"sampler.S_churn: {S_churn} is not an amount of noise; give 0 or more")
        if not 0 < S_noise < math.inf:
            raise UserError(f"sampler.S_noise: {S_noise} is not a standard deviation; give a number above 0")
        if not 0 <= S_min <= S_max:
            raise UserError(
                f"sampler.S_min: no noise level is between {S_min} and sampler.S_max, {S_max}; give "
                "0 <= S_min <= S_max, or set sampler.S_churn to 0 for no churn"
            )
        self.S_churn = S_churn
        self.S_min = S_min
        self.S_max = S_max
        self.S_noise = S_noise
        self.coordinates = coordinates

    def steps_within(self, nfe: int) -> int:
        return (nfe + 1) // 2

    def step(self, denoiser: Denoiser, schedule: Schedule, x: Tensor, t: float, s: float, noise: Noise) -> Tensor:
        alpha_t, sigma_t = level_at(schedule, t)
        alpha_s, sigma_s = level_at(schedule, s)
        gamma = min(self.S_churn / self.steps, math.sqrt(2) - 1)
        if gamma > 0 and self.S_min <= sigma_t / alpha_t <= self.S_max:
            fresh = self.S_noise * ((1 + gamma) ** 2 - 1) ** 0.5 * sigma_t
            x = x + fresh * noise.normal(x.shape[1:], x.dtype)
            sigma_t = (1 + gamma) * sigma_t
        scale_t, level_t = scale_and_level(self.coordinates, alpha_t, sigma_t, self.grid)
        scale_s, level_s = scale_and_level(self.coordinates, alpha_s, sigma_s, self.grid)
        y = x / scale_t
        slope = (y - denoiser(x, alpha_t, sigma_t)) / level_t
        y_s = y + (level_s - level_t) * slope
        if level_s > 0:
            slope_s = (y_s - denoiser(scale_s * y_s, alpha_s, sigma_s)) / level_s
            y_s = y + (level_s - level_t) / 2 * (slope + slope_s)
        return scale_s * y_s
