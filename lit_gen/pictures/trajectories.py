"""Draw trajectories from noise to data: one row per image and one column per time, or the paths of points."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.data.points import PointSource
from lit_gen.data.sources import ImageSource
from lit_gen.families.diffusion.denoisers import Denoiser
from lit_gen.families.diffusion.samplers.base import DiffusionSampler
from lit_gen.families.diffusion.schedules import Schedule
from lit_gen.pictures.grids import save_tiles


class Trajectories:
    """The intermediate states of the first images of a sampler's first batch.

    Args:
        sampler: The sampler to record.
        num_images: Largest number of images whose states are kept.

    Attributes:
        sampler: A sampler that samples like the given one and records its states.
        states: Pairs (sigma / alpha, images (num_images, C, H, W)) from noise to data, in the scale
            alpha^2 + sigma^2 = 1, in which noise and images are of one brightness.
    """

    def __init__(self, sampler: DiffusionSampler, num_images: int = 8) -> None:
        self.states: list[tuple[float, Tensor]] = []
        self.sampler: DiffusionSampler = _Recorder(sampler, self.states, num_images)

    def save(self, path: Path, source: ImageSource, columns: int = 10) -> list[float]:
        """Draw the states as one PNG, at evenly chosen times from the first to the last, or the paths of points.

        Args:
            path: The PNG to write.
            source: The data that the images are like.
            columns: Largest number of times; the paths of points go through all times.

        Returns:
            The noise levels sigma / alpha of the columns, or of the ends of the paths.
        """
        if isinstance(source, PointSource):
            from lit_gen.pictures.points import save_paths  # matplotlib is slow to import

            save_paths(self.states, source, path)
            return [self.states[0][0], self.states[-1][0]]
        chosen = torch.linspace(0, len(self.states) - 1, min(columns, len(self.states))).round().long().tolist()
        save_tiles(torch.stack([self.states[index][1] for index in chosen], dim=1), path)
        return [self.states[index][0] for index in chosen]


def check_path(path: Path) -> None:
    """Raise a UserError unless trajectories can be written to a path."""
    if path.suffix != ".png":
        raise UserError(f"--trajectory: {path} does not end in .png; give such a name")


class _Recorder(DiffusionSampler):
    def __init__(self, sampler: DiffusionSampler, states: list[tuple[float, Tensor]], num_images: int) -> None:
        super().__init__(sampler.schedule, sampler.guidance)
        self.sampler = sampler
        self.states = states
        self.num_images = num_images

    def times(self, schedule: Schedule) -> list[float]:
        return self.sampler.times(schedule)

    def integrate(
        self, denoiser: Denoiser, schedule: Schedule, x: Tensor, times: list[float], noise: Noise
    ) -> Iterator[tuple[float, Tensor]]:
        recording = not self.states
        if recording:
            self._keep(schedule, times[0], x)
        for t, state in self.sampler.integrate(denoiser, schedule, x, times, noise):
            if recording:
                self._keep(schedule, t, state)
            yield t, state

    def _keep(self, schedule: Schedule, t: float, x: Tensor) -> None:
        alpha, sigma = schedule(t)
        kept = x[: self.num_images] / (alpha**2 + sigma**2).sqrt()
        self.states.append((float(sigma / alpha), kept.float().cpu()))
