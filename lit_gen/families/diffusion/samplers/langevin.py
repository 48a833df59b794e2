r"""Samplers with Langevin steps, x <- x + e score + sqrt(2 e) N(0, I), which preserve the marginal at a fixed time."""

from typing import Any, Literal

import torch
from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.families.diffusion.denoisers import Denoiser, per_image
from lit_gen.families.diffusion.samplers.base import GridSampler, finite_ratio
from lit_gen.families.diffusion.schedules import Schedule, level_at


class PredictorCorrector(GridSampler):
    r"""Predictor-corrector sampler: a step to the next time, then Langevin steps at that time.

    With q = (sigma_s / alpha_s) / (sigma_t / alpha_t), the predictor is

        x_s = alpha_s D + k sigma_s eps_hat + c N(0, I):

    - reverse_diffusion: k = q and c^2 = (alpha_s sigma_t / alpha_t)^2 (1 - q^2), the noise of the forward process
      between the two levels.
    - ancestral: k = q and c^2 = sigma_s^2 (1 - q^2), which is `DDPM` with small variance.
    - probability_flow: k = 1 and c = 0, which is `DDIM` with eta = 0.

    The first two are the paper's predictors for the variance-exploding SDE. The paper's predictors for the
    variance-preserving SDE and the probability flow differ from these by terms that vanish with many steps; these do
    not depend on the scale of x.

    A corrector step has the size e = 2 (snr sqrt(dim) / |score|)^2 with the norm of each image's own score. The paper
    uses the mean of the norms over the batch, which makes an image depend on the rest of its batch, and the norm of the
    noise instead of sqrt(dim), but recommends sqrt(dim) for small batches. In thousands of dimensions these choices are
    nearly the same. In a few dimensions, a step is huge if the score is close to 0, and the marginal is not preserved;
    use norm = level, which replaces |score| by sqrt(dim) / sigma, its size if x were pure noise, so that
    e = 2 (snr sigma)^2.

    There is no correction at sigma = 0: N steps take N + (N - 1) corrector_steps network evaluations.

    Paper: Song et al. 2021, https://arxiv.org/abs/2011.13456

    Args:
        predictor: Rule of the step from time to time.
        corrector_steps: Number of Langevin steps at each time.
        snr: Ratio of drift to noise in a corrector step, the paper's r.
        norm: Source of |score| in the step size: the image, or the noise level.

    Raises:
        UserError: If an option is not one of its choices or is out of range.
    """

    def __init__(
        self,
        predictor: Literal["reverse_diffusion", "ancestral", "probability_flow"] = "reverse_diffusion",
        corrector_steps: int = 1,
        snr: float = 0.16,
        norm: Literal["image", "level"] = "image",
        **kwargs: Any,
    ) -> None:
        if predictor not in ("reverse_diffusion", "ancestral", "probability_flow"):
            raise UserError(
                f"sampler.predictor: {predictor!r} is not a predictor; choose reverse_diffusion, ancestral or "
                "probability_flow"
            )
        if corrector_steps < 0:
            raise UserError(f"sampler.corrector_steps: {corrector_steps} is not a number of steps; give 0 or more")
        if snr <= 0:
            raise UserError(f"sampler.snr: {snr} is not a ratio of drift to noise; give a number above 0")
        if norm not in ("image", "level"):
            raise UserError(f"sampler.norm: {norm!r} is not a source of the norm; choose image or level")
        self.predictor = predictor
        self.corrector_steps = corrector_steps
        self.snr = snr
        self.norm = norm
        super().__init__(**kwargs)  # last, because it calls steps_within

    def steps_within(self, nfe: int) -> int:
        return (nfe + self.corrector_steps) // (1 + self.corrector_steps)

    def step(self, denoiser: Denoiser, schedule: Schedule, x: Tensor, t: float, s: float, noise: Noise) -> Tensor:
        x = self._predict(denoiser, schedule, x, t, s, noise)
        alpha, sigma = level_at(schedule, s)
        for _ in range(self.corrector_steps if sigma > 0 else 0):
            x = self._correct(denoiser, x, alpha, sigma, noise)
        return x

    def _predict(self, denoiser: Denoiser, schedule: Schedule, x: Tensor, t: float, s: float, noise: Noise) -> Tensor:
        alpha_t, sigma_t = level_at(schedule, t)
        alpha_s, sigma_s = level_at(schedule, s)
        denoised = denoiser(x, alpha_t, sigma_t)
        if sigma_s == 0:
            return denoised
        q = alpha_t * sigma_s / (alpha_s * sigma_t)
        kept = torch.ones_like(q) if self.predictor == "probability_flow" else q
        x = kept * sigma_s / sigma_t * x + (alpha_s - kept * sigma_s * alpha_t / sigma_t) * denoised
        if self.predictor == "probability_flow":
            return x
        spread = sigma_s if self.predictor == "ancestral" else alpha_s * finite_ratio(alpha_t, sigma_t, self.grid)
        return x + spread * (1 - q**2).sqrt() * noise.normal(x.shape[1:], x.dtype)

    def _correct(self, denoiser: Denoiser, x: Tensor, alpha: Tensor, sigma: Tensor, noise: Noise) -> Tensor:
        drift = (alpha * denoiser(x, alpha, sigma)).sub_(x)  # sigma^2 score
        z = noise.normal(x.shape[1:], x.dtype)
        root = self.snr * sigma  # sqrt(e / 2)
        if self.norm == "image":
            root = root * sigma * x[0].numel() ** 0.5 / drift.flatten(1).norm(dim=1)
        root = per_image(root, x)
        return x + drift.mul_(2 * (root / sigma) ** 2).add_(z.mul_(2 * root))


