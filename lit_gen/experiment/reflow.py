"""Reflow: a flow is trained again on pairs of noise and the image that the previous flow samples from it.

The second flow has the same marginals and straighter paths, because the paths of the first flow do not cross.
Paper: Liu et al. 2022, https://arxiv.org/abs/2209.03003
"""

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock

from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.core.pixels import quantise
from lit_gen.core.progress import image_progress
from lit_gen.data.class_order import are_balanced
from lit_gen.data.pairs import Pairs
from lit_gen.families.diffusion.denoisers import GaussianMixtureDenoiser
from lit_gen.families.diffusion.grids import Uniform
from lit_gen.families.diffusion.models.general import Diffusion
from lit_gen.families.diffusion.samplers.base import DiffusionSampler
from lit_gen.families.diffusion.samplers.ode import Heun
from lit_gen.families.diffusion.schedules import Schedule
from lit_gen.runs.directory import Run

LEAST_START = 20.0
"""sigma / alpha from which a sampler may start: at x_t = alpha x_0 + sigma eps it omits alpha x_0."""


class Reflow:
    """The pairs that a flow is trained on.

    Args:
        teacher: The flow that samples them: a run, or the file of an experiment, which is then trained first. null: the
            model is trained on the data.
        num_pairs: Number of pairs. The last `data.num_val` of them are set aside for validation.
        sampler: Sampler of the teacher, which must map each noise to one image. The grids in sigma start at
            sigma = 80, with noise alone in place of x_t = (80 eps + x_0) / 81, which is near enough to pure noise.
            Default: Heun on the path of rectified flow from pure noise itself, in 20 equal steps.
        seed: Seed of the noise, other than those of evaluations.
        weights: The teacher's weights: ema, raw, or a width such as ema:0.1.
        start: Start from the teacher's weights rather than from random ones.
        batch_size: Pairs per batch.
        teacher_overrides: Settings of the teacher's experiment that differ from its file, `{budget.num_images: 1000}`;
            on the command line `--reflow.teacher.budget.num_images 1000`.
    """

    def __init__(
        self,
        teacher: str | None = None,
        num_pairs: int = 50_000,
        sampler: DiffusionSampler | None = None,
        seed: int = 1_000_000,
        weights: str = "ema",
        start: bool = True,
        batch_size: int = 256,
        teacher_overrides: dict[str, Any] | None = None,
    ) -> None:
        for name, value in {"num_pairs": num_pairs, "batch_size": batch_size}.items():
            if value < 1:
                raise UserError(f"reflow.{name}: {value} is not a positive number of pairs; give 1 or more")
        self.teacher = teacher
        self.teacher_overrides = teacher_overrides
        self.num_pairs = num_pairs
        self.sampler = Heun(steps=20, grid=Uniform(), coordinates="rectified") if sampler is None else sampler
        self.seed = seed
        self.weights = weights
        self.start = start
        self.batch_size = batch_size

    def sampled_by(self, sampler: DiffusionSampler) -> "Reflow":
        """Return these settings with another sampler."""
        other = copy.copy(self)
        other.sampler = sampler
        return other

    def draw(self, run: Run, model: Diffusion, quantised: bool) -> Pairs:
        """Return the pairs of a teacher, which are sampled once and kept in its run.

        Args:
            run: The teacher's run.
            model: Its model, with the weights that sample.
            quantised: Keep the images as uint8.

        Raises:
            UserError: If `check` raises one.
        """
        self.check(model.schedule)
        path = self.path(run, model)
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.stem}.lock")):
            if not path.is_file():
                self._draw(model, quantised).save(path)
                print(f"{path}: {self.num_pairs:,} pairs, {model.nfe:g} network evaluations each", flush=True)
        return Pairs.load(path)

    def check(self, schedule: Schedule) -> None:
        """Raise a UserError unless the sampler maps one noise to one image on the schedule of the teacher.

        It must not use more noise, nor start at a level where images are still visible.
        """
        noise = Noise(0, range(1))
        exact = GaussianMixtureDenoiser(torch.zeros(1, 1), torch.ones(1))
        self.sampler.guided(None).sample(exact, schedule, noise, (1,))
        name = type(self.sampler).__name__
        if noise.draws != 1:
            raise UserError(
                f"reflow.sampler: {name} with these settings draws noise on its way, so the image is not a function "
                "of the initial noise; use one that does not, such as Heun without churn or DDIM with eta 0"
            )
        path = schedule if self.sampler.schedule is None else self.sampler.schedule.with_levels_of(schedule)
        start = float(path.ratio(self.sampler.times(path)[0]))
        least = min(LEAST_START, 0.99 * schedule.max_ratio)
        if start < least:
            raise UserError(
                f"reflow.sampler: {name} starts at the noise level sigma / alpha = {start:.3g}, where images are still "
                f"visible; let its grid start at {least:.3g} or above, as --reflow.sampler.grid Karras or TimeShift, "
                "or remove --reflow.sampler"
            )

    def path(self, run: Run, model: Diffusion) -> Path:
        """Return the path of the pairs, the same for the same settings."""
        settings: list[Any] = [self.sampler.to_dict(), self.num_pairs, self.seed, self.weights, model.images_seen]
        if model.class_counts and not are_balanced(model.class_counts):  # else the classes are index mod num_classes
            settings.append(model.class_counts)
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        return run.directory / "pairs" / f"{digest[:10]}.npz"

    def _draw(self, model: Diffusion, quantised: bool) -> Pairs:
        index = np.arange(self.num_pairs)
        images = []
        with image_progress("sampling pairs", self.num_pairs) as progress:
            for rows in np.array_split(index, -(-self.num_pairs // self.batch_size)):
                noise = Noise(self.seed, rows.tolist(), model.device)
                drawn = model.sample(noise, sampler=self.sampler)
                images.append((quantise(drawn) if quantised else drawn).cpu())
                if progress is not None:
                    progress.update(int(rows[-1]) + 1)
        return Pairs(torch.cat(images).numpy(), index, self.seed, model.num_classes, model.class_counts)
