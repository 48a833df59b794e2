r"""The posterior of one step of a diffusion process, from time t to an earlier time s.

With a = alpha_t / alpha_s and v = sigma_t^2 - a^2 sigma_s^2, the forward transition is x_t = a x_s + N(0, v I), and

    q(x_s | x_t, x_0) = N((a sigma_s^2 x_t + alpha_s v x_0) / sigma_t^2, v sigma_s^2 / sigma_t^2 I).

A model replaces x_0 by its estimate D and chooses the variance of the step:

| variance | value | exact for |
| --- | --- | --- |
| small | v sigma_s^2 / sigma_t^2 | data at one point |
| large | v (alpha_s^2 + sigma_s^2) / (alpha_t^2 + sigma_t^2) | data from N(0, I) |
| learned | large^u small^(1 - u), with u predicted by the network for each pixel | |

Papers: Ho et al. 2020, https://arxiv.org/abs/2006.11239; Nichol and Dhariwal 2021, https://arxiv.org/abs/2102.09672
(learned)
"""

from typing import Literal, NamedTuple

from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.families.diffusion.denoisers import per_image
from lit_gen.families.diffusion.schedules import Schedule

StepVariance = Literal["small", "large", "learned"]


class Posterior(NamedTuple):
    """Coefficients and variances of a step, each in the shape of the times, 0-d or (N,).

    Attributes:
        of_x: Coefficient of x_t in the mean of q(x_s | x_t, x_0).
        of_data: Coefficient of x_0 in that mean.
        small: Variance of q(x_s | x_t, x_0).
        large: Variance of q(x_s | x_t) for data from N(0, I).
    """

    of_x: Tensor
    of_data: Tensor
    small: Tensor
    large: Tensor

    def mean(self, x_t: Tensor, x_0: Tensor) -> Tensor:
        """Return the mean of q(x_s | x_t, x_0), in the shape (N, ...) of x_t and x_0."""
        return per_image(self.of_x, x_t) * x_t + per_image(self.of_data, x_0) * x_0


def posterior(schedule: Schedule, t: Tensor | float, s: Tensor | float) -> Posterior:
    """Return the posterior q(x_s | x_t, x_0) of the step from t to s.

    Args:
        schedule: Schedule of the process.
        t: Time of x_t, 0-d or (N,).
        s: Earlier time, 0-d or (N,).
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
    a = alpha_t / alpha_s
    v = sigma_t**2 - (a * sigma_s) ** 2
    return Posterior(
        of_x=a * sigma_s**2 / sigma_t**2,
        of_data=alpha_s * v / sigma_t**2,
        small=v * sigma_s**2 / sigma_t**2,
        large=v * (alpha_s**2 + sigma_s**2) / (alpha_t**2 + sigma_t**2),
    )


def step_variance(kind: StepVariance, small: Tensor, large: Tensor, between: Tensor | None, key: str) -> Tensor:
    """Return the variance of p(x_s | x_t) that a model uses for a step.

    Args:
        kind: Choice of the variance.
        small: Smallest variance of the step, broadcastable to the images.
        large: Largest variance of the step, broadcastable to the images.
        between: Network's prediction u for each pixel, (N, ...), or None if the model does not learn the variance.
        key: Configuration key of `kind`, for the error message.

    Raises:
        UserError: If `kind` is learned and the model has no learned variance.
    """
    if kind != "learned":
        return small if kind == "small" else large
    if between is None:
        raise UserError(f"{key}: learned, but this model has no learned variance; choose small or large")
    return small * (large / small) ** between
