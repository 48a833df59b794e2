r"""Exponential integrators: DPM-Solver++ and UniPC.

With lambda = log(alpha / sigma), the probability flow from t to s has the solution

    x_s = sigma_s / sigma_t x_t + alpha_s int_{lambda_t}^{lambda_s} e^{lambda - lambda_s} D(x_lambda) dlambda:

the linear part is exact, and only D along the way is approximated, from its values at other times. With constant D this
is DDIM.

`integrate` passes earlier values from step to step: a sampler keeps no state.
"""

import math
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.families.diffusion.denoisers import Denoiser
from lit_gen.families.diffusion.samplers.base import GridSampler
from lit_gen.families.diffusion.schedules import Schedule, level_at, log_snr


class DPMSolver(GridSampler):
    r"""DPM-Solver++ of order 1 to 3, deterministic (2M, 2S, 3M) or stochastic (SDE).

    With h = lambda_s - lambda_t, a step is

        x_s = sigma_s / sigma_t e^{-eta h} x_t + alpha_s (1 - e^{-(1 + eta) h}) D' + sigma_s sqrt(1 - e^{-2 eta h}) z,

    where D' is D(x_t) at order 1, and at order 2

    - multistep: D + (D - D_previous) h / (2 h_previous), one evaluation per step. The first step has order 1.
    - singlestep: D at the middle of the step in lambda, reached by a step of order 1; two evaluations per step.

    The multistep method of order 3 has the parabola through the last three values of D, with derivatives D^(1) and
    D^(2) in lambda at t. The first two steps have orders 1 and 2, and the last but one has order 2:

        x_s = sigma_s / sigma_t x_t
            + alpha_s ((1 - e^{-h}) D + (h - 1 + e^{-h}) D^(1) + (h^2 / 2 - h + 1 - e^{-h}) D^(2) / 2)

    The integral of the parabola is the same without the last division by 2, which is in the authors' code and all that
    follow it. With it the error falls with the second power of the number of steps, and is smaller at 6 to 20.

    The last step, to sigma = 0, has order 1 and returns D. A step from pure noise (alpha = 0), at which lambda is
    infinite, also has order 1. At order 1 the sampler is `DDIM` with eta = 0 if eta = 0, and `DDIM` with eta = 1 if
    eta = 1.

    Paper: Lu et al. 2022, https://arxiv.org/abs/2211.01095

    Args:
        order: Number of values of D; 1 and 2 are orders of convergence, with noise of the moments. 3 is multistep and
            has no noise.
        method: Source of the second value of D at order 2.
        eta: g^2 of the reverse SDE in units of that of the forward process: 0 is deterministic and uses no noise, 1 is
            the paper's SDE-DPM-Solver++. It is the square of the noise_scale of `EulerMaruyama`.

    Raises:
        UserError: If an option is not one of its choices or is out of range, or eta > 0 with the singlestep method of
            order 2.
    """

    def __init__(
        self,
        order: Literal[1, 2, 3] = 2,
        method: Literal["multistep", "singlestep"] = "multistep",
        eta: float = 0.0,
        **kwargs: Any,
    ) -> None:
        if order not in (1, 2, 3):
            raise UserError(f"sampler.order: {order} is not an order of DPMSolver; choose 1, 2 or 3")
        if method not in ("multistep", "singlestep"):
            raise UserError(f"sampler.method: {method!r} is not a method; choose multistep or singlestep")
        if eta < 0:
            raise UserError(f"sampler.eta: {eta} is not an amount of noise; give 0 or more")
        if eta > 0 and order == 2 and method == "singlestep":
            raise UserError(
                f"sampler.eta: {eta} adds noise, which the method singlestep does not support; set it to 0, or choose "
                "multistep"
            )
        if order == 3 and (method == "singlestep" or eta > 0):
            raise UserError(
                "sampler.order: 3 is multistep and has no noise; choose 2, or set method and eta to defaults"
            )
        self.order = order
        self.method = method
        self.eta = eta
        super().__init__(**kwargs)  # last, because it calls steps_within

    def steps_within(self, nfe: int) -> int:
        return (nfe + 1) // 2 if self.order == 2 and self.method == "singlestep" else nfe

    def step(self, denoiser: Denoiser, schedule: Schedule, x: Tensor, t: float, s: float, noise: Noise) -> Tensor:
        """Return x_s from x_t without earlier steps; the multistep method then has order 1."""
        denoised = denoiser(x, *level_at(schedule, t))
        ratio_t, ratio_s = schedule.ratio(t), schedule.ratio(s)
        if self.order == 2 and self.method == "singlestep" and ratio_s > 0 and ratio_t < math.inf:
            middle = float(schedule.time((ratio_t * ratio_s).sqrt()))
            x_middle = self._advance(schedule, x, t, middle, denoised, noise)
            denoised = denoiser(x_middle, *level_at(schedule, middle))
        return self._advance(schedule, x, t, s, denoised, noise)

    def integrate(
        self, denoiser: Denoiser, schedule: Schedule, x: Tensor, times: list[float], noise: Noise
    ) -> Iterator[tuple[float, Tensor]]:
        if self.order == 1 or self.method == "singlestep":
            yield from super().integrate(denoiser, schedule, x, times, noise)
            return
        past: list[tuple[float, Tensor]] = []  # h and D of the previous steps, the latest first
        for index, (t, s) in enumerate(pairwise(times)):
            denoised = denoiser(x, *level_at(schedule, t))
            h = log_snr(schedule, s) - log_snr(schedule, t)
            guess = denoised
            if past and h < math.inf:  # after a step from pure noise, past[0][0] is infinite: order 1
                guess = self._guess(h, denoised, past[: len(times) - 2 - index])
            x = self._advance(schedule, x, t, s, guess, noise)
            past = [(h, denoised), *past[: self.order - 2]]
            yield s, x

    def _guess(self, h: float, denoised: Tensor, past: list[tuple[float, Tensor]]) -> Tensor:
        """Return the constant D' of a step of order 2 or 3.

        Args:
            h: Step in lambda.
            denoised: D(x_t).
            past: Steps h_1, h_2 before, and D at their beginnings, the latest first.
        """
        (h_1, d_1), *earlier = past
        if not earlier or math.isinf(earlier[0][0]):
            return denoised + h / (2 * h_1) * (denoised - d_1)
        h_2, d_2 = earlier[0]
        slope = (denoised - d_1) / h_1
        second = 2 * (slope - (d_1 - d_2) / h_2) / (h_1 + h_2)
        first = slope + h_1 / 2 * second
        whole = -math.expm1(-h)
        return denoised + (h / whole - 1) * first + (h * (h / 2 - 1) / whole + 1) / 2 * second

    def _advance(self, schedule: Schedule, x: Tensor, t: float, s: float, denoised: Tensor, noise: Noise) -> Tensor:
        alpha_t, sigma_t = level_at(schedule, t)
        alpha_s, sigma_s = level_at(schedule, s)
        q = alpha_t * sigma_s / (alpha_s * sigma_t)  # e^{-h}
        x = sigma_s / sigma_t * q**self.eta * x + alpha_s * (1 - q ** (1 + self.eta)) * denoised
        if self.eta == 0 or sigma_s == 0:
            return x
        return x + sigma_s * (1 - q ** (2 * self.eta)).sqrt() * noise.normal(x.shape[1:], x.dtype)


