r"""Exponential integrators: DPM-Solver++ and UniPC.

With lambda = log(alpha / sigma), the probability flow from t to s has the solution

    x_s = sigma_s / sigma_t x_t + alpha_s int_{lambda_t}^{lambda_s} e^{lambda - lambda_s} D(x_lambda) dlambda:

the linear part is exact, and only D along the way has to be guessed, from its values at other times. With D constant
this is DDIM.

The values of the past are handed from step to step by `integrate`: a sampler keeps no state.
"""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.families.diffusion.denoisers import Denoiser
from lit_gen.families.diffusion.samplers.base import GridSampler
from lit_gen.families.diffusion.schedules import Schedule


class DPMSolver(GridSampler):
    r"""DPM-Solver++ of order 1 or 2, deterministic (2M, 2S) or stochastic (SDE).

    With h = lambda_s - lambda_t, a step is

        x_s = sigma_s / sigma_t e^{-eta h} x_t + alpha_s (1 - e^{-(1 + eta) h}) D' + sigma_s sqrt(1 - e^{-2 eta h}) z,

    where D' is, at order 1, D(x_t), and at order 2

    - multistep: D + (D - D_previous) h / (2 h_previous), one evaluation a step. The first step is of order 1.
    - singlestep: D at the middle of the step in lambda, reached by a step of order 1; two evaluations a step.

    The last step, to sigma = 0, is of order 1 and returns D, and so is a step from pure noise (alpha = 0), where lambda
    is infinite. At order 1 and eta = 0 it is `DDIM`; at order 1 and eta = 1 it is `DDIM` with eta = 1.

    Paper: Lu et al. 2022, https://arxiv.org/abs/2211.01095

    Args:
        order: of convergence; with noise, of the convergence of moments.
        method: whence order 2 has its second value of D.
        eta: g^2 of the reverse SDE in units of that of the forward process: 0 is deterministic and draws no noise, 1 is
            the paper's SDE-DPM-Solver++. The square of the noise_scale of `EulerMaruyama`.
    """

    def __init__(
        self,
        order: Literal[1, 2] = 2,
        method: Literal["multistep", "singlestep"] = "multistep",
        eta: float = 0.0,
        **kwargs: Any,
    ) -> None:
        if order not in (1, 2):
            raise UserError(f"order of the sampler DPMSolver must be 1 or 2, not {order}")
        if method not in ("multistep", "singlestep"):
            raise UserError(f"method of the sampler DPMSolver must be multistep or singlestep, not {method!r}")
        if eta < 0:
            raise UserError(f"eta of the sampler DPMSolver must be at least 0, not {eta}")
        if eta > 0 and order == 2 and method == "singlestep":
            raise UserError("eta of the sampler DPMSolver must be 0 with the method singlestep; give it multistep")
        self.order = order
        self.method = method
        self.eta = eta
        super().__init__(**kwargs)  # last, since it asks how many steps are within a budget

    def steps_within(self, nfe: int) -> int:
        return (nfe + 1) // 2 if self.order == 2 and self.method == "singlestep" else nfe

    def step(self, denoiser: Denoiser, schedule: Schedule, x: Tensor, t: float, s: float, noise: Noise) -> Tensor:
        """x_s from x_t without a past: a step of order 1 where the method is multistep."""
        denoised = denoiser(x, *schedule(t))
        ratio_t, ratio_s = schedule.ratio(t), schedule.ratio(s)
        if self.order == 2 and self.method == "singlestep" and ratio_s > 0 and ratio_t < math.inf:
            middle = float(schedule.time((ratio_t * ratio_s).sqrt()))
            x_middle = self._advance(schedule, x, t, middle, denoised, noise)
            denoised = denoiser(x_middle, *schedule(middle))
        return self._advance(schedule, x, t, s, denoised, noise)

    def integrate(
        self, denoiser: Denoiser, schedule: Schedule, x: Tensor, times: list[float], noise: Noise
    ) -> Iterator[tuple[float, Tensor]]:
        if self.order == 1 or self.method == "singlestep":
            yield from super().integrate(denoiser, schedule, x, times, noise)
            return
        past: tuple[float, Tensor] | None = None  # h and D of the step before
        for t, s in pairwise(times):
            denoised = denoiser(x, *schedule(t))
            h = float(_log_snr(schedule, s) - _log_snr(schedule, t))
            guess = denoised
            if past is not None and h < math.inf:  # after a step from pure noise, past[0] is infinite: order 1 too
                guess = denoised + h / (2 * past[0]) * (denoised - past[1])
            x = self._advance(schedule, x, t, s, guess, noise)
            past = h, denoised
            yield s, x

    def _advance(self, schedule: Schedule, x: Tensor, t: float, s: float, denoised: Tensor, noise: Noise) -> Tensor:
        alpha_t, sigma_t = schedule(t)
        alpha_s, sigma_s = schedule(s)
        q = alpha_t * sigma_s / (alpha_s * sigma_t)  # e^{-h}
        x = sigma_s / sigma_t * q**self.eta * x + alpha_s * (1 - q ** (1 + self.eta)) * denoised
        if self.eta == 0 or sigma_s == 0:
            return x
        return x + sigma_s * (1 - q ** (2 * self.eta)).sqrt() * noise.normal(x.shape[1:], x.dtype)


