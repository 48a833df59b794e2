r"""Samplers that re-noise an estimate of x_0: DDPM's ancestral sampling, and DDIM."""

from typing import Any

from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.families.diffusion.denoisers import Denoiser
from lit_gen.families.diffusion.posterior import StepVariance, posterior, step_variance
from lit_gen.families.diffusion.samplers.base import GridSampler
from lit_gen.families.diffusion.schedules import Schedule, level_at


class DDPM(GridSampler):
    r"""Ancestral sampling: x_s is sampled from q(x_s | x_t, x_0 = D), see `posterior`.

    With a = alpha_t / alpha_s and v = sigma_t^2 - a^2 sigma_s^2, the forward transition is x_t = a x_s + N(0, v I), and

        mean = (a sigma_s^2 x_t + alpha_s v D) / sigma_t^2.

    - small: the variance of the posterior, v sigma_s^2 / sigma_t^2 (beta tilde), exact for data at one point. The
      sampler is then DDIM with eta = 1.
    - large: v (alpha_s^2 + sigma_s^2) / (alpha_t^2 + sigma_t^2), the variance of x_s given x_t for data from N(0, I).
      On a variance-preserving schedule it is v = 1 - alpha_bar_t / alpha_bar_s, the beta of the respaced chain. This
      form is equivariant to a rescaling of x, so it means the same on every schedule.
    - learned: large^u small^(1 - u) with u from the network, for each pixel.

    The step to t = 0, at which small is 0, adds no noise.

    Papers: Ho et al. 2020, https://arxiv.org/abs/2006.11239; Nichol and Dhariwal 2021,
    https://arxiv.org/abs/2102.09672 (learned)

    Args:
        variance: Variance of the noise that a step adds. Use large, as in the paper, for a step at each training time
            (a thousand steps), small for few steps, and learned for a model with a learned variance.

    Raises:
        UserError: If variance is not one of the three; when sampling, if variance is learned and the model has none.
    """

    def __init__(self, variance: StepVariance = "large", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if variance not in ("small", "large", "learned"):
            raise UserError(f"sampler.variance: {variance!r} is not a variance; choose small, large or learned")
        self.variance = variance

    def step(self, denoiser: Denoiser, schedule: Schedule, x: Tensor, t: float, s: float, noise: Noise) -> Tensor:
        step = posterior(schedule, t, s)
        denoised, between = denoiser.with_variance(x, *level_at(schedule, t))
        mean = step.mean(x, denoised)
        if level_at(schedule, s)[1] == 0:
            return mean
        variance = step_variance(self.variance, step.small, step.large, between, "sampler.variance")
        return mean + variance.sqrt() * noise.normal(x.shape[1:], x.dtype)


class DDIM(GridSampler):
    r"""Denoising diffusion implicit model: the estimate of x_0 is re-noised to time s.

        x_s = alpha_s D + sqrt(sigma_s^2 - c^2) eps_hat + c N(0, I),
        c = eta sigma_s sqrt(1 - (alpha_t sigma_s / (alpha_s sigma_t))^2).

    Paper: Song et al. 2020, https://arxiv.org/abs/2010.02502

    Args:
        eta: Fraction of fresh noise: 0 is deterministic, 1 is `DDPM` with small variance.

    Raises:
        UserError: If eta is not in [0, 1].
    """

    def __init__(self, eta: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 <= eta <= 1:
            raise UserError(f"sampler.eta: {eta} is not a fraction of noise; give a number in [0, 1]")
        self.eta = eta

    def step(self, denoiser: Denoiser, schedule: Schedule, x: Tensor, t: float, s: float, noise: Noise) -> Tensor:
        alpha_t, sigma_t = level_at(schedule, t)
        alpha_s, sigma_s = level_at(schedule, s)
        denoised = denoiser(x, alpha_t, sigma_t)
        if self.eta == 0:
            kept = sigma_s / sigma_t
            return kept * x + (alpha_s - kept * alpha_t) * denoised
        fresh = self.eta * sigma_s * (1 - (alpha_t * sigma_s / (alpha_s * sigma_t)) ** 2).sqrt()
        kept = (sigma_s**2 - fresh**2).sqrt() / sigma_t
        x = kept * x + (alpha_s - kept * alpha_t) * denoised
        return x + fresh * noise.normal(x.shape[1:], x.dtype) if fresh > 0 else x
