"""Pixel likelihoods p(image | params) given parameter maps, the output of a decoder or a causal network.

Images (N, C, H, W) contain the values u / 127.5 - 1 of 8-bit u, except for `Gaussian`, which is a density of
dequantised images. Parameter maps are (N, P, H, W) and unbounded, with P = `num_params(C)`; a pixel depends only on the
parameters at its position. All values are computed in float32 or float64.
"""

import math
from abc import ABC, abstractmethod
from itertools import count
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.core.pixels import BIN_WIDTH, from_levels, nearest_levels

HALF_BIN = BIN_WIDTH / 2
MIN_LOG_SCALE, MAX_LOG_SCALE = -7.0, 7.0


class PixelLikelihood(nn.Module, ABC):
    """Likelihood p(image | params) of the pixels.

    Attributes:
        dequantisation: Conversion of 8-bit values to points of a density; none if the values have masses.
    """

    dequantisation: ClassVar[Literal["uniform", "none"]] = "none"

    @abstractmethod
    def num_params(self, channels: int) -> int:
        """Return the number P of parameter maps for images with this number of channels."""

    @abstractmethod
    def log_prob(self, images: Tensor, params: Tensor) -> Tensor:
        """Return log p of each image, (N,) in nats, summed over its pixels and channels."""

    @abstractmethod
    def mean(self, params: Tensor) -> Tensor:
        """Return E[image], (N, C, H, W)."""

    def centre(self, params: Tensor) -> Tensor:
        """Return the images without pixel noise (N, C, H, W), for display; by default the mean."""
        return self.mean(params)

    @abstractmethod
    def sample(self, params: Tensor, noise: Noise, temperature: float = 1.0) -> Tensor:
        """Sample images (N, C, H, W) of 8-bit values u / 127.5 - 1.

        Args:
            params: Parameter maps (N, P, H, W).
            noise: Random numbers by image index.
            temperature: Divisor of logits and factor of scales; 1 is the distribution itself.
        """

    def check_levels(self, name: str, num_levels: int | None) -> None:
        """Raise a UserError unless the likelihood fits the values of the data.

        Args:
            name: Name of the data.
            num_levels: Number of distinct values of a pixel; None for points.
        """
        if num_levels is None:
            raise UserError(
                f"model.likelihood: {type(self).__name__} needs pixel values, but {name} contains points; choose a "
                "data.source of images"
            )


class Bernoulli(PixelLikelihood):
    """Bernoulli likelihood of binary images, p(x = 1) = sigmoid(param) and p(x = -1) = sigmoid(-param).

    There is one map per channel.
    """

    def num_params(self, channels: int) -> int:
        return channels

    def log_prob(self, images: Tensor, params: Tensor) -> Tensor:
        return functional.logsigmoid(images.sign() * _full(params)).flatten(1).sum(1)

    def mean(self, params: Tensor) -> Tensor:
        return torch.tanh(_full(params) / 2)

    def sample(self, params: Tensor, noise: Noise, temperature: float = 1.0) -> Tensor:
        params = _full(params)
        u = noise.uniform(params.shape[1:], params.dtype).to(params.device)
        return torch.where(u < torch.sigmoid(params / temperature), 1.0, -1.0).to(params.dtype)

    def check_levels(self, name: str, num_levels: int | None) -> None:
        super().check_levels(name, num_levels)
        if num_levels != 2:
            raise UserError(
                f"model.likelihood: Bernoulli needs binary images, but {name} has {num_levels} grey levels; set "
                "data.source to Binarised, or choose another likelihood"
            )


