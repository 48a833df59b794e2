r"""Denoisers: the posterior mean D(x_t) = E[x_0 | x_t], the only thing a sampler sees of a trained network.

A network is trained on one schedule to predict a quantity F; its parameterization converts F to D by

    D = c_skip x + c_out F(c_in x, c_noise).

A denoiser accepts any affine x = alpha x_0 + sigma eps, including alpha = 0: at equal ratio sigma / alpha, x and the
x_t of the training schedule differ by a scale factor, the ratio of their norms sqrt(alpha^2 + sigma^2).

D determines eps = (x - alpha D) / sigma, the score (alpha D - x) / sigma^2 and the velocity eps - D; `convert`
converts any parameterization to any other.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor, nn

from lit_gen.core.errors import UserError
from lit_gen.distributions.mixtures import GaussianMixture, Mixture
from lit_gen.families.diffusion.schedules import Schedule

Network = Callable[..., Tensor]


def per_image(value: Tensor, x: Tensor) -> Tensor:
    """Return a value (0-d or (N,)) reshaped to multiply x (N, ...) without changing the data type of x."""
    return value if value.ndim == 0 else value.to(x).reshape(-1, *[1] * (x.ndim - 1))


class Parameterization(ABC):
    """Prediction target of the network: F = a x_0 + b eps, with weights a and b that depend on the noise level.

    With x = alpha x_0 + sigma eps, D = (b x - sigma F) / (alpha b - sigma a). In all methods, alpha and sigma are those
    of the training schedule, 0-d or (N,).

    Attributes:
        max_ratio: Largest sigma / alpha at which the network is evaluated; larger ratios are clamped to it. It is
            finite if F does not determine D at pure noise (alpha = 0), or if c_noise would be infinite there.
    """

    max_ratio: float = math.inf

    @abstractmethod
    def weights(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Return (a, b) of F = a x_0 + b eps."""

    def c_in(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Return the scale of the network's input; 1 by default."""
        return torch.ones_like(alpha)

    def c_noise(self, t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Return the noise level as the network's input; 999 t by default."""
        return 999 * t

    def coefficients(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (c_in, c_skip, c_out) of D = c_skip x + c_out F(c_in x)."""
        a, b = self.weights(alpha, sigma)
        determinant = alpha * b - sigma * a
        return self.c_in(alpha, sigma), b / determinant, -sigma / determinant

    def target(self, x_0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Return the training target of the network, the F for which D = x_0."""
        a, b = self.weights(alpha, sigma)
        return per_image(a, x_0) * x_0 + per_image(b, x_0) * eps


class Epsilon(Parameterization):
    """F = eps, as in DDPM; c_noise counts the steps of the chain from 0, continuously.

    D = (x - sigma F) / alpha multiplies the error of F by sigma / alpha. At pure noise, alpha = 0, F does not
    determine D.

    Paper: Ho et al. 2020, https://arxiv.org/abs/2006.11239

    Args:
        num_timesteps: Length T of the chain; c_noise = t T - 1 is 0 .. T - 1 at its steps.
    """

    max_ratio = 1e5

    def __init__(self, num_timesteps: int = 1000) -> None:
        self.num_timesteps = num_timesteps

    def weights(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(alpha), torch.ones_like(alpha)

    def c_noise(self, t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return t * self.num_timesteps - 1


class Score(Parameterization):
    """F = sigma times the score of x_t, that is -eps, as in Song's score networks F / sigma.

    This scaling gives F unit variance and keeps it finite at sigma = 0. As in `Epsilon`, F does not determine D at pure
    noise.

    Paper: Song et al. 2021, https://arxiv.org/abs/2011.13456

    Args:
        condition: Input of the noise level: time, c_noise = 999 t, as on the VP and sub-VP paths of the paper, or
            sigma, c_noise = ln(sigma / alpha), as on its VE path.
        scale_input: Use c_in = 1 / sqrt(alpha^2 + sigma^2), which is 1 on the VP path, instead of the paper's 1.

    Raises:
        UserError: If condition is neither of these.
    """

    max_ratio = 1e5

    def __init__(self, condition: Literal["time", "sigma"] = "time", scale_input: bool = False) -> None:
        if condition not in ("time", "sigma"):
            raise UserError(f"condition: {condition!r} is not a condition of Score; choose time or sigma")
        self.condition = condition
        self.scale_input = scale_input

    def weights(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(alpha), -torch.ones_like(alpha)

    def c_in(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (alpha**2 + sigma**2).rsqrt() if self.scale_input else super().c_in(alpha, sigma)

    def c_noise(self, t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return super().c_noise(t, alpha, sigma) if self.condition == "time" else (sigma / alpha).log()


class Sample(Parameterization):
    """F = x_0 itself; the input is scaled to the norm of the variance-preserving path, c_noise = 999 t.

    Paper: Salimans and Ho 2022, https://arxiv.org/abs/2202.00512
    """

    def weights(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(alpha), torch.zeros_like(alpha)

    def c_in(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (alpha**2 + sigma**2).rsqrt()


class V(Parameterization):
    """F = (alpha eps - sigma x_0) / n with n = sqrt(alpha^2 + sigma^2), which is 1 on a variance-preserving path.

    c_in = 1 / n, so on every schedule the network's input is that of a variance-preserving path; c_noise = 999 t. It is
    -F of `EDMPreconditioning(1)`.

    Paper: Salimans and Ho 2022, https://arxiv.org/abs/2202.00512
    """

    def weights(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        c_in = self.c_in(alpha, sigma)
        return -sigma * c_in, alpha * c_in

    def c_in(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (alpha**2 + sigma**2).rsqrt()


class Velocity(Parameterization):
    """F = eps - x_0, the velocity dx/dt of rectified flow; c_noise = 999 t.

    Paper: Liu et al. 2022, https://arxiv.org/abs/2209.03003 (with time reversed)
    """

    def weights(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return -torch.ones_like(alpha), torch.ones_like(alpha)


class EDMPreconditioning(Parameterization):
    r"""EDM's F, whose input and target have unit variance at every noise level; c_noise = ln(sigma / alpha) / 4.

    With s = sigma_data and n = sqrt(sigma^2 + alpha^2 s^2), F = (sigma x_0 / s - alpha s eps) / n and c_in = 1 / n. At
    alpha = 1, c_skip = s^2 / (sigma^2 + s^2) and c_out = sigma s / sqrt(sigma^2 + s^2).

    Paper: Karras et al. 2022, https://arxiv.org/abs/2206.00364

    Args:
        sigma_data: Standard deviation of the data.

    Raises:
        UserError: If sigma_data is not above 0.
    """

    max_ratio = 1e5

    def __init__(self, sigma_data: float = 0.5) -> None:
        if not 0 < sigma_data < math.inf:
            raise UserError(f"sigma_data: {sigma_data} is not a standard deviation; give a number above 0")
        self.sigma_data = sigma_data

    def weights(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        c_in = self.c_in(alpha, sigma)
        return sigma / self.sigma_data * c_in, -alpha * self.sigma_data * c_in

    def c_in(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (sigma**2 + (alpha * self.sigma_data) ** 2).rsqrt()

    def c_noise(self, t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (sigma / alpha).log() / 4


def convert(
    value: Tensor, source: Parameterization, target: Parameterization, x: Tensor, alpha: Tensor, sigma: Tensor
) -> Tensor:
    """Convert F of one parameterization to F of another, at the same x = alpha x_0 + sigma eps.

    `convert(D, Sample(), Epsilon(), x, alpha, sigma)` is eps_hat, `convert(F, V(), Sample(), ...)` is D, and so on for
    every pair. The result is exact at both ends of time if the source determines the target; otherwise (D from eps at
    alpha = 0, eps from D at sigma = 0) it is not finite.

    Args:
        value: F of the source, (N, ...).
        source: Parameterization of the value.
        target: Parameterization of the result.
        x: Noisy images (N, ...).
        alpha: Scale of the data, 0-d or (N,).
        sigma: Scale of the noise, 0-d or (N,).
    """
    a, b = source.weights(alpha, sigma)
    a_target, b_target = target.weights(alpha, sigma)
    determinant, of_x = alpha * b - sigma * a, a_target * b - b_target * a
    of_value = (alpha * b_target - sigma * a_target) / determinant
    # If source and target are proportional, the result does not depend on x and the determinant may be 0.
    proportional = of_x == 0
    factor = torch.where(b.abs() > a.abs(), b_target / b, a_target / a)
    of_x, of_value = torch.where(proportional, 0.0, of_x / determinant), torch.where(proportional, factor, of_value)
    return per_image(of_x, x) * x + per_image(of_value, x) * value


class Denoiser(ABC):
    """E[x_0 | x_t] for any affine x_t = alpha x_0 + sigma eps.

    Attributes:
        evaluations: Number of network evaluations so far (NFE); a call for part of a batch counts as a fraction.
    """

    evaluations: float = 0

    def __call__(self, x: Tensor, alpha: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the posterior mean D, in the shape and data type of x.

        Args:
            x: Noisy images (N, ...).
            alpha: Scale of the data, 0-d or (N,).
            sigma: Scale of the noise, 0-d or (N,), above 0.
            labels: Classes (N,) for a conditional network.
        """
        self.evaluations += 1
        return self.denoise(x, alpha, sigma, labels)

    def with_variance(
        self, x: Tensor, alpha: Tensor, sigma: Tensor, labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return (D, v) from one evaluation; arguments as in `__call__`.

        v, in the shape of x, interpolates the logarithm of a step's variance between small (0) and large (1), the two
        variances of `DDPM`. It is None if the variance is not learned.

        Paper: Nichol and Dhariwal 2021, https://arxiv.org/abs/2102.09672
        """
        self.evaluations += 1
        return self.denoise_with_variance(x, alpha, sigma, labels)

    @abstractmethod
    def denoise(self, x: Tensor, alpha: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        """Return D as `__call__` does, without counting the evaluation."""

    def denoise_with_variance(
        self, x: Tensor, alpha: Tensor, sigma: Tensor, labels: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return (D, v) as `with_variance` does, without counting the evaluation."""
        return self.denoise(x, alpha, sigma, labels), None

    def given(self, labels: Tensor | None) -> "Denoiser":
        """Return this denoiser with fixed labels; its evaluations count towards this denoiser."""
        return self if labels is None else _Given(self, labels)

    def part(self, rows: Tensor, num: int) -> "Denoiser":
        """Return this denoiser for some rows of a batch; an evaluation counts as their fraction of the batch.

        Args:
            rows: Indices of the rows.
            num: Number of images in the batch.
        """
        return _Part(self, len(rows) / num)


DenoiserFunction = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""(x, alpha, sigma, labels) -> E[x_0 | x], in the shape and data type of x."""


class FunctionDenoiser(Denoiser):
    """Denoiser of a plain function or module; every call counts as one evaluation.

    Args:
        function: (x (N, ...), alpha, sigma, labels) -> D (N, ...). alpha and sigma broadcast against x: they are 0-d,
            or (N, 1, ...) for steps that differ between images. labels are None or (N,).
    """

    def __init__(self, function: DenoiserFunction) -> None:
        self.function = function

    def denoise(self, x: Tensor, alpha: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        return self.function(x, per_image(alpha, x), per_image(sigma, x), labels)


class _Given(Denoiser):
    """A denoiser with fixed labels."""

    def __init__(self, denoiser: Denoiser, labels: Tensor) -> None:
        self.denoiser = denoiser
        self.labels = labels

    def denoise(self, x: Tensor, alpha: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        return self.denoiser(x, alpha, sigma, self.labels)

    def denoise_with_variance(
        self, x: Tensor, alpha: Tensor, sigma: Tensor, labels: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        return self.denoiser.with_variance(x, alpha, sigma, self.labels)

    def part(self, rows: Tensor, num: int) -> Denoiser:
        return _Given(self.denoiser.part(rows, num), self.labels[rows])


class _Part(Denoiser):
    """A denoiser for part of a batch."""

    def __init__(self, denoiser: Denoiser, share: float) -> None:
        self.denoiser = denoiser
        self.share = share

    def part(self, rows: Tensor, num: int) -> Denoiser:
        return _Part(self.denoiser, self.share * len(rows) / num)

    def denoise(self, x: Tensor, alpha: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        before = self.denoiser.evaluations
        denoised = self.denoiser(x, alpha, sigma, labels)
        self.denoiser.evaluations = before + self.share * (self.denoiser.evaluations - before)
        return denoised


class NetworkDenoiser(Denoiser):
    """Denoiser of a network. Noise levels outside the training range are clamped to it.

    Args:
        network: F(x (N, C, ...), c_noise (N,), labels) -> (N, C, ...), or (N, 2 C, ...) with a learned variance: F and
            2 v - 1.
        schedule: Schedule that the network is trained on.
        parameterization: Meaning of F.
        clip: Clamp D to [-clip, clip], the range of the data. If alpha is almost 0 (the end of the cosine betas), D is
            the difference of two huge numbers, and only the clamp prevents a sampler from diverging.
    """

    def __init__(
        self, network: Network, schedule: Schedule, parameterization: Parameterization, clip: float | None = None
    ) -> None:
        self.network = network
        self.schedule = schedule
        self.parameterization = parameterization
        self.clip = clip

    def denoise(self, x: Tensor, alpha: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        return self.denoise_with_variance(x, alpha, sigma, labels)[0]

    def denoise_with_variance(
        self, x: Tensor, alpha: Tensor, sigma: Tensor, labels: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        if alpha.ndim == sigma.ndim == 0 and alpha.device.type == "cpu":  # the levels of samplers
            c_in, c_skip, c_out, c_noise = _one_level(self.schedule, self.parameterization, float(alpha), float(sigma))
        else:
            scale, c_in, c_skip, c_out, c_noise = _coefficients(self.schedule, self.parameterization, alpha, sigma)
            x = per_image(scale, x) * x
        parameter = next(self.network.parameters(), None) if isinstance(self.network, nn.Module) else None
        dtype = x.dtype if parameter is None else parameter.dtype
        # c_noise reaches 1000, at which half precision would merge neighbouring steps.
        c_noise = c_noise.to(x.device, torch.promote_types(dtype, torch.float32)).expand(len(x))
        output = self.network((per_image(c_in, x) * x).to(dtype), c_noise, labels).to(x.dtype)
        v = None
        if output.shape[1] == 2 * x.shape[1]:
            output, v = output.chunk(2, 1)
            v = (v + 1) / 2
        denoised = per_image(c_skip, x) * x + per_image(c_out, x) * output
        return denoised if self.clip is None else denoised.clamp_(-self.clip, self.clip), v


def _coefficients(
    schedule: Schedule, parameterization: Parameterization, alpha: Tensor, sigma: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the factor that brings x to the schedule, and c_in, c_skip, c_out and c_noise there."""
    max_ratio = min(schedule.max_ratio, parameterization.max_ratio)
    t = schedule.time((sigma / alpha).double().clamp(schedule.min_ratio, max_ratio))
    alpha_t, sigma_t = schedule(t)
    scale = ((alpha_t**2 + sigma_t**2) / (alpha**2 + sigma**2)).sqrt()
    c_noise = parameterization.c_noise(t, alpha_t, sigma_t)
    return scale, *parameterization.coefficients(alpha_t, sigma_t), c_noise


@lru_cache(maxsize=4096)
def _one_level(
    schedule: Schedule, parameterization: Parameterization, alpha: float, sigma: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return c_in, c_skip, c_out and c_noise, 0-d, for x = alpha x_0 + sigma eps; remembered from batch to batch."""
    level = (torch.tensor(value, dtype=torch.float64) for value in (alpha, sigma))
    scale, c_in, c_skip, c_out, c_noise = _coefficients(schedule, parameterization, *level)
    return scale * c_in, scale * c_skip, c_out, c_noise


class MixtureDenoiser(Denoiser):
    """Exact denoiser of a mixture, the limit of a perfectly trained network. Labels are ignored.

    Args:
        mixture: Distribution of x_0.
    """

    def __init__(self, mixture: Mixture) -> None:
        self.mixture = mixture

    def denoise(self, x: Tensor, alpha: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.mixture.posterior_mean(x, alpha, sigma)


class GaussianMixtureDenoiser(GaussianMixture, Denoiser):
    """Mixture of Gaussians that is also its exact denoiser; arguments as in `GaussianMixture`."""

    def denoise(self, x: Tensor, alpha: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.posterior_mean(x, alpha, sigma)
