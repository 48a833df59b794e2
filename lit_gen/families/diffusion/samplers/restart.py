r"""Restart sampling: the probability-flow ODE goes back up to a higher noise level by fresh noise, and down again.

With y = x / alpha and the noise level r = sigma / alpha, at the level r_low of the grid nearest to `low`, `repeats`
times:

    y <- y + sqrt(high^2 - r_low^2) N(0, I)         at the level `high`
    y <- Heun's rule in `interval_steps` steps from `high` to r_low, on a grid of Karras

The noise contracts errors that were made before, as in SDEs, and the ODE has small errors of its own. Exact steps
preserve the marginals.

Paper: Xu et al. 2023, https://arxiv.org/abs/2306.14878
"""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.families.diffusion.denoisers import Denoiser
from lit_gen.families.diffusion.grids import Karras
from lit_gen.families.diffusion.samplers.ode import Heun
from lit_gen.families.diffusion.schedules import Schedule, level_at


class Restart(Heun):
    """Heun's rule with restarts in one interval of noise levels, by the rule at the top of this module.

    N steps of the grid take 2 N - 1 + 2 repeats interval_steps network evaluations.

    Args:
        low: Level at which a restart begins; the nearest one of the grid is used.
        high: Level that the noise goes up to; at most the largest level of training.
        interval_steps: Number of steps down from `high`.
        repeats: Number of restarts; 0 gives `Heun`.
        S_noise: Standard deviation of the fresh noise.
        coordinates: Coordinates of the ODE, as for `Heun`.

    Raises:
        UserError: If an option is out of range.
    """

    def __init__(
        self,
        low: float = 0.06,
        high: float = 0.3,
        interval_steps: int = 2,
        repeats: int = 4,
        S_noise: float = 1.0,
        coordinates: Literal["sigma", "rectified"] = "sigma",
        **kwargs: Any,
    ) -> None:
        if not 0 < low < high < math.inf:
            raise UserError(
                f"sampler.low: {low} to sampler.high {high} is not a range of noise levels; give 0 < low < high"
            )
        if interval_steps < 1:
            raise UserError(f"sampler.interval_steps: {interval_steps} is not a number of steps; give 1 or more")
        if repeats < 0:
            raise UserError(f"sampler.repeats: {repeats} is not a number of restarts; give 0 or more")
        self.low = low
        self.high = high
        self.interval_steps = interval_steps
        self.repeats = repeats
        super().__init__(S_noise=S_noise, coordinates=coordinates, **kwargs)

    def steps_within(self, nfe: int) -> int:
        return super().steps_within(nfe - 2 * self.repeats * self.interval_steps)

    def place(self, schedule: Schedule, times: list[float]) -> float:
        """Return the time of the grid at which restarts begin.

        Raises:
            UserError: If the level there is not below `high`.
        """
        levels = {time: float(schedule.ratio(time)) for time in times[1:-1]}
        place = min(levels, key=lambda time: abs(math.log(levels[time] / self.low)), default=None)
        if place is None or levels[place] >= min(self.high, schedule.max_ratio):
            raise UserError(
                f"sampler.high: no level of the grid near sampler.low, {self.low}, is below {self.high}; give a larger "
                "sampler.high, or more steps"
            )
        return place

    def integrate(
        self, denoiser: Denoiser, schedule: Schedule, x: Tensor, times: list[float], noise: Noise
    ) -> Iterator[tuple[float, Tensor]]:
        place = self.place(schedule, times) if self.repeats else None
        for t, s in pairwise(times):
            x = self.step(denoiser, schedule, x, t, s, noise)
            if s == place:
                for _ in range(self.repeats):
                    x = self._restart(denoiser, schedule, x, s, noise)
            yield s, x

    def _restart(self, denoiser: Denoiser, schedule: Schedule, x: Tensor, s: float, noise: Noise) -> Tensor:
        """Return x_s after one way up and down."""
        low, high = float(schedule.ratio(s)), min(self.high, schedule.max_ratio)
        fraction = torch.linspace(0, 1, self.interval_steps + 1, dtype=torch.float64)
        times = [*schedule.time(Karras().levels(fraction, low, high)).tolist()[:-1], s]
        fresh = self.S_noise * math.sqrt(high**2 - low**2) * noise.normal(x.shape[1:], x.dtype)
        x = level_at(schedule, times[0])[0] * (x / level_at(schedule, s)[0] + fresh)
        for t, following in pairwise(times):
            x = self.step(denoiser, schedule, x, t, following, noise)
        return x
