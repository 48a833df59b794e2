r"""Adaptive integration of the probability-flow ODE: the tolerance is given, and the number of evaluations follows."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.families.diffusion.denoisers import Denoiser, per_image
from lit_gen.families.diffusion.grids import Karras
from lit_gen.families.diffusion.samplers.base import DiffusionSampler
from lit_gen.families.diffusion.schedules import Schedule

# Slopes (n, ...) of the given rows of the batch at their times (n,) and states (n, ...).
Slope = Callable[[Tensor, Tensor, Tensor], Tensor]

# The Dormand-Prince pair of orders 5 and 4: the time of each stage, and the weights of the slopes before it. The last
# stage is the solution, and its slope the first of the next step.
_STAGES = (
    (1 / 5, (1 / 5,)),
    (3 / 10, (3 / 40, 9 / 40)),
    (4 / 5, (44 / 45, -56 / 15, 32 / 9)),
    (8 / 9, (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729)),
    (1.0, (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656)),
    (1.0, (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84)),
)
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
_SAFETY, _LEAST_FACTOR, _GREATEST_FACTOR = 0.9, 0.2, 10.0
_LEAST_STEP = 1e-10
_MOST_STEPS = 1000  # exact denoisers take half of them at tolerances of 1e-14
_NUM_FRAMES = 10


class RK45(DiffusionSampler):
    r"""The probability-flow ODE by the Dormand-Prince pair of orders 5 and 4, in steps that the tolerance chooses.

    Integrates dy / du = (y - D) / u for y = (1 - u) x_0 + u eps, the path of rectified flow, whatever the schedule of
    the model: the same levels give the same images on every schedule. u runs from sigma_max / (1 + sigma_max) to
    sigma_min / (1 + sigma_min), and there D is returned, as by the other samplers. A step is accepted if

        sqrt(mean over pixels of (error / (atol + rtol |y|))^2) <= 1.

    Each image has steps of its own, so that it does not depend on those drawn beside it. Solvers of the usual kind
    (torchdiffeq, scipy) have one step size for the whole batch, and would make image i another one in each batch, as
    far as the tolerance allows. An image that has arrived is evaluated no more: the count of evaluations is the mean
    over the images of a batch, 2 for the start of each and 6 for each step tried.

    There are no steps to choose. A trajectory holds ten noise levels of the grid `Karras`, between whose steps it is
    interpolated by cubics.

    Papers: Song et al. 2021, https://arxiv.org/abs/2011.13456 (as a sampler); Dormand and Prince 1980,
    https://doi.org/10.1016/0771-050X(80)90013-3

    Args:
        rtol: tolerance relative to y.
        atol: absolute tolerance, in units of the images. Below the rounding of the network, about 1e-6 in single and
            1e-2 in half precision, steps become tiny.
        sigma_min: the least noise level before 0; raised to the least that the model was trained on.
        sigma_max: the greatest noise level; lowered to the greatest that the model was trained on.

    Raises:
        UserError: a tolerance is not above 0; when sampling, the steps became too small to advance, or too many.
    """

    def __init__(
        self,
        rtol: float = 1e-5,
        atol: float = 1e-5,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for name, tolerance in {"rtol": rtol, "atol": atol}.items():
            if tolerance <= 0:
                raise UserError(f"{name} of the sampler RK45 must be above 0, not {tolerance}")
        self.rtol = rtol
        self.atol = atol
        self._levels = Karras(sigma_min=sigma_min, sigma_max=sigma_max)
        self.sigma_min = sigma_min
        self.sigma_max = sigma_max

    def times(self, schedule: Schedule) -> list[float]:
        times: list[float] = self._levels(schedule, _NUM_FRAMES).tolist()
        return times

    def integrate(
        self, denoiser: Denoiser, schedule: Schedule, x: Tensor, times: list[float], noise: Noise
    ) -> Iterator[tuple[float, Tensor]]:
        scales = [float(sum(schedule(t))) for t in times]
        levels = [float(schedule(t)[1]) / scale for t, scale in zip(times, scales, strict=True)]

        def slope(rows: Tensor, u: Tensor, y: Tensor) -> Tensor:
            some = denoiser if len(rows) == len(x) else denoiser.part(rows, len(x))
            return (y - some(y, 1 - u, u)).div_(per_image(u, y))

        y, slopes = solve(slope, x / scales[0], levels[:-1], self.rtol, self.atol)
        for t, scale, state in zip(times[1:-1], scales[1:-1], y[1:], strict=True):
            yield t, scale * state
        yield times[-1], y[-1] - levels[-2] * slopes


def solve(
    slope: Slope, y: Tensor, times: list[float], rtol: float, atol: float, key: str = "sampler"
) -> tuple[list[Tensor], Tensor]:
    """Integrates dy / du = slope for each image by itself, from times[0] down to times[-1].

    Args:
        slope: of any rows of the batch, each at a time of its own.
        y: the states (N, ...) at times[0].
        times: decreasing; the solution steps on the last of them, and is interpolated at those between.
        rtol: tolerance relative to y.
        atol: absolute tolerance.
        key: what the configuration calls that which has the tolerances.

    Returns:
        The states at all the times, and the slopes at the last.

    Raises:
        UserError: the steps became too small to advance, or too many: the tolerance is out of reach, or y is not
            finite.
    """
    end = times[-1]
    u = torch.full((len(y),), times[0], dtype=torch.float64, device=y.device)
    rows = torch.arange(len(y), device=y.device)
    slopes = slope(rows, u, y)
    step = _coarse(_first_step(slope, rows, u, y, slopes, rtol, atol))
    states = [y, *(torch.zeros_like(y) for _ in times[2:]), y.clone()]
    y = states[-1]
    tried = 0
    while len(rows):
        u_0, y_0, h = u[rows], y[rows], step[rows]
        u_1 = torch.where(1.01 * h >= u_0 - end, end, u_0 - h)  # extend the last step rather than leave a tiny one
        h = u_0 - u_1
        _check_progress(tried, u_0, h, key)
        tried += 1
        y_1, slopes_of_step = _trial_step(slope, rows, u_0, u_1, y_0, slopes[rows])
        error = _size(per_image(h, y_0) * _combined(slopes_of_step, _ERROR), y_0.abs().maximum(y_1.abs()), rtol, atol)
        accepted = error <= 1
        factor = (_SAFETY * error**-0.2).nan_to_num(_LEAST_FACTOR).clamp(_LEAST_FACTOR, _GREATEST_FACTOR)
        step[rows] = h * _coarse(torch.where(accepted, factor, factor.clamp(max=1.0)))
        for time, state in zip(times[1:-1], states[1:-1], strict=True):
            inside = accepted & (u_1 <= time) & (time < u_0)
            if inside.any():
                share = ((u_0 - time) / h)[inside]
                ends = y_0[inside], y_1[inside], slopes_of_step[0][inside], slopes_of_step[-1][inside]
                state[rows[inside]] = _hermite(share, -h[inside], *ends)
        done = rows[accepted]
        u[done], y[done], slopes[done] = u_1[accepted], y_1[accepted], slopes_of_step[-1][accepted]
        rows = rows[~accepted | (u_1 > end)]
    return states, slopes


def _check_progress(tried: int, u: Tensor, h: Tensor, key: str) -> None:
    """Raise a UserError if the integration has stalled.

    Args:
        tried: Number of steps tried so far.
        u: Times (n,) of the images that have not arrived.
        h: Their next step sizes (n,).
        key: Configuration key of the object with the tolerances.
    """
    if tried == _MOST_STEPS or not bool((h > _LEAST_STEP).all()):
        raise UserError(
            f"{key}.rtol: RK45 makes no progress at u = {float(u.min()):.3g} after {tried} steps, because the network "
            f"cannot meet its tolerance or returns non-finite values; raise {key}.rtol and {key}.atol"
        )


def _trial_step(
    slope: Slope, rows: Tensor, u_0: Tensor, u_1: Tensor, y_0: Tensor, slope_0: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Return the solution of order 5 at u_1 and the slopes of all stages of one Dormand-Prince step.

    Args:
        slope: Right-hand side of the ODE.
        rows: Indices (n,) of the images in the batch.
        u_0: Start times (n,).
        u_1: End times (n,).
        y_0: States (n, ...) at u_0.
        slope_0: Slopes (n, ...) at u_0.
    """
    h, y, slopes = u_0 - u_1, y_0, [slope_0]
    for node, weights in _STAGES:
        y = y_0 - per_image(h, y_0) * _combined(slopes, weights)
        slopes.append(slope(rows, u_0 - node * h if node < 1 else u_1, y))
    return y, slopes


