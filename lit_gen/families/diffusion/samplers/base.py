"""Base classes of the samplers: times, the loop over them, and a record of their settings."""

import copy
from abc import abstractmethod
from collections import deque
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.families.diffusion.denoisers import Denoiser, DenoiserFunction, FunctionDenoiser
from lit_gen.families.diffusion.grids import Grid, Karras
from lit_gen.families.diffusion.guidance import Guidance
from lit_gen.families.diffusion.schedules import Schedule, level_at
from lit_gen.families.settings import Sampler

DEFAULT_NFE = 50


def finite_ratio(alpha: Tensor, sigma: Tensor, grid: Grid, remedy: str = "choose the grid Karras") -> Tensor:
    """Return sigma / alpha, the noise level in units of the data.

    Args:
        alpha: Scale of the data, 0-d.
        sigma: Scale of the noise, 0-d.
        grid: Grid of the times, for the error message.
        remedy: Advice of the error message.

    Raises:
        UserError: If alpha is 0 (pure noise), at which the ratio is infinite.
    """
    if alpha == 0:
        raise UserError(
            f"sampler.grid: {type(grid).__name__} starts at pure noise (alpha = 0), at which sigma / alpha is "
            f"infinite; {remedy}"
        )
    return sigma / alpha


class DiffusionSampler(Sampler):
    """Rule that transforms noise to data.

    Args:
        schedule: Schedule of the sampler's time and scale. Default: the schedule of the model. Any other schedule is
            valid, since a denoiser accepts every alpha and sigma; grids in sigma stay within the levels of training.
        guidance: Guidance by a weaker denoiser. Default: none.
    """

    def __init__(self, schedule: Schedule | None = None, guidance: Guidance | None = None) -> None:
        self.schedule = schedule
        self.guidance = guidance

    def guided(self, guidance: Guidance | None) -> Self:
        """Return this sampler with another guidance, and the same number of steps."""
        other = copy.copy(self)
        other.guidance = guidance
        return other

    @abstractmethod
    def times(self, schedule: Schedule) -> list[float]:
        """Return the decreasing times of the trajectory, from that of the initial noise to exactly 0."""

    @abstractmethod
    def integrate(
        self, denoiser: Denoiser, schedule: Schedule, x: Tensor, times: list[float], noise: Noise
    ) -> Iterator[tuple[float, Tensor]]:
        """Yield (s, x_s) at all times except the first, from x at times[0] to times[-1] = 0."""

    def trajectory(
        self,
        denoiser: Denoiser | DenoiserFunction,
        schedule: Schedule,
        noise: Noise,
        shape: tuple[int, ...],
        labels: Tensor | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> Iterator[tuple[float, Tensor]]:
        """Yield (t, x_t) at all `times`, including the first and t = 0; arguments as in `sample`."""
        denoiser = denoiser if isinstance(denoiser, Denoiser) else FunctionDenoiser(denoiser)
        schedule = schedule if self.schedule is None else self.schedule.with_levels_of(schedule)
        times = self.times(schedule)
        x = level_at(schedule, times[0])[1] * noise.normal(shape, dtype)
        yield times[0], x
        given = denoiser.given(labels) if self.guidance is None else self.guidance(denoiser, labels)
        yield from self.integrate(given, schedule, x, times, noise)

    @torch.no_grad()
    def sample(
        self,
        denoiser: Denoiser | DenoiserFunction,
        schedule: Schedule,
        noise: Noise,
        shape: tuple[int, ...],
        labels: Tensor | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> Tensor:
        r"""Sample x_0, (N, \*shape), for the N indices of the noise.

        The initial state is sigma(t_0) eps at the first of `times`, with the first random numbers of the noise.

        Args:
            denoiser: Denoiser of the model, or any function (x, alpha, sigma, labels) -> E[x_0 | x]. A
                `FunctionDenoiser` of the function counts its evaluations.
            schedule: Schedule of the model, used for the times unless the sampler has its own.
            noise: Source of all random numbers.
            shape: Shape of one image.
            labels: Classes (N,) for a conditional model.
            dtype: Data type of the state x; the denoiser casts for its network.
        """
        states = (x for _, x in self.trajectory(denoiser, schedule, noise, shape, labels, dtype))
        return deque(states, maxlen=1)[0]


class GridSampler(DiffusionSampler):
    """Sampler with one step between consecutive times of a grid.

    Args:
        steps: Number of steps. Give this or `nfe`.
        nfe: Budget of network evaluations: the sampler takes as many steps as fit, counting every step as guided if
            there is guidance. Default: 50 if `steps` is not given.
        grid: Grid of the steps. Default: `Karras()`.

    Raises:
        UserError: If both steps and nfe are given, either is below 1, or the budget allows no step.
    """

    def __init__(
        self, steps: int | None = None, nfe: int | None = None, grid: Grid | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if steps is not None and nfe is not None:
            raise UserError(f"sampler.steps: {steps} steps and an nfe of {nfe} exclude each other; give one, not both")
        if steps is None:
            budget = DEFAULT_NFE if nfe is None else nfe
            if budget < 1:
                raise UserError(f"sampler.nfe: {nfe} is not a number of evaluations; give 1 or more")
            steps = self.steps_within(budget if self.guidance is None else budget // self.guidance.evaluations)
            if steps < 1:
                raise UserError(f"sampler.nfe: {budget} is too small for one step of {type(self).__name__}; give more")
        if steps < 1:
            raise UserError(f"sampler.steps: {steps} is not a number of steps; give 1 or more")
        self.steps = steps
        self.grid = Karras() if grid is None else grid

    def steps_within(self, nfe: int) -> int:
        """Return the maximum number of steps within nfe network evaluations, 0 if not even one fits."""
        return nfe

    def times(self, schedule: Schedule) -> list[float]:
        times: list[float] = self.grid(schedule, self.steps).tolist()
        return times

    @abstractmethod
    def step(self, denoiser: Denoiser, schedule: Schedule, x: Tensor, t: float, s: float, noise: Noise) -> Tensor:
        """Return x_s from x_t.

        Args:
            denoiser: Denoiser of the model, with its labels.
            schedule: Schedule of the time and scale of x.
            x: State x_t, (N, ...).
            t: Current time.
            s: Next time, in [0, t).
            noise: Source of random numbers, if the step needs any.
        """

    def integrate(
        self, denoiser: Denoiser, schedule: Schedule, x: Tensor, times: list[float], noise: Noise
    ) -> Iterator[tuple[float, Tensor]]:
        for t, s in pairwise(times):
            x = self.step(denoiser, schedule, x, t, s, noise)
            yield s, x
