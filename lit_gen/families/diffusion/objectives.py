r"""Training objectives: a mean squared error, weighted over the noise levels, and bounds on the likelihood.

    loss = w(t) |D - x_0|^2 = w(t) c_out^2 |F(c_in x_t, c_noise, labels) - F*|^2,    x_t = alpha(t) x_0 + sigma(t) eps,

averaged over pixels, over times from a density, and over x_0 and eps; F* is the target of the parameterization. By
default w = 1 / c_out^2, the plain error of the network's prediction. In units of |D - x_0|^2, with the noise level
r = sigma / alpha, the usual losses are

| loss | w | class |
| --- | --- | --- |
| eps (DDPM's simple loss, score matching with weight sigma^2) | 1 / r^2 | `ErrorOf(Epsilon())` |
| v on a variance-preserving schedule | 1 + 1 / r^2 | `ErrorOf(V())` |
| velocity of the straight path (flow matching) | (1 + 1 / r)^2 | `ErrorOf(Velocity())` |
| EDM, s = sigma_data | (r^2 + s^2) / (r s)^2 | `ErrorOf(EDMPreconditioning(s))` |
| truncated signal-to-noise ratio | min(1 / r^2, gamma) | `MinSNR(gamma)` |
| variational bound | -(1 / r^2)' / (2 p(t)) | `ELBO()` |
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from lit_gen.core.errors import UserError
from lit_gen.families.diffusion.denoisers import NetworkDenoiser, Parameterization, per_image
from lit_gen.families.diffusion.densities import TimeDensity
from lit_gen.families.diffusion.likelihood import discretised_gaussian_log_prob
from lit_gen.families.diffusion.posterior import posterior
from lit_gen.families.diffusion.schedules import DiscreteVP, Schedule


class LossWeight(ABC):
    """Weight w(t) of |D - x_0|^2."""

    @abstractmethod
    def __call__(self, schedule: Schedule, density: TimeDensity, t: Tensor) -> Tensor:
        """Return the weights (N,), float64, at times t (N,) sampled from the density."""


class ErrorOf(LossWeight):
    """Squared error of the target of any parameterization, independent of the network's own: w = 1 / c_out^2.

    Args:
        target: Parameterization of the error.
    """

    def __init__(self, target: Parameterization) -> None:
        self.target = target

    def __call__(self, schedule: Schedule, density: TimeDensity, t: Tensor) -> Tensor:
        _, _, c_out = self.target.coefficients(*schedule(t))
        return c_out**-2


class MinSNR(LossWeight):
    """w = min(SNR, gamma) with SNR = (alpha / sigma)^2, so that no noise level outweighs the others.

    The error of eps then has the weight min(SNR, gamma) / SNR, and that of v the weight min(SNR, gamma) / (SNR + 1).

    Paper: Hang et al. 2023, https://arxiv.org/abs/2303.09556

    Args:
        gamma: Maximum weight.

    Raises:
        UserError: If gamma is not above 0.
    """

    def __init__(self, gamma: float = 5.0) -> None:
        if gamma <= 0:
            raise UserError(f"gamma: {gamma} is not a weight of the loss; give a number above 0")
        self.gamma = gamma

    def __call__(self, schedule: Schedule, density: TimeDensity, t: Tensor) -> Tensor:
        alpha, sigma = schedule(t)
        return (alpha / sigma).square().clamp(max=self.gamma)


class ELBO(LossWeight):
    r"""w = -SNR'(t) / (2 p(t)): the mean loss is the diffusion term of the evidence lower bound, in nats per dimension.

        -log p(x_0) <= E int_0^1 -SNR'(t) / 2 |x_0 - D(x_t)|^2 dt + (reconstruction and prior terms)

    The mean loss does not depend on the density of t, only its variance does. This is also the likelihood weighting
    g(t)^2 of score matching.

    Papers: Kingma et al. 2021, https://arxiv.org/abs/2107.00630; Song et al. 2021, https://arxiv.org/abs/2101.09258
    """

    def __call__(self, schedule: Schedule, density: TimeDensity, t: Tensor) -> Tensor:
        alpha, sigma = schedule(t)
        d_alpha, d_sigma = schedule.derivatives(t)
        return alpha * (d_sigma * alpha - d_alpha * sigma) / (sigma**3 * density.pdf(schedule, t))


def network_error(
    denoiser: NetworkDenoiser,
    images: Tensor,
    t: Tensor,
    eps: Tensor,
    labels: Tensor | None = None,
    augment_labels: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the network's error F - F* (N, C, ...), and its other outputs (N, 0 or C, ...), a learned variance.

    Args:
        denoiser: Network with its schedule and parameterization.
        images: Images x_0, (N, C, ...).
        t: Times (N,), float64.
        eps: Noise paired with each image, in the shape of the images.
        labels: Classes (N,) for a conditional network.
        augment_labels: Labels (N, A) of the augmentation of the images, for a network conditioned on them.
    """
    parameterization = denoiser.parameterization
    alpha, sigma = denoiser.schedule(t)
    c_in, _, _ = parameterization.coefficients(alpha, sigma)
    c_noise = parameterization.c_noise(t, alpha, sigma).to(images.dtype)
    x = torch.addcmul(per_image(c_in * alpha, images) * images, per_image(c_in * sigma, images), eps)
    conditions = (labels,) if augment_labels is None else (labels, augment_labels)
    output = denoiser.network(x, c_noise, *conditions).to(images.dtype)
    target = parameterization.target(images, eps, alpha, sigma)
    channels = images.shape[1]
    if output.shape[1] == channels:
        return output - target, output[:, :0]
    return output[:, :channels] - target, output[:, channels:]