class Categorical(PixelLikelihood):
    """Categorical likelihood, a softmax over `num_levels` logits of each pixel and channel.

    The maps are the logits of the first channel from the darkest value to the brightest, then those of the next
    channel.

    Args:
        num_levels: Number of values, evenly spaced from -1 to 1; 256 for 8-bit images.
    """

    def __init__(self, num_levels: int = 256) -> None:
        super().__init__()
        if not 2 <= num_levels <= 256:
            raise UserError(
                f"model.likelihood.num_levels: {num_levels} is not in 2..256; give the number of grey levels, 256 for "
                "8-bit images"
            )
        self.num_levels = num_levels

    def num_params(self, channels: int) -> int:
        return channels * self.num_levels

    def _logits(self, params: Tensor) -> Tensor:
        """Return the logits (N, C, H, W, L)."""
        logits: Tensor = _full(params).unflatten(1, (-1, self.num_levels)).movedim(2, -1)
        return logits

    def _values(self, levels: Tensor) -> Tensor:
        return levels * (2 / (self.num_levels - 1)) - 1

    def log_prob(self, images: Tensor, params: Tensor) -> Tensor:
        levels = ((images + 1) * ((self.num_levels - 1) / 2)).round().long()
        log_p = self._logits(params).log_softmax(-1).gather(-1, levels[..., None])
        return log_p.flatten(1).sum(1)

    def mean(self, params: Tensor) -> Tensor:
        logits = self._logits(params)
        values = self._values(torch.arange(self.num_levels, dtype=logits.dtype, device=logits.device))
        return logits.softmax(-1) @ values

    def sample(self, params: Tensor, noise: Noise, temperature: float = 1.0) -> Tensor:
        logits = self._logits(params)
        return self._values(_choose(logits, noise, temperature).to(logits.dtype))

    def check_levels(self, name: str, num_levels: int | None) -> None:
        super().check_levels(name, num_levels)
        if num_levels not in (2, self.num_levels):
            raise UserError(
                f"model.likelihood.num_levels: {self.num_levels}, but {name} has {num_levels} grey levels; set it to "
                f"{num_levels}"
            )


class DiscretisedLogistic(PixelLikelihood):
    """Discretised logistic likelihood: each 8-bit value has the mass of its bin under a logistic distribution.

    The maps are the mean and the logarithm of the scale of each channel. See `discretised_logistic_log_prob`.

    Args:
        per_pixel: Use a scale map for each channel; otherwise a single learned scale is shared by all pixels.
    """

    log_scale: nn.Parameter | None

    def __init__(self, per_pixel: bool = True) -> None:
        super().__init__()
        self.log_scale = None if per_pixel else nn.Parameter(torch.tensor(-2.0))

    def num_params(self, channels: int) -> int:
        return channels if self.log_scale is not None else 2 * channels

    def log_prob(self, images: Tensor, params: Tensor) -> Tensor:
        return discretised_logistic_log_prob(images, *_mean_and_log_scale(params, self.log_scale)).flatten(1).sum(1)

    def mean(self, params: Tensor) -> Tensor:
        """Return the mean of the logistic clipped to [-1, 1], within half a bin of the mean of the 8-bit values."""
        return clipped_logistic_mean(*_mean_and_log_scale(params, self.log_scale))

    def centre(self, params: Tensor) -> Tensor:
        """Return the medians, which keep black pixels black; the mean of a logistic clipped at black is brighter."""
        return _mean_and_log_scale(params, self.log_scale)[0].clamp(-1, 1)

    def sample(self, params: Tensor, noise: Noise, temperature: float = 1.0) -> Tensor:
        mean, log_scale = _mean_and_log_scale(params, self.log_scale)
        return _draw_logistic(mean, log_scale, noise, temperature)