class AnnealedLangevin(GridSampler):
    r"""Annealed Langevin dynamics: steps at each noise level in turn, with sizes in proportion to sigma^2.

        x <- x + step_size sigma^2 score + sqrt(2 step_size) sigma N(0, I)
           = x + step_size (alpha D - x) + sqrt(2 step_size) sigma N(0, I),

    steps_each times at every time of the grid except t = 0; between two times only the scale of x changes. In the
    paper's symbols step_size = epsilon / sigma_L^2, with sigma_L the smallest level: 6.2e-6 / 0.01^2 for its CIFAR-10.
    For normal data, a finite step size makes the variance at a level too large by a factor of at most
    1 / (1 - step_size / 2).

    Unlike the other samplers, it approaches the marginal of a level only with many steps there. The levels must be
    close to each other, as on the grid `UniformLogSNR`, and the total is about a thousand evaluations. N levels take
    N steps_each evaluations, and one more to denoise.

    Papers: Song and Ermon 2019, https://arxiv.org/abs/1907.05600; 2020, https://arxiv.org/abs/2006.09011

    Args:
        steps_each: Number of Langevin steps at each level.
        step_size: Step size relative to the variance of the noise.
        denoise: Return D at the end, as in the second paper, instead of an image with noise of the smallest level.

    Raises:
        UserError: If steps_each is below 1, or step_size is not in (0, 2).
    """

    def __init__(self, steps_each: int = 5, step_size: float = 0.062, denoise: bool = True, **kwargs: Any) -> None:
        if steps_each < 1:
            raise UserError(f"sampler.steps_each: {steps_each} is not a number of steps; give 1 or more")
        if not 0 < step_size < 2:
            raise UserError(f"sampler.step_size: {step_size} is outside (0, 2); give a size in that interval")
        self.steps_each = steps_each
        self.step_size = step_size
        self.denoise = denoise
        super().__init__(**kwargs)  # last, because it calls steps_within

    def steps_within(self, nfe: int) -> int:
        return (nfe - self.denoise) // self.steps_each

    def step(self, denoiser: Denoiser, schedule: Schedule, x: Tensor, t: float, s: float, noise: Noise) -> Tensor:
        alpha, sigma = level_at(schedule, t)
        alpha_s, sigma_s = level_at(schedule, s)
        finite_ratio(alpha, sigma, self.grid)
        for _ in range(self.steps_each):
            drift = (alpha * denoiser(x, alpha, sigma)).sub_(x).mul_(self.step_size)
            fresh = noise.normal(x.shape[1:], x.dtype).mul_((2 * self.step_size) ** 0.5 * sigma)
            x = x + drift.add_(fresh)
        if sigma_s == 0 and self.denoise:
            return denoiser(x, alpha, sigma)
        return alpha_s / alpha * x