class UniPC(GridSampler):
    r"""The unified predictor-corrector in its B(h) form, in D: UniP and UniC of order 1 to 3, one evaluation a step.

    With h = lambda_s - lambda_t and D_0 = D(x_t), D_1, ... the values of the past at lambda_t + r_k h,

        x_s = sigma_s / sigma_t x_t + alpha_s ((1 - e^{-h}) D_0 + sum_k w_k (D_k - D_0)),

    with the weights w_k that are exact if D is a polynomial in lambda: sum_k w_k r_k^i = h int_0^1 e^{-h (1 - u)} u^i
    du for i = 1 .. K. Once D at s is known it joins the sum (with r = 1), and x_s is computed again: the corrector
    raises the order by one at no evaluation, since D is not evaluated at the corrected x_s. Where there is but one
    weight the paper takes it to be B(h) / (2 r), with B = h (bh1) or 1 - e^{-h} (bh2); that is all that B(h) decides.
    UniP of order 1 is `DDIM`, and of order 2 with bh2 it is DPM-Solver++(2M).

    The order rises from 1 as the past grows, and falls to 1 in the last steps; the last, to sigma = 0, returns D. A
    step from pure noise (alpha = 0) is of order 1, is not corrected, and leaves no past. These steps of lower order
    bound the order of convergence by three in the limit; with order 3 the error falls with the fourth power of the
    steps until about a thousand of them, since D hardly changes in the first and the last.

    Paper: Zhao et al. 2023, https://arxiv.org/abs/2302.04867

    Args:
        order: of the predictor; the corrector's is one higher.
        variant: B(h).
        corrector: use UniC; without it the sampler is UniP.
    """

    def __init__(
        self,
        order: Literal[1, 2, 3] = 2,
        variant: Literal["bh1", "bh2"] = "bh2",
        corrector: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if order not in (1, 2, 3):
            raise UserError(f"order of the sampler UniPC must be 1, 2 or 3, not {order}")
        if variant not in ("bh1", "bh2"):
            raise UserError(f"variant of the sampler UniPC must be bh1 or bh2, not {variant!r}")
        self.order = order
        self.variant = variant
        self.corrector = corrector

    def step(self, denoiser: Denoiser, schedule: Schedule, x: Tensor, t: float, s: float, noise: Noise) -> Tensor:
        """x_s from x_t without a past: a step of order 1, not corrected."""
        return self._advance(schedule, x, t, s, denoiser(x, *schedule(t)), [])

    def integrate(
        self, denoiser: Denoiser, schedule: Schedule, x: Tensor, times: list[float], noise: Noise
    ) -> Iterator[tuple[float, Tensor]]:
        past: list[tuple[float, Tensor]] = []  # lambda and D, the latest first
        before: tuple[float, Tensor] | None = None  # the last time, and x there
        for index, (t, s) in enumerate(pairwise(times)):
            denoised = denoiser(x, *schedule(t))
            present = float(_log_snr(schedule, t)), denoised
            if self.corrector and past and before is not None and s > 0:  # x_s = D of the last step has no use for x_t
                x = self._advance(schedule, before[1], before[0], t, past[0][1], [present, *past[1:]])
            past = [present, *past[: self.order - 1]] if present[0] > -math.inf else []
            before = t, x
            most = len(times) - 1 - index  # the order falls in the last steps
            x = self._advance(schedule, x, t, s, denoised, past[1:most])
            yield s, x

    def _advance(
        self, schedule: Schedule, x: Tensor, t: float, s: float, denoised: Tensor, others: list[tuple[float, Tensor]]
    ) -> Tensor:
        """x_s from x_t and D_0 there, with the (lambda, D) of other times."""
        alpha_t, sigma_t = schedule(t)
        alpha_s, sigma_s = schedule(s)
        log_snr_t, log_snr_s = float(_log_snr(schedule, t)), float(_log_snr(schedule, s))
        h = log_snr_s - log_snr_t
        weights = self._weights(h, [(log_snr - log_snr_t) / h for log_snr, _ in others])
        x = sigma_s / sigma_t * x + alpha_s * (-math.expm1(-h) - sum(weights)) * denoised
        for weight, (_, other) in zip(weights, others, strict=True):
            x = x.add_(other, alpha=float(alpha_s * weight))
        return x

    def _weights(self, h: float, nodes: list[float]) -> list[float]:
        if not nodes:
            return []
        if len(nodes) == 1:
            return [(h if self.variant == "bh1" else -math.expm1(-h)) / (2 * nodes[0])]
        moments = [-math.expm1(-h)]
        for power in range(1, len(nodes) + 1):
            moments.append(1 - power / h * moments[-1])
        r = torch.tensor(nodes, dtype=torch.float64)
        powers = torch.stack([r**power for power in range(1, len(nodes) + 1)])
        weights: list[float] = torch.linalg.solve(powers, torch.tensor(moments[1:], dtype=torch.float64)).tolist()
        return weights


def _log_snr(schedule: Schedule, t: float) -> Tensor:
    """lambda = log(alpha / sigma), half the logarithm of the signal-to-noise ratio; infinite at both ends."""
    return -schedule.ratio(t).log()
