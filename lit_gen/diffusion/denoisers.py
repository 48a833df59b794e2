r"""Denoisers: the posterior mean D(x_t) = E[x_0 | x_t], the only thing a sampler sees of a trained network.

A network is trained on one schedule to predict some F; its parameterization turns F into D by

    D = c_skip x + c_out F(c_in x, c_noise).

A denoiser answers for any affine x = alpha x_0 + sigma eps, alpha = 0 included: at equal ratio sigma / alpha, x and the
x_t of the training schedule differ by a scale, which is the ratio of their norms sqrt(alpha^2 + sigma^2).

From D follow eps = (x - alpha D) / sigma, the score (alpha D - x) / sigma^2 and the velocity eps - D.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lit_gen.diffusion.schedules import Schedule

Network = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def per_image(value: Tensor, x: Tensor) -> Tensor:
    """A number (0-d) or one for each image (N,), shaped to multiply x (N, ...) without changing its data type."""
    return value if value.ndim == 0 else value.to(x).reshape(-1, *[1] * (x.ndim - 1))


class Parameterization(ABC):
    """What the network predicts. Everywhere, alpha and sigma are those of the training schedule, 0-d or (N,)."""

    @abstractmethod
    def coefficients(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The triple (c_in, c_skip, c_out) of D = c_skip x + c_out F(c_in x)."""

    @abstractmethod
    def c_noise(self, t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """How the network is told the noise level."""

    @abstractmethod
    def target(self, x_0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The F for which D is x_0: what the network is trained to predict."""

    def denoised(self, output: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """D from the network's output F."""
        _, c_skip, c_out = self.coefficients(alpha, sigma)
        return per_image(c_skip, x) * x + per_image(c_out, x) * output


class Epsilon(Parameterization):
    """F = eps, as in DDPM; c_noise counts the steps of the chain from 0, continuously.

    Paper: Ho et al. 2020, https://arxiv.org/abs/2006.11239

    Args:
        num_timesteps: the length T of the chain; c_noise = t T - 1 is 0 .. T - 1 at its steps.
    """

    def __init__(self, num_timesteps: int = 1000) -> None:
        self.num_timesteps = num_timesteps

    def coefficients(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return torch.ones_like(alpha), 1 / alpha, -sigma / alpha

    def c_noise(self, t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return t * self.num_timesteps - 1

    def target(self, x_0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return eps


class Velocity(Parameterization):
    """F = eps - x_0, the velocity dx/dt of rectified flow; c_noise = 999 t.

    Paper: Liu et al. 2022, https://arxiv.org/abs/2209.03003 (with time running the other way)
    """

    def coefficients(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return torch.ones_like(alpha), 1 / (alpha + sigma), -sigma / (alpha + sigma)

    def c_noise(self, t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return 999 * t

    def target(self, x_0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return eps - x_0


class EDMPreconditioning(Parameterization):
    r"""EDM's F, whose input and target have unit variance at every noise level; c_noise = ln(sigma / alpha) / 4.

    At alpha = 1, with s = sigma_data: c_in = 1 / sqrt(sigma^2 + s^2), c_skip = s^2 / (sigma^2 + s^2),
    c_out = sigma s / sqrt(sigma^2 + s^2).

    Paper: Karras et al. 2022, https://arxiv.org/abs/2206.00364

    Args:
        sigma_data: the standard deviation of the data.
    """

    def __init__(self, sigma_data: float = 0.5) -> None:
        self.sigma_data = sigma_data

    def _variance(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return sigma**2 + (alpha * self.sigma_data) ** 2

    def coefficients(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        variance = self._variance(alpha, sigma)
        return variance**-0.5, alpha * self.sigma_data**2 / variance, sigma * self.sigma_data * variance**-0.5

    def c_noise(self, t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (sigma / alpha).log() / 4

    def target(self, x_0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        norm = self._variance(alpha, sigma).sqrt()
        of_data, of_noise = sigma / (self.sigma_data * norm), alpha * self.sigma_data / norm
        return per_image(of_data, x_0) * x_0 - per_image(of_noise, x_0) * eps


class Denoiser(ABC):
    """E[x_0 | x_t] for any affine x_t = alpha x_0 + sigma eps.

    Attributes:
        evaluations: the number of calls made so far (NFE).
    """

    evaluations: int = 0

    def __call__(self, x: Tensor, alpha: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """The posterior mean, in the shape and data type of x.

        Args:
            x: the noisy images (N, ...).
            alpha: scale of the data, 0-d or (N,).
            sigma: scale of the noise, 0-d or (N,), above 0.
            labels: classes (N,) for a conditional network.
        """
        self.evaluations += 1
        return self.denoise(x, alpha, sigma, labels)

    @abstractmethod
    def denoise(self, x: Tensor, alpha: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        """As `__call__`, uncounted."""

    def given(self, labels: Tensor | None) -> "Denoiser":
        """This denoiser with its labels filled in; evaluations still count here."""
        return self if labels is None else _Given(self, labels)


class _Given(Denoiser):
    def __init__(self, denoiser: Denoiser, labels: Tensor) -> None:
        self.denoiser = denoiser
        self.labels = labels

    def denoise(self, x: Tensor, alpha: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        return self.denoiser(x, alpha, sigma, self.labels)


class NetworkDenoiser(Denoiser):
    """The denoiser of a network. Noise levels outside the range that it was trained on are moved to the nearest end.

    Args:
        network: F(x (N, ...), c_noise (N,), labels) -> (N, ...).
        schedule: the schedule that it is trained on.
        parameterization: what F is.
        clip: clamp D to [-clip, clip], the range of the data. Where alpha is almost 0 (the end of the cosine betas) D
            is the difference of two huge numbers, and only this keeps a sampler from blowing up.
    """

    def __init__(
        self, network: Network, schedule: Schedule, parameterization: Parameterization, clip: float | None = None
    ) -> None:
        self.network = network
        self.schedule = schedule
        self.parameterization = parameterization
        self.clip = clip

    def denoise(self, x: Tensor, alpha: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        t = self.schedule.time((sigma / alpha).double().clamp(self.schedule.min_ratio, self.schedule.max_ratio))
        alpha_t, sigma_t = self.schedule(t)
        x = per_image(((alpha_t**2 + sigma_t**2) / (alpha**2 + sigma**2)).sqrt(), x) * x
        c_in, _, _ = self.parameterization.coefficients(alpha_t, sigma_t)
        c_noise = self.parameterization.c_noise(t, alpha_t, sigma_t)
        parameter = next(self.network.parameters(), None) if isinstance(self.network, nn.Module) else None
        dtype = x.dtype if parameter is None else parameter.dtype
        # c_noise runs to 1000: half precision would merge neighbouring steps.
        c_noise = c_noise.to(x.device, torch.promote_types(dtype, torch.float32)).expand(len(x))
        output = self.network((per_image(c_in, x) * x).to(dtype), c_noise, labels).to(x.dtype)
        denoised = self.parameterization.denoised(output, x, alpha_t, sigma_t)
        return denoised if self.clip is None else denoised.clamp_(-self.clip, self.clip)


class GaussianMixtureDenoiser(Denoiser):
    r"""The exact denoiser of x_0 ~ sum_k w_k N(m_k, diag(s_k^2)): what a perfect network would answer.

    Given the component, x_t is normal with mean alpha m_k and variance v_k = alpha^2 s_k^2 + sigma^2, so that

        D = sum_k p(k | x) (m_k + alpha s_k^2 / v_k (x - alpha m_k)),    p(k | x) ~ w_k N(x; alpha m_k, v_k).

    Labels are ignored.

    Args:
        means: (K, ...), the shape of one image after the first axis.
        stds: (K,) for isotropic components, or the shape of the means.
        weights: (K,), positive; normalised here. Default: equal.
    """

    def __init__(self, means: Tensor, stds: Tensor, weights: Tensor | None = None) -> None:
        self.means = means.double().flatten(1)
        self.variances = stds.double().reshape(len(means), -1).expand_as(self.means) ** 2
        weights = torch.ones(len(means)) if weights is None else weights
        self.weights = weights.to(self.means) / weights.to(self.means).sum()

    def _components(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """log w_k N(x; alpha m_k, v_k) as (N, K) and E[x_0 | x, k] as (N, K, D)."""
        x = x.double().flatten(1)[:, None]
        alpha, sigma = (value.to(x).reshape(-1, 1, 1) for value in (alpha, sigma))
        means, variances = self.means.to(x.device), self.variances.to(x.device)
        variance = alpha**2 * variances + sigma**2
        residual = x - alpha * means
        log_density = -0.5 * (residual**2 / variance + (2 * math.pi * variance).log()).sum(-1)
        return self.weights.to(x.device).log() + log_density, means + alpha * variances / variance * residual

    def denoise(self, x: Tensor, alpha: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        log_joint, means = self._components(x, alpha, sigma)
        return (log_joint.softmax(-1)[..., None] * means).sum(1).reshape(x.shape).to(x.dtype)

    def log_density(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """log p(x_t), in nats, (N,)."""
        return self._components(x, alpha, sigma)[0].logsumexp(-1)