class LogisticMixture(PixelLikelihood):
    """Mixture of discretised logistics shared by the channels of a pixel, each channel conditioned on those before.

    p(x) = sum_k pi_k prod_c L(x_c | mean_kc + sum_{j < c} tanh(a_kcj) x_j, s_kc), with L the mass of a logistic on the
    bin of a value: given the component, the mean of green depends on red, and that of blue on red and green
    (PixelCNN++, Salimans et al. 2017, https://arxiv.org/abs/1701.05517).

    The maps are the K logits of pi, then C means per component, then C values of ln s per component, and then
    C (C - 1) / 2 coefficients a per component.

    Args:
        num_components: Number K of components.
    """

    def __init__(self, num_components: int = 10) -> None:
        super().__init__()
        if num_components < 1:
            raise UserError(
                f"model.likelihood.num_components: {num_components} is not positive; give 1 or more, such as 10"
            )
        self.num_components = num_components

    def num_params(self, channels: int) -> int:
        return self.num_components * (1 + 2 * channels + channels * (channels - 1) // 2)

    def _split(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the logits, means, log-scales and coefficients.

        Their shapes are (N, K, H, W), twice (N, K, C, H, W), and (N, K, C (C - 1) / 2, H, W).
        """
        params = _full(params)
        channels = next(number for number in count(1) if self.num_params(number) >= params.shape[1])
        widths = [self.num_components * width for width in (1, channels, channels, channels * (channels - 1) // 2)]
        logits, *others = params.split(widths, dim=1)
        mean, log_scale, coefficients = (
            part.reshape(len(part), self.num_components, part.shape[1] // self.num_components, *part.shape[2:])
            for part in others
        )
        return logits, mean, log_scale, coefficients.tanh()

    def log_prob(self, images: Tensor, params: Tensor) -> Tensor:
        logits, mean, log_scale, coefficients = self._split(params)
        log_p = logits.log_softmax(1)
        pixels = list(images[:, None].unbind(2))
        for c, x in enumerate(pixels):
            conditional_mean = _conditional_mean(mean, coefficients, pixels[:c])
            log_p = log_p + discretised_logistic_log_prob(x, conditional_mean, log_scale[:, :, c])
        return log_p.logsumexp(1).flatten(1).sum(1)

    def mean(self, params: Tensor) -> Tensor:
        """Return the mean as in `DiscretisedLogistic`, with each channel conditioned on the means of those before."""
        logits, mean, log_scale, coefficients = self._split(params)
        means: list[Tensor] = []
        for c in range(mean.shape[2]):
            means.append(clipped_logistic_mean(_conditional_mean(mean, coefficients, means), log_scale[:, :, c]))
        return (logits.softmax(1)[:, :, None] * torch.stack(means, 2)).sum(1)

    def sample(self, params: Tensor, noise: Noise, temperature: float = 1.0) -> Tensor:
        logits, *parts = self._split(params)
        chosen = _choose(logits.movedim(1, -1), noise, temperature)[:, None, None]
        mean, log_scale, coefficients = (part.gather(1, chosen.expand(-1, -1, part.shape[2], -1, -1)) for part in parts)
        pixels: list[Tensor] = []
        for c in range(mean.shape[2]):
            conditional_mean = _conditional_mean(mean, coefficients, pixels)
            pixels.append(_draw_logistic(conditional_mean, log_scale[:, :, c], noise, temperature))
        return torch.cat(pixels, 1)


class Gaussian(PixelLikelihood):
    """Gaussian density N(mean, exp(log_scale)^2) of dequantised images, with a learned variance.

    The maps are the mean and the logarithm of the standard deviation of each channel.

    Args:
        per_pixel: Use a map of standard deviations for each channel; otherwise a single learned standard deviation is
            shared by all pixels.
    """

    dequantisation = "uniform"

    log_scale: nn.Parameter | None

    def __init__(self, per_pixel: bool = True) -> None:
        super().__init__()
        self.log_scale = None if per_pixel else nn.Parameter(torch.tensor(-1.0))

    def num_params(self, channels: int) -> int:
        return channels if self.log_scale is not None else 2 * channels

    def log_prob(self, images: Tensor, params: Tensor) -> Tensor:
        mean, log_scale = _mean_and_log_scale(params, self.log_scale)
        standardised = (images - mean) * torch.exp(-log_scale)
        return (-0.5 * (standardised.square() + math.log(2 * math.pi)) - log_scale).flatten(1).sum(1)

    def mean(self, params: Tensor) -> Tensor:
        return _mean_and_log_scale(params, self.log_scale)[0]

    def sample(self, params: Tensor, noise: Noise, temperature: float = 1.0) -> Tensor:
        mean, log_scale = _mean_and_log_scale(params, self.log_scale)
        eps = noise.normal(mean.shape[1:], mean.dtype).to(mean.device)
        return _nearest_value(mean + temperature * log_scale.exp() * eps)

    def check_levels(self, name: str, num_levels: int | None) -> None:
        super().check_levels(name, num_levels)
        if num_levels == 2:
            raise UserError(
                f"model.likelihood: Gaussian is a density, but the pixels of {name} are binary; choose Bernoulli"
            )


def discretised_logistic_log_prob(images: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Return the log mass of each 8-bit value, log(F((x + 1/255 - mean) / s) - F((x - 1/255 - mean) / s)).

    F is the logistic CDF. The first and the last of the 256 bins extend to minus and plus infinity, so the masses sum
    to one (Salimans et al. 2017, https://arxiv.org/abs/1701.05517). ln s is clamped to [-7, 7].

    Args:
        images: Values k / 127.5 - 1 with k in 0..255, of any shape.
        mean: Mean of the logistic, broadcastable with the images.
        log_scale: ln s, broadcastable with the images.

    Returns:
        Log mass in nats, of the broadcast shape.
    """
    inverse_scale = torch.exp(-log_scale.clamp(MIN_LOG_SCALE, MAX_LOG_SCALE))
    centred = images - mean
    upper, lower = (centred + HALF_BIN) * inverse_scale, (centred - HALF_BIN) * inverse_scale
    # log(F(u) - F(l)) = log F(u) + log F(-l) + log(1 - exp(l - u)), stable in both tails
    width = 2 * HALF_BIN * inverse_scale
    log_below, log_above = functional.logsigmoid(upper), functional.logsigmoid(-lower)
    log_mass = log_below + log_above + torch.log(-torch.expm1(-width))
    first, last = images < -1 + HALF_BIN, images > 1 - HALF_BIN
    return torch.where(first, log_below, torch.where(last, log_above, log_mass))


def clipped_logistic_mean(mean: Tensor, log_scale: Tensor) -> Tensor:
    """Return E[min(max(X, -1), 1)] of a logistic X, which is -1 + the integral of P(X > x) from -1 to 1.

    Softplus is the integral of the logistic CDF, so this is
    -1 + s (softplus((mean + 1) / s) - softplus((mean - 1) / s)).
    """
    scale = torch.exp(log_scale.clamp(MIN_LOG_SCALE, MAX_LOG_SCALE))
    return scale * (functional.softplus((mean + 1) / scale) - functional.softplus((mean - 1) / scale)) - 1


def _full(params: Tensor) -> Tensor:
    """Convert parameters to float32, or keep them in float64."""
    return params.to(torch.promote_types(params.dtype, torch.float32))


def _mean_and_log_scale(params: Tensor, log_scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the mean and ln s, clamped to [-7, 7]; if `log_scale` is given, it is ln s and the maps are the means."""
    params = _full(params)
    mean, log_scale = params.unflatten(1, (-1, 2)).unbind(2) if log_scale is None else (params, log_scale)
    return mean, log_scale.clamp(MIN_LOG_SCALE, MAX_LOG_SCALE)


def _conditional_mean(mean: Tensor, coefficients: Tensor, before: list[Tensor]) -> Tensor:
    """Return the mean of the next channel (N, K, H, W) given the earlier channels, each (N, K or 1, H, W)."""
    c = len(before)
    first = c * (c - 1) // 2
    return mean[:, :, c] + sum(coefficients[:, :, first + j] * x for j, x in enumerate(before))


def _choose(logits: Tensor, noise: Noise, temperature: float) -> Tensor:
    """Sample an index of the last axis of logits (N, ..., K) from softmax(logits / temperature), by Gumbel-max."""
    u = noise.uniform(logits.shape[1:], logits.dtype).to(logits.device)
    return (logits / temperature - torch.log(-torch.log(u))).argmax(-1)


def _draw_logistic(mean: Tensor, log_scale: Tensor, noise: Noise, temperature: float) -> Tensor:
    """Sample from a logistic with its scale multiplied by the temperature, rounded to an 8-bit value."""
    u = noise.uniform(mean.shape[1:], mean.dtype).to(mean.device)
    scale = temperature * torch.exp(log_scale.clamp(MIN_LOG_SCALE, MAX_LOG_SCALE))
    return _nearest_value(mean + scale * torch.logit(u))


def _nearest_value(x: Tensor) -> Tensor:
    """Round to the nearest value u / 127.5 - 1 of an 8-bit u."""
    return from_levels(nearest_levels(x).clamp(0, 255))
