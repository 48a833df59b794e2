"""What all samplers share: times, a loop over them, and a record of their settings."""

from abc import abstractmethod
from collections import deque
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.families.diffusion.denoisers import Denoiser
from lit_gen.families.diffusion.grids import Grid, Karras
from lit_gen.families.diffusion.guidance import Guidance
from lit_gen.families.diffusion.schedules import Schedule
from lit_gen.families.settings import Sampler

DEFAULT_NFE = 50


def finite_ratio(alpha: Tensor, sigma: Tensor, grid: Grid, remedy: str = "give the sampler the grid Karras") -> Tensor:
    """sigma / alpha, the noise level in units of the data; a UserError at pure noise, where it is infinite."""
    if alpha == 0:
        raise UserError(
            f"the grid {type(grid).__name__} starts at pure noise (alpha = 0), where sigma / alpha is infinite:"
            f" {remedy}"
        )
    return sigma / alpha


class DiffusionSampler(Sampler):
    """A rule that carries noise to data.

    Args:
        schedule: in whose time and scale the sampler moves. Default: that of the model. Any other is right as well,
            since a denoiser answers for every alpha and sigma; grids in sigma keep to the levels of its training.
        guidance: away from what a weaker denoiser answers. Default: none.
    """

    def __init__(self, schedule: Schedule | None = None, guidance: Guidance | None = None) -> None:
        self.schedule = schedule
        self.guidance = guidance

    @abstractmethod
    def times(self, schedule: Schedule) -> list[float]:
        """The decreasing times at which the state is known, from the first, where noise is drawn, to exactly 0."""

    @abstractmethod
    def integrate(
        self, denoiser: Denoiser, schedule: Schedule, x: Tensor, times: list[float], noise: Noise
    ) -> Iterator[tuple[float, Tensor]]:
        """Yields (s, x_s) at all times but the first, from x at times[0] to times[-1] = 0."""

    def trajectory(
        self,
        denoiser: Denoiser,
        schedule: Schedule,
        noise: Noise,
        shape: tuple[int, ...],
        labels: Tensor | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> Iterator[tuple[float, Tensor]]:
        """Yields (t, x_t) at every one of `times`, the first and t = 0 included; arguments as in `sample`."""
        schedule = schedule if self.schedule is None else self.schedule.with_levels_of(schedule)
        times = self.times(schedule)
        x = schedule(times[0])[1] * noise.normal(shape, dtype)
        yield times[0], x
        given = denoiser.given(labels) if self.guidance is None else self.guidance(denoiser, labels)
        yield from self.integrate(given, schedule, x, times, noise)

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

        Starts at sigma(t_0) eps with the first draw of the noise, at the first of `times`.

        Args:
            denoiser: of the model.
            schedule: that of the model, on which the times are laid unless the sampler has its own.
            noise: the source of all random numbers.
            shape: of one image.
            labels: classes (N,) for a conditional model.
            dtype: of the state x; the denoiser casts for its network.
        """
        states = (x for _, x in self.trajectory(denoiser, schedule, noise, shape, labels, dtype))
        return deque(states, maxlen=1)[0]


class GridSampler(DiffusionSampler):
    """A sampler that takes one step between each two times of a grid.

    Args:
        steps: number of steps. Give this or `nfe`.
        nfe: budget of network evaluations: as many steps as fit are made, if all of them are guided or none. Default:
            50, if no `steps` are given.
        grid: where the steps lie. Default: `Karras()`.

    Raises:
        UserError: both of steps and nfe are given, or fewer than 1, or a budget that allows no step.
    """

    def __init__(
        self, steps: int | None = None, nfe: int | None = None, grid: Grid | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if steps is not None and nfe is not None:
            raise UserError("give the sampler either steps or nfe, not both")
        if steps is None:
            budget = DEFAULT_NFE if nfe is None else nfe
            if budget < 1:
                raise UserError(f"the sampler's nfe must be at least 1, not {nfe}")
            steps = self.steps_within(budget if self.guidance is None else budget // self.guidance.evaluations)
            if steps < 1:
                raise UserError(f"the sampler's nfe of {budget} is too small for one step of {type(self).__name__}")
        if steps < 1:
            raise UserError(f"the sampler's steps must be at least 1, not {steps}")
        self.steps = steps
        self.grid = Karras() if grid is None else grid

    def steps_within(self, nfe: int) -> int:
        """The most steps that need no more than nfe network evaluations, 0 if none do."""
        return nfe

    def times(self, schedule: Schedule) -> list[float]:
        times: list[float] = self.grid(schedule, self.steps).tolist()
        return times

    @abstractmethod
    def step(self, denoiser: Denoiser, schedule: Schedule, x: Tensor, t: float, s: float, noise: Noise) -> Tensor:
        """x_s from x_t.

        Args:
            denoiser: of the model, given its labels.
            schedule: in whose time and scale x is.
            x: x_t, (N, ...).
            t: the present time.
            s: the next time, in [0, t).
            noise: from which random numbers are drawn, if the step needs any.
        """

    def integrate(
        self, denoiser: Denoiser, schedule: Schedule, x: Tensor, times: list[float], noise: Noise
    ) -> Iterator[tuple[float, Tensor]]:
        for t, s in pairwise(times):
            x = self.step(denoiser, schedule, x, t, s, noise)
            yield s, x
