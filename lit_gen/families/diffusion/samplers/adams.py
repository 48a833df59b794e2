r"""Adams-Bashforth methods for the probability-flow ODE: iPNDM, LMS and DEIS.

With y = x / alpha and the noise level r = sigma / alpha, the flow is dy / dr = eps_hat(y, r), the predicted noise

    eps_hat = (x - alpha D) / sigma.

A step to the level s integrates a polynomial through the values of eps_hat at the latest levels r_0, r_1, ...:

    y_s = y + sum_k w_k eps_hat_k,    w_k = int_{r_0}^{s} L_k(u(r)) dr,    L_k(u(r_j)) = 1 if j = k, else 0

in some variable u. The number of values rises from 1 to the order. One evaluation per step; the last step, to the level
0, returns D. With one value this is DDIM. `integrate` passes earlier values from step to step: a sampler keeps no
state.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.families.diffusion.denoisers import Denoiser
from lit_gen.families.diffusion.samplers.base import GridSampler, finite_ratio
from lit_gen.families.diffusion.schedules import LinearVP, Schedule, level_at

EQUAL_STEPS = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
"""Weights of Adams-Bashforth for equal steps of length 1, the latest value first, by the number of values."""
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)


class AdamsBashforth(GridSampler):
    """Base class of methods that extrapolate the predicted noise, with the equations at the top of this module.

    Args:
        order: Largest number of values of the predicted noise.

    Raises:
        UserError: If the order is not one of those of the method.
    """

    ORDERS: tuple[int, ...] = (1, 2, 3, 4)

    def __init__(self, order: int = 4, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if order not in self.ORDERS:
            *others, last = self.ORDERS
            raise UserError(
                f"sampler.order: {order} is not an order of {type(self).__name__}; choose "
                f"{', '.join(map(str, others))} or {last}"
            )
        self.order = order

    @abstractmethod
    def weights(self, s: float, levels: Sequence[float]) -> Sequence[float]:
        """Return the weights w_k of the predicted noise at the latest levels.

        Args:
            s: The next level, above 0.
            levels: The latest levels r_0, r_1, ..., rising; at most as many as the order.
        """

    def step(self, denoiser: Denoiser, schedule: Schedule, x: Tensor, t: float, s: float, noise: Noise) -> Tensor:
        """Return x_s from x_t without earlier steps, of order 1."""
        return self._step(denoiser, schedule, x, t, s, [])[0]

    def integrate(
        self, denoiser: Denoiser, schedule: Schedule, x: Tensor, times: list[float], noise: Noise
    ) -> Iterator[tuple[float, Tensor]]:
        past: list[tuple[float, Tensor]] = []  # levels and predicted noise, the latest first
        for t, s in pairwise(times):
            x, present = self._step(denoiser, schedule, x, t, s, past)
            past = [present, *past[: self.order - 2]] if self.order > 1 else []
            yield s, x

    def _step(
        self, denoiser: Denoiser, schedule: Schedule, x: Tensor, t: float, s: float, past: list[tuple[float, Tensor]]
    ) -> tuple[Tensor, tuple[float, Tensor]]:
        """Return x_s, and level and predicted noise at t."""
        alpha_t, sigma_t = level_at(schedule, t)
        alpha_s, sigma_s = level_at(schedule, s)
        level_t = float(finite_ratio(alpha_t, sigma_t, self.grid))
        denoised = denoiser(x, alpha_t, sigma_t)
        slope = (x - alpha_t * denoised) / sigma_t
        if sigma_s == 0:
            return alpha_s * denoised, (level_t, slope)
        values = [(level_t, slope), *past]
        weights = self.weights(float(sigma_s / alpha_s), [level for level, _ in values])
        x = alpha_s / alpha_t * x
        for weight, (_, value) in zip(weights, values, strict=True):
            x = x.add_(value, alpha=float(alpha_s) * weight)
        return x, (level_t, slope)


class IPNDM(AdamsBashforth):
    """iPNDM: Adams-Bashforth with the weights of equal steps in the noise level, whatever the grid.

    The weights are those of equal steps, and on a smooth grid such as `Karras` consecutive steps are nearly equal: from
    order 2 on, the error falls with the second power of the number of steps. With few steps it is smaller than that of
    `LMS`, whose weights are exact for the grid.

    Papers: Liu et al. 2022, https://arxiv.org/abs/2202.09778; Zhang and Chen 2023, https://arxiv.org/abs/2204.13902

    Args:
        order: Largest number of values of the predicted noise, 1 to 4.
    """

    def __init__(self, order: Literal[1, 2, 3, 4] = 4, **kwargs: Any) -> None:
        super().__init__(order, **kwargs)

    def weights(self, s: float, levels: Sequence[float]) -> Sequence[float]:
        return [(s - levels[0]) * weight for weight in EQUAL_STEPS[len(levels) - 1]]


class LMS(AdamsBashforth):
    """Linear multistep method: Adams-Bashforth with a polynomial in the noise level, exact for the levels of the grid.

    It is the rho-AB method of DEIS (Zhang and Chen 2023, https://arxiv.org/abs/2204.13902). The error falls with the
    power `order` of the number of steps as long as the first steps, of lower order, hardly matter.

    Args:
        order: Largest number of values of the predicted noise, 1 to 4.
    """

    def __init__(self, order: Literal[1, 2, 3, 4] = 4, **kwargs: Any) -> None:
        super().__init__(order, **kwargs)

    def weights(self, s: float, levels: Sequence[float]) -> Sequence[float]:
        return lagrange_integrals(s, tuple(levels), np.asarray)


class DEIS(AdamsBashforth):
    """DEIS: Adams-Bashforth with a polynomial in a variable in which the predicted noise is smoother.

    - time: the time of the linear VP schedule with beta from 0.1 to 20, at the same noise level (tAB-DEIS);
    - log: the logarithm of the noise level, as in diffusers.

    Paper: Zhang and Chen 2023, https://arxiv.org/abs/2204.13902

    Args:
        order: Largest number of values of the predicted noise, 1 to 4.
        variable: Variable of the polynomial, time or log.

    Raises:
        UserError: If the variable is not one of these.
    """

    def __init__(
        self, order: Literal[1, 2, 3, 4] = 4, variable: Literal["time", "log"] = "time", **kwargs: Any
    ) -> None:
        super().__init__(order, **kwargs)
        if variable not in ("time", "log"):
            raise UserError(f"sampler.variable: {variable!r} is not a variable; choose time or log")
        self.variable = variable

    def weights(self, s: float, levels: Sequence[float]) -> Sequence[float]:
        return lagrange_integrals(s, tuple(levels), np.log if self.variable == "log" else vp_time)


def vp_time(level: np.ndarray) -> np.ndarray:
    """Return the time of the linear VP schedule at noise levels sigma / alpha; see `LinearVP`."""
    schedule = LinearVP()
    low, slope = schedule.beta_min, schedule.beta_max - schedule.beta_min
    decay = np.log1p(level**2)
    time: np.ndarray = 2 * decay / (low + np.sqrt(low**2 + 2 * slope * decay))
    return time


@lru_cache(maxsize=4096)
def lagrange_integrals(
    s: float, levels: tuple[float, ...], variable: Callable[[np.ndarray], np.ndarray]
) -> Sequence[float]:
    """Return the integrals over r from r_0 to s of the Lagrange polynomials L_k(u(r)) through the levels r_k.

    By Gauss-Legendre quadrature with 64 nodes: exact if u(r) = r, and to about 1e-13 for the variables of `DEIS`.

    Args:
        s: End of the integration.
        levels: Levels r_0, r_1, ..., distinct.
        variable: The function u.
    """
    middle, half = (s + levels[0]) / 2, (s - levels[0]) / 2
    u, at = variable(middle + half * _NODES), variable(np.array(levels))
    integrals = []
    for k, u_k in enumerate(at):
        others = np.delete(at, k)
        polynomial = math.prod(((u - other) / (u_k - other) for other in others), start=np.ones_like(u))
        integrals.append(float(half * (_WEIGHTS * polynomial).sum()))
    return integrals
