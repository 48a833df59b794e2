r"""Samplers: rules that carry x from time t to an earlier time s.

With x = alpha_t x_0 + sigma_t eps, D = E[x_0 | x] from the denoiser and eps_hat = (x - alpha_t D) / sigma_t:

- `DDPM` draws from the posterior p(x_s | x_t, x_0 = D).
- `DDIM` re-noises D to time s with eps_hat, a part of which it replaces by fresh noise.
- `Euler` and `Heun` integrate the probability-flow ODE dx/dt = alpha'(t) D + sigma'(t) eps_hat.

The grid, the solver, the noise, the coordinates of the ODE and the model are independent: any combination runs. A step
keeps no state. At the last step, to sigma = 0, all of them return D.
"""

import math
from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
from torch import Tensor

from lit_gen.diffusion.denoisers import Denoiser
from lit_gen.diffusion.grids import Grid, Karras, describe
from lit_gen.diffusion.schedules import Schedule
from lit_gen.errors import UserError
from lit_gen.noise import Noise

DEFAULT_NFE = 50


class Sampler(ABC):
    """A solver on a grid.

    Args:
        steps: number of steps. Give this or `nfe`.
        nfe: budget of network evaluations: as many steps as fit are made. Default: 50, if no `steps` are given.
        grid: where the steps lie. Default: `Karras()`.

    Raises:
        UserError: both of steps and nfe are given, or fewer than 1.
    """

    def __init__(self, steps: int | None = None, nfe: int | None = None, grid: Grid | None = None) -> None:
        if steps is not None and nfe is not None:
            raise UserError("give the sampler either steps or nfe, not both")
        if steps is None:
            budget = DEFAULT_NFE if nfe is None else nfe
            if budget < 1:
                raise UserError(f"the sampler's nfe must be at least 1, not {nfe}")
            steps = self.steps_within(budget)
        if steps < 1:
            raise UserError(f"the sampler's steps must be at least 1, not {steps}")
        self.steps = steps
        self.grid = Karras() if grid is None else grid

    @staticmethod
    def steps_within(nfe: int) -> int:
        """The most steps that need no more than nfe network evaluations, at least 1."""
        return nfe

    def to_dict(self) -> dict[str, Any]:
        """The settings as {"name": "DDIM", "steps": 10, "grid": {"name": "Karras", ...}, ...}; a budget as steps."""
        return describe(self, leave_out="nfe")

    @abstractmethod
    def step(
        self,
        denoiser: Denoiser,
        schedule: Schedule,
        x: Tensor,
        t: float,
        s: float,
        noise: Noise,
        labels: Tensor | None = None,
    ) -> Tensor:
        """x_s from x_t.

        Args:
            denoiser: of the model.
            schedule: in whose time and scale x is.
            x: x_t, (N, ...).
            t: the present time.
            s: the next time, in [0, t).
            noise: from which random numbers are drawn, if the step needs any.
            labels: classes (N,) for a conditional model.
        """

    @torch.no_grad()
    def sample(
        self,
        denoiser: Denoiser,
        schedule: Schedule,
        noise: Noise,
        shape: tuple[int, ...],
        labels: Tensor | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> Tensor:
        r"""Samples x_0, (N, \*shape), for the N indices of the noise.

        Starts at sigma(t_0) eps with the first draw of the noise, at the first time t_0 of the grid.

        Args:
            denoiser: of the model.
            schedule: that of the model, on which the grid is laid.
            noise: the source of all random numbers.
            shape: of one image.
            labels: classes (N,) for a conditional model.
            dtype: of the state x; the denoiser casts for its network.
        """
        times = self.grid(schedule, self.steps).tolist()
        x = schedule(times[0])[1] * noise.normal(shape, dtype)
        for t, s in zip(times[:-1], times[1:], strict=True):
            x = self.step(denoiser, schedule, x, t, s, noise, labels)
        return x


class DDPM(Sampler):
    r"""Ancestral sampling: x_s is drawn from p(x_s | x_t, x_0 = D).

    With a = alpha_t / alpha_s and v = sigma_t^2 - a^2 sigma_s^2, the forward transition is x_t = a x_s + N(0, v I), and

        mean = (a sigma_s^2 x_t + alpha_s v D) / sigma_t^2.

    - small: the variance is that of the posterior, v sigma_s^2 / sigma_t^2 (beta tilde), right for data at one point.
      It is DDIM with eta = 1.
    - large: the variance is v (alpha_s^2 + sigma_s^2) / (alpha_t^2 + sigma_t^2), that of x_s given x_t for data from
      N(0, I). On a variance-preserving schedule it is v = 1 - alpha_bar_t / alpha_bar_s, the beta of the respaced
      chain; this form of it commutes with a rescaling of x, so that it means the same on every schedule.

    Paper: Ho et al. 2020, https://arxiv.org/abs/2006.11239

    Args:
        steps: number of steps. Give this or `nfe`.
        nfe: budget of network evaluations (one for each step). Default: 50, if no `steps` are given.
        grid: where the steps lie. Default: `Karras()`.
        variance: of the noise that a step adds. Large, as in the paper, is for a step at each time that the model was
            trained on (a thousand); small is better at few steps.
    """

    def __init__(
        self,
        steps: int | None = None,
        nfe: int | None = None,
        grid: Grid | None = None,
        variance: Literal["small", "large"] = "large",
    ) -> None:
        super().__init__(steps, nfe, grid)
        if variance not in ("small", "large"):
            raise UserError(f"variance of the sampler DDPM must be small or large, not {variance!r}")
        self.variance = variance

    def step(
        self,
        denoiser: Denoiser,
        schedule: Schedule,
        x: Tensor,
        t: float,
        s: float,
        noise: Noise,
        labels: Tensor | None = None,
    ) -> Tensor:
        alpha_t, sigma_t = schedule(t)
        alpha_s, sigma_s = schedule(s)
        a = alpha_t / alpha_s
        v = sigma_t**2 - (a * sigma_s) ** 2
        denoised = denoiser(x, alpha_t, sigma_t, labels)
        mean = a * sigma_s**2 / sigma_t**2 * x + alpha_s * v / sigma_t**2 * denoised
        if sigma_s == 0:
            return mean
        if self.variance == "small":
            variance = v * sigma_s**2 / sigma_t**2
        else:
            variance = v * (alpha_s**2 + sigma_s**2) / (alpha_t**2 + sigma_t**2)
        return mean + variance.sqrt() * noise.normal(x.shape[1:], x.dtype)


class DDIM(Sampler):
    r"""Re-noises the estimate of x_0 to time s.

        x_s = alpha_s D + sqrt(sigma_s^2 - c^2) eps_hat + c N(0, I),
        c = eta sigma_s sqrt(1 - (alpha_t sigma_s / (alpha_s sigma_t))^2).

    Paper: Song et al. 2020, https://arxiv.org/abs/2010.02502

    Args:
        steps: number of steps. Give this or `nfe`.
        nfe: budget of network evaluations (one for each step). Default: 50, if no `steps` are given.
        grid: where the steps lie. Default: `Karras()`.
        eta: share of fresh noise: 0 is deterministic, 1 is `DDPM` with small variance.
    """

    def __init__(
        self, steps: int | None = None, nfe: int | None = None, grid: Grid | None = None, eta: float = 0.0
    ) -> None:
        super().__init__(steps, nfe, grid)
        if not 0 <= eta <= 1:
            raise UserError(f"eta of the sampler DDIM must lie in [0, 1], not {eta}")
        self.eta = eta

    def step(
        self,
        denoiser: Denoiser,
        schedule: Schedule,
        x: Tensor,
        t: float,
        s: float,
        noise: Noise,
        labels: Tensor | None = None,
    ) -> Tensor:
        alpha_t, sigma_t = schedule(t)
        alpha_s, sigma_s = schedule(s)
        fresh = self.eta * sigma_s * (1 - (alpha_t * sigma_s / (alpha_s * sigma_t)) ** 2).sqrt()
        kept = (sigma_s**2 - fresh**2).sqrt()
        denoised = denoiser(x, alpha_t, sigma_t, labels)
        x = kept / sigma_t * x + (alpha_s - kept * alpha_t / sigma_t) * denoised
        return x + fresh * noise.normal(x.shape[1:], x.dtype) if fresh > 0 else x


def _coordinates(name: str, alpha: Tensor, sigma: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """The pair (scale, level) for which y = x / scale obeys dy / dlevel = (y - D) / level on the probability flow.

    - sigma: y = x_0 + level eps, level = sigma / alpha.
    - rectified: y = (1 - level) x_0 + level eps, level = sigma / (alpha + sigma).
    """
    if name == "rectified":
        return alpha + sigma, sigma / (alpha + sigma)
    if alpha == 0:
        raise UserError(
            f"the grid {type(grid).__name__} starts at pure noise (alpha = 0), where sigma / alpha is infinite:"
            " give the sampler the coordinates rectified, or the grid Karras"
        )
    return alpha, sigma / alpha


class Euler(Sampler):
    r"""First-order integration of the probability-flow ODE.

    In the coordinates sigma and rectified, y <- y + (level_s - level_t) (y - D) / level_t with y = x / scale. The two
    give the same x_s, and both equal DDIM with eta = 0 on the same grid. In the time of the schedule,
    x <- x + (s - t) (alpha'(t) D + sigma'(t) eps_hat) is another discretisation, unless the schedule's own path is one
    of the two.

    Papers: Song et al. 2021, https://arxiv.org/abs/2011.13456; Liu et al. 2022, https://arxiv.org/abs/2209.03003

    Args:
        steps: number of steps. Give this or `nfe`.
        nfe: budget of network evaluations (one for each step). Default: 50, if no `steps` are given.
        grid: where the steps lie. Default: `Karras()`.
        coordinates: in which the ODE is integrated: sigma (x_0 + sigma eps), rectified ((1 - u) x_0 + u eps) or
            schedule (the model's own time and scale).
    """

    def __init__(
        self,
        steps: int | None = None,
        nfe: int | None = None,
        grid: Grid | None = None,
        coordinates: Literal["sigma", "rectified", "schedule"] = "rectified",
    ) -> None:
        super().__init__(steps, nfe, grid)
        if coordinates not in ("sigma", "rectified", "schedule"):
            raise UserError(
                f"coordinates of the sampler Euler must be sigma, rectified or schedule, not {coordinates!r}"
            )
        self.coordinates = coordinates

    def step(
        self,
        denoiser: Denoiser,
        schedule: Schedule,
        x: Tensor,
        t: float,
        s: float,
        noise: Noise,
        labels: Tensor | None = None,
    ) -> Tensor:
        alpha_t, sigma_t = schedule(t)
        alpha_s, sigma_s = schedule(s)
        denoised = denoiser(x, alpha_t, sigma_t, labels)
        if self.coordinates == "schedule":
            if sigma_s == 0:  # sigma' may be infinite at the data, and a straight line would leave noise behind
                return denoised
            d_alpha, d_sigma = schedule.derivatives(t)
            return x + (s - t) * (d_alpha * denoised + d_sigma / sigma_t * (x - alpha_t * denoised))
        scale_t, level_t = _coordinates(self.coordinates, alpha_t, sigma_t, self.grid)
        scale_s, level_s = _coordinates(self.coordinates, alpha_s, sigma_s, self.grid)
        y = x / scale_t
        return scale_s * (y + (level_s - level_t) / level_t * (y - denoised))


class Heun(Sampler):
    r"""EDM's Algorithm 2: Heun's second-order rule with churn.

    A step first raises the noise level sigma by the factor 1 + gamma with fresh noise of standard deviation S_noise,
    keeping alpha; gamma = min(S_churn / steps, sqrt(2) - 1) where sigma / alpha lies in [S_min, S_max], and else 0.
    Then

        y' = y + (level_s - level_t) d(y, level_t),
        y <- y + (level_s - level_t) (d(y, level_t) + d(y', level_s)) / 2,

    with d = (y - D) / level and y = x / scale. The last step is Euler's, so that N steps take 2 N - 1 network
    evaluations. Without churn it is deterministic and draws no noise.

    Paper: Karras et al. 2022, https://arxiv.org/abs/2206.00364

    Args:
        steps: number of steps. Give this or `nfe`.
        nfe: budget of network evaluations (two for each step, one for the last). Default: 50, if no `steps` are given.
        grid: where the steps lie. Default: `Karras()`.
        S_churn: total amount of churn, shared among the steps.
        S_min: no churn at noise levels below this.
        S_max: no churn at noise levels above this.
        S_noise: standard deviation of the fresh noise; slightly above 1 makes up for detail lost.
        coordinates: in which the ODE is integrated: sigma, as in EDM, or rectified ((1 - u) x_0 + u eps), which can
            start at alpha = 0.
    """

    def __init__(
        self,
        steps: int | None = None,
        nfe: int | None = None,
        grid: Grid | None = None,
        S_churn: float = 0.0,
        S_min: float = 0.0,
        S_max: float = math.inf,
        S_noise: float = 1.0,
        coordinates: Literal["sigma", "rectified"] = "sigma",
    ) -> None:
        super().__init__(steps, nfe, grid)
        if coordinates not in ("sigma", "rectified"):
            raise UserError(f"coordinates of the sampler Heun must be sigma or rectified, not {coordinates!r}")
        if S_churn < 0:
            raise UserError(f"S_churn of the sampler Heun must be at least 0, not {S_churn}")
        self.S_churn = S_churn
        self.S_min = S_min
        self.S_max = S_max
        self.S_noise = S_noise
        self.coordinates = coordinates

    @staticmethod
    def steps_within(nfe: int) -> int:
        return (nfe + 1) // 2

    def step(
        self,
        denoiser: Denoiser,
        schedule: Schedule,
        x: Tensor,
        t: float,
        s: float,
        noise: Noise,
        labels: Tensor | None = None,
    ) -> Tensor:
        alpha_t, sigma_t = schedule(t)
        alpha_s, sigma_s = schedule(s)
        gamma = min(self.S_churn / self.steps, math.sqrt(2) - 1)
        if gamma > 0 and self.S_min <= sigma_t / alpha_t <= self.S_max:
            fresh = self.S_noise * ((1 + gamma) ** 2 - 1) ** 0.5 * sigma_t
            x = x + fresh * noise.normal(x.shape[1:], x.dtype)
            sigma_t = (1 + gamma) * sigma_t
        scale_t, level_t = _coordinates(self.coordinates, alpha_t, sigma_t, self.grid)
        scale_s, level_s = _coordinates(self.coordinates, alpha_s, sigma_s, self.grid)
        y = x / scale_t
        slope = (y - denoiser(x, alpha_t, sigma_t, labels)) / level_t
        y_s = y + (level_s - level_t) * slope
        if level_s > 0:
            slope_s = (y_s - denoiser(scale_s * y_s, alpha_s, sigma_s, labels)) / level_s
            y_s = y + (level_s - level_t) / 2 * (slope + slope_s)
        return scale_s * y_s