def mean_square(error: Tensor) -> Tensor:
    """Return the mean square over all axes except the first, (N,)."""
    return error.square().flatten(1).mean(1)


def diffusion_loss(
    denoiser: NetworkDenoiser,
    images: Tensor,
    t: Tensor,
    eps: Tensor,
    labels: Tensor | None = None,
    augment_labels: Tensor | None = None,
) -> Tensor:
    """Return the loss of each image, (N,), the mean over its pixels of |F - F*|^2; arguments as in `network_error`."""
    return mean_square(network_error(denoiser, images, t, eps, labels, augment_labels)[0])


def weighted(
    loss: Tensor, denoiser: NetworkDenoiser, weight: LossWeight | None, density: TimeDensity, t: Tensor
) -> Tensor:
    """Weight the losses (N,) of `diffusion_loss` at times t (N,) to w(t) |D - x_0|^2.

    Args:
        loss: Losses |F - F*|^2, (N,).
        denoiser: Network with its schedule and parameterization.
        weight: Weight w(t), or None to leave the losses unchanged.
        density: Density of the times.
        t: Times (N,), float64.
    """
    if weight is None:
        return loss
    _, _, c_out = denoiser.parameterization.coefficients(*denoiser.schedule(t))
    return loss * (weight(denoiser.schedule, density, t) * c_out**2).to(loss)


def hybrid_loss(
    denoiser: NetworkDenoiser,
    images: Tensor,
    t: Tensor,
    eps: Tensor,
    labels: Tensor | None = None,
    augment_labels: Tensor | None = None,
    vlb_weight: float = 1e-3,
) -> Tensor:
    """Return the loss of each image with a learned variance, (N,), |F - F*|^2 + vlb_weight L_vlb.

    L_vlb (see `variational_loss`) is in bits per dimension and trains only the variance: its gradient does not pass
    through the mean.

    Paper: Nichol and Dhariwal 2021, https://arxiv.org/abs/2102.09672

    Args:
        denoiser: Network with an output of 2 C channels, on a discrete chain.
        images: Images x_0, (N, C, ...), 8-bit values in [-1, 1].
        t: Steps k / T of the chain, (N,), float64.
        eps: Noise paired with each image, in the shape of the images.
        labels: Classes (N,) for a conditional network.
        augment_labels: Labels (N, A) of the augmentation of the images, for a network conditioned on them.
        vlb_weight: Weight lambda of L_vlb.

    Raises:
        UserError: If the schedule is not `DiscreteVP`, or the network has no output for the variance.
    """
    error, variance = network_error(denoiser, images, t, eps, labels, augment_labels)
    return mean_square(error) + vlb_weight * _bound(denoiser, images, t, error.detach(), variance)


