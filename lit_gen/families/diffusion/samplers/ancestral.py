r"""Samplers that re-noise an estimate of x_0: DDPM's ancestral sampling and DDIM."""

from typing import Any

from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.families.diffusion.denoisers import Denoiser
from lit_gen.families.diffusion.posterior import StepVariance, posterior, step_variance
from lit_gen.families.diffusion.samplers.base import GridSampler
from lit_gen.families.diffusion.schedules import Schedule


class DDPM(GridSampler):
    r"""Ancestral sampling: x_s is drawn from p(x_s | x_t, x_0 = D).

    With a = alpha_t / alpha_s and v = sigma_t^2 - a^2 sigma_s^2, the forward transition is x_t = a x_s + N(0, v I), and

        mean = (a sigma_s^2 x_t + alpha_s v D) / sigma_t^2.

    - small: the variance is that of the posterior, v sigma_s^2 / sigma_t^2 (beta tilde), right for data at one point.
      It is DDIM with eta = 1.
    - large: the variance is v (alpha_s^2 + sigma_s^2) / (alpha_t^2 + sigma_t^2), that of x_s given x_t for data from
      N(0, I). On a variance-preserving schedule it is v = 1 - alpha_bar_t / alpha_bar_s, the beta of the respaced
      chain; this form of it commutes with a rescaling of x, so that it means the same on every schedule.

    - learned: large^v small^(1 - v) with the v of the network, one for each pixel. At the step to t = 0, where small is
      0, no noise is added in any case.

    Papers: Ho et al. 2020, https://arxiv.org/abs/2006.11239; Nichol and Dhariwal 2021,
    https://arxiv.org/abs/2102.09672 (learned)

    Args:
        variance: of the noise that a step adds. Large, as in the paper, is for a step at each time that the model was
            trained on (a thousand); small is better at few steps. Learned is for a model with a learned variance.

    Raises:
        UserError: variance is none of them; when sampling, variance is learned and the model has none.
    """

    def __init__(self, variance: StepVariance = "large", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if variance not in ("small", "large", "learned"):
            raise UserError(f"variance of the sampler DDPM must be small, large or learned, not {variance!r}")
        self.variance = variance

    def step(self, denoiser: Denoiser, schedule: Schedule, x: Tensor, t: float, s: float, noise: Noise) -> Tensor:
        step = posterior(schedule, t, s)
        denoised, between = denoiser.with_variance(x, *schedule(t))
        mean = step.mean(x, denoised)
        if schedule(s)[1] == 0:
            return mean
        variance = step_variance(self.variance, step.small, step.large, between, "sampler.variance")
        return mean + variance.sqrt() * noise.normal(x.shape[1:], x.dtype)


class DDIM(GridSampler):
    r"""Re-noises the estimate of x_0 to time s.

        x_s = alpha_s D + sqrt(sigma_s^2 - c^2) eps_hat + c N(0, I),
        c = eta sigma_s sqrt(1 - (alpha_t sigma_s / (alpha_s sigma_t))^2).

    Paper: Song et al. 2020, https://arxiv.org/abs/2010.02502

    Args:
        eta: share of fresh noise: 0 is deterministic, 1 is `DDPM` with small variance.
    """

    def __init__(self, eta: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 <= eta <= 1:
            raise UserError(f"eta of the sampler DDIM must lie in [0, 1], not {eta}")
        self.eta = eta

    def step(self, denoiser: Denoiser, schedule: Schedule, x: Tensor, t: float, s: float, noise: Noise) -> Tensor:
        alpha_t, sigma_t = schedule(t)
        alpha_s, sigma_s = schedule(s)
        fresh = self.eta * sigma_s * (1 - (alpha_t * sigma_s / (alpha_s * sigma_t)) ** 2).sqrt()
        kept = (sigma_s**2 - fresh**2).sqrt()
        denoised = denoiser(x, alpha_t, sigma_t)
        x = kept / sigma_t * x + (alpha_s - kept * alpha_t / sigma_t) * denoised
        return x + fresh * noise.normal(x.shape[1:], x.dtype) if fresh > 0 else x
