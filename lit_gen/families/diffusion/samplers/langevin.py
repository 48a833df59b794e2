r"""Samplers with Langevin steps, x <- x + e score + sqrt(2 e) N(0, I), which leave the marginal of a time as it is."""

from typing import Any, Literal

import torch
from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.families.diffusion.denoisers import Denoiser, per_image
from lit_gen.families.diffusion.samplers.base import GridSampler, finite_ratio
from lit_gen.families.diffusion.schedules import Schedule


class PredictorCorrector(GridSampler):
    r"""A step to the next time, then Langevin steps at that time.

    With q = (sigma_s / alpha_s) / (sigma_t / alpha_t), the predictor is

        x_s = alpha_s D + k sigma_s eps_hat + c N(0, I):

    - reverse_diffusion: k = q and c^2 = (alpha_s sigma_t / alpha_t)^2 (1 - q^2), the noise of the forward process
      between the two levels.
    - ancestral: k = q and c^2 = sigma_s^2 (1 - q^2), which is `DDPM` with small variance.
    - probability_flow: k = 1 and c = 0, which is `DDIM` with eta = 0.

    The first two are the paper's for the variance-exploding SDE. Its others, for the variance-preserving SDE and for
    the probability flow, differ from these by terms that vanish with many steps; here the scale of x makes no
    difference.

    A corrector step has the size e = 2 (snr sqrt(dim) / |score|)^2 with the norm of each image's own score. The paper
    takes the mean of the norms over the batch, whereby an image depends on those drawn beside it, and the norm of the
    noise for sqrt(dim), but advises sqrt(dim) for small batches. In thousands of dimensions all this is nearly the
    same. In a few, a step is huge where the score vanishes, and the marginal is not kept: give norm = level, which
    takes sqrt(dim) / sigma for |score|, its size if x were noise alone, so that e = 2 (snr sigma)^2.

    At sigma = 0 there is nothing to correct: N steps take N + (N - 1) corrector_steps network evaluations.

    Paper: Song et al. 2021, https://arxiv.org/abs/2011.13456

    Args:
        predictor: the step from time to time.
        corrector_steps: number of Langevin steps at each time.
        snr: r of the paper: the drift of a corrector's step is to its noise as snr to 1.
        norm: whence |score| in the size of a step comes: the image, or the noise level.
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
                "predictor of the sampler PredictorCorrector must be reverse_diffusion, ancestral or probability_flow,"
                f" not {predictor!r}"
            )
        if corrector_steps < 0:
            raise UserError(
                f"corrector_steps of the sampler PredictorCorrector must be at least 0, not {corrector_steps}"
            )
        if snr <= 0:
            raise UserError(f"snr of the sampler PredictorCorrector must be above 0, not {snr}")
        if norm not in ("image", "level"):
            raise UserError(f"norm of the sampler PredictorCorrector must be image or level, not {norm!r}")
        self.predictor = predictor
        self.corrector_steps = corrector_steps
        self.snr = snr
        self.norm = norm
        super().__init__(**kwargs)  # last, since it asks how many steps are within a budget

    def steps_within(self, nfe: int) -> int:
        return (nfe + self.corrector_steps) // (1 + self.corrector_steps)

    def step(self, denoiser: Denoiser, schedule: Schedule, x: Tensor, t: float, s: float, noise: Noise) -> Tensor:
        x = self._predict(denoiser, schedule, x, t, s, noise)
        alpha, sigma = schedule(s)
        for _ in range(self.corrector_steps if sigma > 0 else 0):
            x = self._correct(denoiser, x, alpha, sigma, noise)
        return x

    def _predict(self, denoiser: Denoiser, schedule: Schedule, x: Tensor, t: float, s: float, noise: Noise) -> Tensor:
        alpha_t, sigma_t = schedule(t)
        alpha_s, sigma_s = schedule(s)
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
        root = self.snr * sigma  # of e / 2
        if self.norm == "image":
            root = root * sigma * x[0].numel() ** 0.5 / drift.flatten(1).norm(dim=1)
        root = per_image(root, x)
        return x + drift.mul_(2 * (root / sigma) ** 2).add_(z.mul_(2 * root))


class AnnealedLangevin(GridSampler):
    r"""Langevin steps at each noise level in turn, with sizes in proportion to sigma^2.

        x <- x + step_size sigma^2 score + sqrt(2 step_size) sigma N(0, I)
           = x + step_size (alpha D - x) + sqrt(2 step_size) sigma N(0, I),

    steps_each times at every time of the grid but t = 0; between two times only the scale of x changes. In the paper's
    symbols step_size = epsilon / sigma_L^2, with sigma_L the least level: 6.2e-6 / 0.01^2 for its CIFAR-10. For data
    that are normal a finite size makes the variance at a level too large by a factor of at most
    1 / (1 - step_size / 2).

    Unlike the other samplers it approaches the marginal of a level only with many steps there: levels must lie close,
    as on the grid `UniformLogSNR`, and the total runs to a thousand evaluations. N levels take N steps_each
    evaluations, and one more to denoise.

    Papers: Song and Ermon 2019, https://arxiv.org/abs/1907.05600; 2020, https://arxiv.org/abs/2006.09011

    Args:
        steps_each: number of Langevin steps at each level.
        step_size: relative to the variance of the noise.
        denoise: return D at the end, as in the second paper, instead of an image with noise of the least level.
    """

    def __init__(self, steps_each: int = 5, step_size: float = 0.062, denoise: bool = True, **kwargs: Any) -> None:
        if steps_each < 1:
            raise UserError(f"steps_each of the sampler AnnealedLangevin must be at least 1, not {steps_each}")
        if not 0 < step_size < 2:
            raise UserError(f"step_size of the sampler AnnealedLangevin must lie in (0, 2), not {step_size}")
        self.steps_each = steps_each
        self.step_size = step_size
        self.denoise = denoise
        super().__init__(**kwargs)  # last, since it asks how many steps are within a budget

    def steps_within(self, nfe: int) -> int:
        return (nfe - self.denoise) // self.steps_each

    def step(self, denoiser: Denoiser, schedule: Schedule, x: Tensor, t: float, s: float, noise: Noise) -> Tensor:
        alpha, sigma = schedule(t)
        alpha_s, sigma_s = schedule(s)
        finite_ratio(alpha, sigma, self.grid)
        for _ in range(self.steps_each):
            drift = (alpha * denoiser(x, alpha, sigma)).sub_(x).mul_(self.step_size)
            fresh = noise.normal(x.shape[1:], x.dtype).mul_((2 * self.step_size) ** 0.5 * sigma)
            x = x + drift.add_(fresh)
        if sigma_s == 0 and self.denoise:
            return denoiser(x, alpha, sigma)
        return alpha_s / alpha * x
