r"""Sampling with a flow map X: one evaluation per step, from any time to any other.

    x_s = X(x_t, t, s)                                                        noise = 0
    x_s = alpha_s (X(x_t, t, r) / alpha_r + noise rho_s eps)                  noise > 0

with the level rho = sigma / alpha, and r the time of the level sqrt(1 - noise^2) rho_s. The map goes below s, and fresh
noise leads back up to it. If X is exact, both rules keep the marginals. With noise = 1 every step goes to the data, as
in multistep consistency sampling; a consistency model learns nothing else.

Papers: Song et al. 2023, https://arxiv.org/abs/2303.01469 (algorithm 1); Kim et al. 2023,
https://arxiv.org/abs/2310.02279 (gamma-sampling)
"""

import math
from itertools import pairwise

import torch
from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.families.diffusion.flow_maps import FlowMap
from lit_gen.families.diffusion.grids import Grid, UniformAngle
from lit_gen.families.settings import Sampler


class FlowMapSampler(Sampler):
    """Steps of a flow map, by the rule at the top of this module.

    Args:
        steps: Number of steps. Give this, `nfe` or `levels`. Default: 1.
        nfe: Number of network evaluations, one per step.
        levels: Noise levels sigma / alpha between t = 1 and the data at which steps begin, decreasing: n levels give
            n + 1 steps.
        grid: Grid of the steps. Default: `UniformAngle()`.
        noise: Share of each step's noise that is fresh, from 0 (deterministic) to 1. Default: 0, or 1 for a map that
            only leads to the data.

    Raises:
        UserError: If several of steps, nfe, levels and grid exclude each other, or a value is out of range.
    """

    def __init__(
        self,
        steps: int | None = None,
        nfe: int | None = None,
        levels: tuple[float, ...] | None = None,
        grid: Grid | None = None,
        noise: float | None = None,
    ) -> None:
        given = [name for name, value in (("steps", steps), ("nfe", nfe), ("levels", levels)) if value is not None]
        if len(given) > 1 or (levels is not None and grid is not None):
            both = " and ".join(given if len(given) > 1 else ["levels", "grid"])
            raise UserError(f"sampler.{given[0]}: {both} exclude each other; give one of them")
        num = len(levels) + 1 if levels is not None else next((n for n in (steps, nfe) if n is not None), 1)
        if num < 1:
            raise UserError(f"sampler.{given[0]}: {num} is not a number of steps; give 1 or more")
        if levels is not None and not all(math.inf > high > low for high, low in pairwise((*levels, 0.0))):
            raise UserError(f"sampler.levels: {list(levels)} do not decrease to above 0; give such noise levels")
        if noise is not None and not 0 <= noise <= 1:
            raise UserError(f"sampler.noise: {noise} is not a share of the noise; give a number in [0, 1]")
        self.steps = num
        self.levels = levels
        self.grid = None if levels is not None else grid or UniformAngle()
        self.noise = noise

    def times(self, flow_map: FlowMap) -> list[float]:
        """Return the times of the steps, from the first to exactly 0.

        Raises:
            UserError: If a level is not below that of t = 1.
        """
        schedule = flow_map.schedule
        if self.levels is None:
            assert self.grid is not None
            times: list[float] = self.grid(schedule, self.steps).tolist()
            return times
        if self.levels and self.levels[0] >= schedule.max_ratio:
            raise UserError(
                f"sampler.levels: {self.levels[0]:g} is not below {schedule.max_ratio:g}, the level of t = 1; give "
                "smaller levels"
            )
        between: list[float] = schedule.time(torch.tensor(self.levels, dtype=torch.float64)).tolist()
        return [1.0, *between, 0.0]

    @torch.no_grad()
    def sample(
        self,
        flow_map: FlowMap,
        noise: Noise,
        shape: tuple[int, ...],
        labels: Tensor | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> Tensor:
        r"""Sample x_0, (N, \*shape), for the N indices of the noise.

        Args:
            flow_map: The map.
            noise: Source of all random numbers; the first draw is the initial state.
            shape: Shape of one image.
            labels: Classes (N,) for a conditional map.
            dtype: Data type of the state.
        """
        times = self.times(flow_map)
        x = flow_map.schedule(times[0])[1] * noise.normal(shape, dtype)
        for t, s in pairwise(times):
            x = self.step(flow_map, x, t, s, noise, labels)
        return x

    def step(self, flow_map: FlowMap, x: Tensor, t: float, s: float, noise: Noise, labels: Tensor | None) -> Tensor:
        """Return x_s from x_t; the last step, to s = 0, adds no noise."""
        fresh = flow_map.fresh if self.noise is None else self.noise
        if fresh == 0 or s == 0:
            return flow_map(x, t, s, labels)
        schedule = flow_map.schedule
        level = schedule.ratio(s)
        below = schedule.time(math.sqrt(1 - fresh**2) * level)
        x = flow_map(x, t, below, labels)
        return schedule(s)[0] * (x / schedule(below)[0] + fresh * level * noise.normal(x.shape[1:], x.dtype))
