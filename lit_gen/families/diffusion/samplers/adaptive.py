r"""Adaptive integration of the probability-flow ODE: a tolerance determines the number of evaluations."""

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

# Slopes (n, ...) of the given rows of the batch, at their times (n,) and states (n, ...).
Slope = Callable[[Tensor, Tensor, Tensor], Tensor]

# The Dormand-Prince pair of orders 5 and 4: the time of each stage, and the weights of the earlier slopes. The last
# stage is the solution, and its slope is the first slope of the next step.
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
_MOST_STEPS = 1000  # exact denoisers need half as many at tolerances of 1e-14
_NUM_FRAMES = 10


class RK45(DiffusionSampler):
    r"""Adaptive solver of the probability-flow ODE with the Dormand-Prince pair of orders 5 and 4.

    It integrates dy / du = (y - D) / u for y = (1 - u) x_0 + u eps, the path of rectified flow, on every schedule of
    the model: the same levels give the same images. u runs from sigma_max / (1 + sigma_max) to
    sigma_min / (1 + sigma_min), at which the sampler returns D, like the other samplers. A step is accepted if

        sqrt(mean over pixels of (error / (atol + rtol |y|))^2) <= 1.

    Step sizes are per image, so an image does not depend on the other images of its batch. The usual solvers
    (torchdiffeq, scipy) use one step size for the whole batch; image i would then differ between batches, within the
    tolerance. Finished images are not evaluated any more: the number of evaluations is the mean over the images of a
    batch, with 2 to start and 6 per attempted step.

    The number of steps is not an argument. A trajectory contains ten noise levels of the grid `Karras`, interpolated by
    cubics between the solver's steps.

    Papers: Song et al. 2021, https://arxiv.org/abs/2011.13456 (as a sampler); Dormand and Prince 1980,
    https://doi.org/10.1016/0771-050X(80)90013-3

    Args:
        rtol: Tolerance relative to y.
        atol: Absolute tolerance, in units of the images. Steps become tiny at tolerances below the rounding error of
            the network, about 1e-6 in single and 1e-2 in half precision.
        sigma_min: Smallest noise level before 0; at least the smallest noise level of training.
        sigma_max: Largest noise level; at most the largest noise level of training.

    Raises:
        UserError: If a tolerance is not above 0; when sampling, if the steps become too small or too many.
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
                raise UserError(f"sampler.{name}: {tolerance} is not a tolerance; give a number above 0")
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
    """Integrate dy / du = slope from times[0] down to times[-1], with separate steps for each image.

    Args:
        slope: Right-hand side for any rows of the batch, each at its own time.
        y: States (N, ...) at times[0].
        times: Decreasing times; the solution has a step at the last, and is interpolated at the times between.
        rtol: Tolerance relative to y.
        atol: Absolute tolerance.
        key: Configuration key of the object with the tolerances.

    Returns:
        States at all times, and slopes at the last time.

    Raises:
        UserError: If the steps become too small or too many, because the tolerance is unattainable or y is not finite.
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
    """Round down to a power of 2^(1/4).

    The rounding errors of a network differ between batch sizes. Without this function they would change every step size
    slightly, and grow a hundredfold or more in the images.
    """
    return (4 * value.log2()).floor().div(4).exp2()


def _first_step(slope: Slope, rows: Tensor, u: Tensor, y: Tensor, slopes: Tensor, rtol: float, atol: float) -> Tensor:
    """Return the initial step sizes (N,) from the sizes of y and its first two derivatives.

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
    """Return the root mean square over pixels of value / (atol + rtol y), (n,) float64."""
    return (value / (y * rtol).add_(atol)).flatten(1).double().square_().mean(1).sqrt_()


def _hermite(share: Tensor, h: Tensor, y_0: Tensor, y_1: Tensor, slope_0: Tensor, slope_1: Tensor) -> Tensor:
    """Return the Hermite cubic through two states with their slopes, at a distance h, at a fraction `share` of h."""
    share, h = per_image(share, y_0), per_image(h, y_0)
    line = y_0 + share * (y_1 - y_0)
    bend = (1 - share) * (h * slope_0 - (y_1 - y_0)) - share * (h * slope_1 - (y_1 - y_0))
    return line + share * (1 - share) * bend