def _coarse(value: Tensor) -> Tensor:
    """Rounded down to a power of 2^(1/4).

    A network's rounding differs between sizes of a batch. Without this it would change every step by a little, and be
    multiplied a hundredfold and more in the images.
    """
    return (4 * value.log2()).floor().div(4).exp2()


def _first_step(slope: Slope, rows: Tensor, u: Tensor, y: Tensor, slopes: Tensor, rtol: float, atol: float) -> Tensor:
    """The step with which to begin, (N,), from the sizes of y and its first two derivatives.

    Hairer et al. 1993, "Solving Ordinary Differential Equations I", chapter II.4.
    """
    of_y, of_slope = (_size(value, y.abs(), rtol, atol) for value in (y, slopes))
    tiny = (of_y < 1e-5) | (of_slope < 1e-5)
    trial = torch.where(tiny, 1e-6, 0.01 * of_y / of_slope).minimum(u / 2)
    change = slope(rows, u - trial, y - per_image(trial, y) * slopes) - slopes
    of_curvature = _size(change, y.abs(), rtol, atol) / trial
    return (0.01 / of_slope.maximum(of_curvature)).pow(0.2).minimum(100 * trial)


def _combined(slopes: list[Tensor], weights: tuple[float, ...]) -> Tensor:
    total = slopes[0] * weights[0]
    for value, weight in zip(slopes[1:], weights[1:], strict=True):
        if weight != 0:
            total.add_(value, alpha=weight)
    return total


def _size(value: Tensor, y: Tensor, rtol: float, atol: float) -> Tensor:
    """The root mean square over pixels of value / (atol + rtol y), (n,) float64."""
    return (value / (y * rtol).add_(atol)).flatten(1).double().square_().mean(1).sqrt_()


def _hermite(share: Tensor, h: Tensor, y_0: Tensor, y_1: Tensor, slope_0: Tensor, slope_1: Tensor) -> Tensor:
    """The cubic through two states with their slopes, h apart, at a share of the way."""
    share, h = per_image(share, y_0), per_image(h, y_0)
    line = y_0 + share * (y_1 - y_0)
    bend = (1 - share) * (h * slope_0 - (y_1 - y_0)) - share * (h * slope_1 - (y_1 - y_0))
    return line + share * (1 - share) * bend