class UniPC(GridSampler):
    r"""Unified predictor-corrector in B(h) form, for D: UniP and UniC of order 1 to 3, one evaluation per step.

    With h = lambda_s - lambda_t, D_0 = D(x_t) and earlier values D_1, ... at lambda_t + r_k h,

        x_s = sigma_s / sigma_t x_t + alpha_s ((1 - e^{-h}) D_0 + sum_k w_k (D_k - D_0)),

    with weights w_k that are exact if D is a polynomial in lambda: sum_k w_k r_k^i = h int_0^1 e^{-h (1 - u)} u^i du
    for i = 1 .. K. After D at s has been evaluated, it is added to the sum (with r = 1) and x_s is computed again. This
    corrector raises the order by one without another evaluation, since D is not evaluated at the corrected x_s. If
    there is only one weight, the paper sets it to B(h) / (2 r), with B = h (bh1) or 1 - e^{-h} (bh2); B(h) has no other
    effect. UniP of order 1 is `DDIM`, and of order 2 with bh2 it is DPM-Solver++(2M).

    The order rises from 1 as earlier values accumulate, and falls to 1 in the last steps; the last step, to sigma = 0,
    returns D. A step from pure noise (alpha = 0) has order 1, is not corrected, and stores no earlier value. These
    steps limit the asymptotic order of convergence to three. With order 3, the error decreases with the fourth power of
    the number of steps up to about a thousand steps, since D hardly changes in the first and the last steps.

    Paper: Zhao et al. 2023, https://arxiv.org/abs/2302.04867

    Args:
        order: Order of the predictor; the corrector's is one higher.
        variant: Choice of B(h).
        corrector: Use UniC; without it the sampler is UniP.

    Raises:
        UserError: If order or variant is not one of its choices.
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
            raise UserError(f"sampler.order: {order} is not an order of UniPC; choose 1, 2 or 3")
        if variant not in ("bh1", "bh2"):
            raise UserError(f"sampler.variant: {variant!r} is not a variant; choose bh1 or bh2")
        self.order = order
        self.variant = variant
        self.corrector = corrector

    def step(self, denoiser: Denoiser, schedule: Schedule, x: Tensor, t: float, s: float, noise: Noise) -> Tensor:
        """Return x_s from x_t without earlier steps, of order 1 and not corrected."""
        return self._advance(schedule, x, t, s, denoiser(x, *level_at(schedule, t)), [])

    def integrate(
        self, denoiser: Denoiser, schedule: Schedule, x: Tensor, times: list[float], noise: Noise
    ) -> Iterator[tuple[float, Tensor]]:
        past: list[tuple[float, Tensor]] = []  # lambda and D, the latest first
        before: tuple[float, Tensor] | None = None  # the previous time and x
        for index, (t, s) in enumerate(pairwise(times)):
            denoised = denoiser(x, *level_at(schedule, t))
            present = log_snr(schedule, t), denoised
            if self.corrector and past and before is not None and s > 0:  # the last step, x_s = D, does not use x_t
                x = self._advance(schedule, before[1], before[0], t, past[0][1], [present, *past[1:]])
            past = [present, *past[: self.order - 1]] if present[0] > -math.inf else []
            before = t, x
            most = len(times) - 1 - index  # the order falls in the last steps
            x = self._advance(schedule, x, t, s, denoised, past[1:most])
            yield s, x

    def _advance(
        self, schedule: Schedule, x: Tensor, t: float, s: float, denoised: Tensor, others: list[tuple[float, Tensor]]
    ) -> Tensor:
        """Return x_s from x_t.

        Args:
            schedule: Schedule of the time and scale of x.
            x: State x_t, (N, ...).
            t: Current time.
            s: Next time.
            denoised: D_0 at t.
            others: Pairs (lambda, D) at other times.
        """
        alpha_t, sigma_t = level_at(schedule, t)
        alpha_s, sigma_s = level_at(schedule, s)
        log_snr_t, log_snr_s = log_snr(schedule, t), log_snr(schedule, s)
        h = log_snr_s - log_snr_t
        weights = _weights(self.variant, h, tuple((node - log_snr_t) / h for node, _ in others))
        x = sigma_s / sigma_t * x + alpha_s * (-math.expm1(-h) - sum(weights)) * denoised
        for weight, (_, other) in zip(weights, others, strict=True):
            x = x.add_(other, alpha=float(alpha_s * weight))
        return x


@lru_cache(maxsize=4096)
def _weights(variant: Literal["bh1", "bh2"], h: float, nodes: tuple[float, ...]) -> list[float]:
    """Return the weights of UniPC's earlier values at lambda_t + r h for the nodes r."""
    if not nodes:
        return []
    if len(nodes) == 1:
        return [(h if variant == "bh1" else -math.expm1(-h)) / (2 * nodes[0])]
    moments = [-math.expm1(-h)]
    for power in range(1, len(nodes) + 1):
        moments.append(1 - power / h * moments[-1])
    r = torch.tensor(nodes, dtype=torch.float64)
    powers = torch.stack([r**power for power in range(1, len(nodes) + 1)])
    weights: list[float] = torch.linalg.solve(powers, torch.tensor(moments[1:], dtype=torch.float64)).tolist()
    return weights