def variational_loss(
    denoiser: NetworkDenoiser,
    images: Tensor,
    t: Tensor,
    eps: Tensor,
    labels: Tensor | None = None,
    augment_labels: Tensor | None = None,
) -> Tensor:
    r"""Return L_vlb of each image, (N,), in bits per dimension, T times the term of the bound at its step.

        L_{k - 1} = KL(q(x_{k - 1} | x_k, x_0) || p(x_{k - 1} | x_k)),    L_0 = -log P(x_0 | x_1)

    with the mean of p as in `DDPM` and its variance learned. Its mean over uniform steps is the bound without the prior
    term, which has no parameters. Arguments as in `hybrid_loss`.

    Paper: Nichol and Dhariwal 2021, https://arxiv.org/abs/2102.09672
    """
    return _bound(denoiser, images, t, *network_error(denoiser, images, t, eps, labels, augment_labels))


def _bound(denoiser: NetworkDenoiser, images: Tensor, t: Tensor, error: Tensor, variance: Tensor) -> Tensor:
    """Return T times the terms of the bound, (N,) in bits per dimension.

    The means of p and q differ by the coefficient of x_0 times D - x_0 = c_out (F - F*), so a term depends only on the
    error F - F*.
    """
    schedule = denoiser.schedule
    if not isinstance(schedule, DiscreteVP):
        raise UserError(
            f"model.schedule: the variational bound needs discrete steps, not {type(schedule).__name__}; choose "
            "DiscreteVP"
        )
    if variance.shape != error.shape:
        raise UserError(
            "model.network: a learned variance needs twice the channels of the images; set out_channels to that number"
        )
    num = schedule.num_timesteps
    step = (t * num).round()
    _, of_data, _, large = posterior(schedule, step / num, (step - 1) / num)
    # The posterior of the first step has variance 0; use the small variance of the second step for it.
    small = posterior(schedule, step.clamp(min=2) / num, (step.clamp(min=2) - 1) / num).small
    _, _, c_out = denoiser.parameterization.coefficients(*schedule(t))
    # log(learned variance / small variance)
    log_ratio = (variance + 1) / 2 * per_image((large / small).log(), images)
    square = 1 + per_image((of_data * c_out) ** 2 / small, images) * error.square()
    terms = 0.5 * (log_ratio - 1 + square * (-log_ratio).exp())
    first = step == 1
    mean = images[first] + per_image(c_out[first], images) * error[first]
    log_std = (per_image(small.log()[first], images) + log_ratio[first]) / 2
    nll = -discretised_gaussian_log_prob(images[first], mean, log_std.exp())
    return terms.index_put((first,), nll).flatten(1).mean(1) * (num / math.log(2))


class Uncertainty(nn.Module):
    r"""Learned u(t) that balances the noise levels: L becomes L / exp(u) + u, with its minimum at u = log E[L | t].

    The loss of each noise level is thus relative to the loss that is attainable there. u is a linear function of random
    Fourier features sqrt(2) cos(2 pi (f_k z + phi_k)) of z = ln(sigma / alpha) / 4, and 0 at initialisation.

    Paper: Karras et al. 2024, https://arxiv.org/abs/2312.02696

    Args:
        num_features: Number of Fourier features.
    """

    frequencies: Tensor
    phases: Tensor

    def __init__(self, num_features: int = 128) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(num_features))
        self.register_buffer("phases", torch.rand(num_features))
        self.weight = nn.Parameter(torch.zeros(num_features))
        self.bias = nn.Parameter(torch.zeros(()))

    def level(self, ratio: Tensor) -> Tensor:
        """Return u (N,) at noise levels sigma / alpha (N,)."""
        z = (ratio.log() / 4).clamp(-10, 10).to(self.weight)  # finite at both ends of time
        features = math.sqrt(2) * (2 * math.pi * (z[:, None] * self.frequencies + self.phases)).cos()
        u: Tensor = (features * self.weight).sum(1) / len(self.weight) ** 0.5 + self.bias
        return u

    def forward(self, loss: Tensor, ratio: Tensor) -> Tensor:
        """Return L / exp(u) + u for losses (N,) at noise levels sigma / alpha (N,)."""
        u = self.level(ratio)
        return loss / u.exp() + u
