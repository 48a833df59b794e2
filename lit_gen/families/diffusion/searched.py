r"""A time grid that is searched for a model (GITS): the path of least error among the times of a fine grid.

A teacher follows the probability flow along the fine grid and gives x_i at its times, in units of the data
y = x / alpha with level r = sigma / alpha, and the slope dy/dr = eps_hat. A leap of Euler's rule from i to j misses by

    cost(i, j) = mean over images of rms( y_i + (r_j - r_i) eps_i - y_j ),

and the grid of k steps is the path from the first time to t = 0 with the least V, by dynamic programming:

    V_1(i) = cost(i, end),    V_k(i) = min_j cost(i, j) + c V_{k-1}(j).

One search gives the grids of all numbers of steps. The leaps are Euler's, whichever sampler then visits the times.

Paper: Chen et al. 2024, "On the trajectory regularity of ODE-based diffusion sampling",
https://arxiv.org/abs/2405.11326
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.families.diffusion.denoisers import Denoiser
from lit_gen.families.diffusion.grids import Grid, Karras
from lit_gen.families.diffusion.samplers.adams import IPNDM
from lit_gen.families.diffusion.schedules import Schedule


@dataclass(frozen=True)
class Leaps:
    """The fine grid of a search and the errors of leaps on it.

    Attributes:
        times: Times (F + 1,), float64, decreasing to 0.
        costs: cost(i, j), (F + 1, F + 1), float64; infinite unless i < j.
        evaluations: Evaluations of the network on one image that the search has taken, all images together.
    """

    times: Tensor
    costs: Tensor
    evaluations: int

    def path(self, steps: int, coefficient: float) -> list[int]:
        """Return the indices of the times of the best path of so many steps, from 0 to F."""
        end = len(self.times) - 1
        value, choices = self.costs[:, end], []
        for _ in range(steps - 1):
            value, choice = (self.costs + coefficient * value).min(1)
            choices.append(choice)
        path = [0]
        for choice in reversed(choices):
            path.append(int(choice[path[-1]]))
        return [*path, end]

    def cost(self, path: list[int], coefficient: float) -> float:
        """Return the value V of a path of indices."""
        value = 0.0
        for i, j in zip(reversed(path[:-1]), reversed(path[1:]), strict=True):
            value = float(self.costs[i, j]) + coefficient * value
        return value


class Searched(Grid):
    """Grid of least error for the model, searched with its network before the first sample.

    Args:
        fine: Number of steps of the fine grid, whose times the grid chooses from.
        num_images: Number of images that the search follows.
        coefficient: c, the weight of the errors of later leaps; above 1, since later errors are corrected less.
        seed: Seed of the noise of these images.
        base: The fine grid. Default: `Karras()`.

    Raises:
        UserError: If a number is not positive.
    """

    def __init__(
        self,
        fine: int = 61,
        num_images: int = 256,
        coefficient: float = 1.15,
        seed: int = 0,
        base: Grid | None = None,
    ) -> None:
        for key, number in (("fine", fine), ("num_images", num_images)):
            if number < 1:
                raise UserError(f"sampler.grid.{key}: {number} is too small; give 1 or more")
        if not 0 < coefficient < math.inf:
            raise UserError(f"sampler.grid.coefficient: {coefficient} is not a weight; give a number above 0")
        self.fine = fine
        self.num_images = num_images
        self.coefficient = coefficient
        self.seed = seed
        self.base = Karras() if base is None else base
        self.leaps: Leaps | None = None
        """What the latest search has found; None before it."""

    def __call__(self, schedule: Schedule, steps: int) -> Tensor:
        """Return the times of the best path; raise a UserError before a search, or for more steps than `fine`."""
        if self.leaps is None:
            raise UserError(
                "sampler.grid: Searched has no times before its search; evaluate or sample a run with it, or call its "
                "search(denoiser, schedule, shape)"
            )
        if steps > self.fine:
            raise UserError(
                f"sampler.steps: {steps} are more than the {self.fine} of the fine grid; set --sampler.grid.fine to it"
            )
        return self.leaps.times[self.leaps.path(steps, self.coefficient)]

    def before_search(self) -> Grid:
        return self.base

    @torch.no_grad()
    def search(
        self, denoiser: Denoiser, schedule: Schedule, shape: tuple[int, ...], noise: Noise | None = None
    ) -> None:
        """Search with the network, for any number of steps.

        Args:
            denoiser: Denoiser of the model, with its labels and guidance.
            schedule: Schedule of the sampler.
            shape: Shape of one image.
            noise: Noise of the images. Default: that of `seed` and `num_images`, on the CPU.
        """
        noise = Noise(self.seed, range(self.num_images)) if noise is None else noise
        watched = _Watched(denoiser)
        teacher = IPNDM(steps=self.fine, grid=self.base)
        path = list(teacher.trajectory(watched, schedule, noise, shape, dtype=torch.float32))
        times = torch.tensor([t for t, _ in path], dtype=torch.float64)
        alphas, levels = (value.tolist() for value in (schedule(times)[0], schedule.ratio(times)))
        states = [x / alpha for (_, x), alpha in zip(path, alphas, strict=True)]
        costs = torch.full((len(times), len(times)), math.inf, dtype=torch.float64)
        for i, denoised in enumerate(watched.denoised):
            slope = (states[i] - denoised) / levels[i]
            for j in range(i + 1, len(times)):
                error = states[i] + (levels[j] - levels[i]) * slope - states[j]
                costs[i, j] = error.flatten(1).double().square().mean(1).sqrt().mean().cpu()
        self.leaps = Leaps(times, costs, len(noise) * len(watched.denoised))


class _Watched(Denoiser):
    """A denoiser that keeps what it returns."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser
        self.denoised: list[Tensor] = []

    def denoise(self, x: Tensor, alpha: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        self.denoised.append(self.denoiser(x, alpha, sigma, labels))
        return self.denoised[-1]
