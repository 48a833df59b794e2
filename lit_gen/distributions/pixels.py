"""Likelihoods of the pixels given parameter maps: p(image | params), what a decoder or a causal network puts out.

Images (N, C, H, W) hold the values u / 127.5 - 1 of 8-bit u, except for `Gaussian`, which is a density of dequantised
images. Parameter maps are (N, P, H, W) and unbounded, P = `num_params(C)`; a pixel depends on the parameters at its own
place alone. All is computed in float32 at least.
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
    """p(image | params).

    Attributes:
        dequantisation: how 8-bit values become points of a density; none where they are given masses.
    """

    dequantisation: ClassVar[Literal["uniform", "none"]] = "none"

    @abstractmethod
    def num_params(self, channels: int) -> int:
        """Number P of parameter maps for images of so many channels."""

    @abstractmethod
    def log_prob(self, images: Tensor, params: Tensor) -> Tensor:
        """log p of each image, (N,) in nats, summed over its pixels and channels."""

    @abstractmethod
    def mean(self, params: Tensor) -> Tensor:
        """E[image], (N, C, H, W)."""

    def centre(self, params: Tensor) -> Tensor:
        """The image without the noise of its pixels (N, C, H, W), for the eye: by default the mean."""
        return self.mean(params)

    @abstractmethod
    def sample(self, params: Tensor, noise: Noise, temperature: float = 1.0) -> Tensor:
        """Images (N, C, H, W) of 8-bit values u / 127.5 - 1.

        Args:
            params: (N, P, H, W).
            noise: Random numbers keyed by the index of the image.
            temperature: Logits are divided by it and scales are multiplied by it; 1 is the distribution itself.
        """

    def check_levels(self, name: str, num_levels: int | None) -> None:
        """Raise a UserError unless the likelihood is of the values of the data.

        Args:
            name: Name of the data.
            num_levels: Number of different values of a pixel; None for points.
        """
        if num_levels is None:
            raise UserError(
                f"model.likelihood: {type(self).__name__} is of the values of images, but {name} holds points; "
                "choose a data.source of images"
            )


class Bernoulli(PixelLikelihood):
    """p(x = 1) = sigmoid(param) and p(x = -1) = sigmoid(-param), for binary images: one map for each channel."""

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
                f"model.likelihood: Bernoulli is of binary images, but {name} has {num_levels} grey "
                "levels; set data.source to Binarised around it, or choose another likelihood"
            )


class Categorical(PixelLikelihood):
    """A probability of its own for each value: softmax over `num_levels` logits of each pixel and channel.

    The maps are those of the first channel from the darkest value to the brightest, then those of the next channel.

    Args:
        num_levels: Number of values, evenly spaced from -1 to 1; 256 for 8-bit images.
    """

    def __init__(self, num_levels: int = 256) -> None:
        super().__init__()
        if not 2 <= num_levels <= 256:
            raise UserError(f"model.likelihood.num_levels: {num_levels} is not in 2..256; 256 suits 8-bit images")
        self.num_levels = num_levels

    def num_params(self, channels: int) -> int:
        return channels * self.num_levels

    def _logits(self, params: Tensor) -> Tensor:
        """(N, C, H, W, L)."""
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
                f"model.likelihood.num_levels: {self.num_levels}, but {name} has {num_levels} grey levels; give as many"
            )


class DiscretisedLogistic(PixelLikelihood):
    """Each 8-bit value has the mass that a logistic distribution puts on its bin; see `discretised_logistic_log_prob`.

    The maps are, for each channel, its mean and the logarithm of its scale.

    Args:
        per_pixel: A scale for each pixel and channel; else one for all, a learned parameter, and no map for it.
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
        """That of the logistic clipped to [-1, 1], which rounding to 8-bit values moves by half a bin at most."""
        return clipped_logistic_mean(*_mean_and_log_scale(params, self.log_scale))

    def centre(self, params: Tensor) -> Tensor:
        """The medians: black stays black, where the mean of what is clipped at black is not."""
        return _mean_and_log_scale(params, self.log_scale)[0].clamp(-1, 1)

    def sample(self, params: Tensor, noise: Noise, temperature: float = 1.0) -> Tensor:
        mean, log_scale = _mean_and_log_scale(params, self.log_scale)
        return _draw_logistic(mean, log_scale, noise, temperature)


class LogisticMixture(PixelLikelihood):
    """A mixture of discretised logistics that the channels of a pixel share, each channel given those before.

    p(x) = sum_k pi_k prod_c L(x_c | mean_kc + sum_{j < c} tanh(a_kcj) x_j, s_kc), L the mass of a logistic on the bin
    of a value: given the component, the mean of green depends on red, and that of blue on red and green (PixelCNN++,
    Salimans et al. 2017, https://arxiv.org/abs/1701.05517).

    The maps are K logits of pi, then for each component its C means, for each its C logarithms of s, and for each its
    C (C - 1) / 2 coefficients a.

    Args:
        num_components: K.
    """

    def __init__(self, num_components: int = 10) -> None:
        super().__init__()
        if num_components < 1:
            raise UserError(f"model.likelihood.num_components: {num_components} is not positive; 10 is usual")
        self.num_components = num_components

    def num_params(self, channels: int) -> int:
        return self.num_components * (1 + 2 * channels + channels * (channels - 1) // 2)

    def _split(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits (N, K, H, W), means and log-scales (N, K, C, H, W), coefficients (N, K, C (C - 1) / 2, H, W)."""
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
        """As of `DiscretisedLogistic`; a channel's conditional mean is taken at the means of the channels before it."""
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
    """N(mean, exp(log_scale)^2), a density of dequantised images, of variance learned.

    The maps are, for each channel, its mean and the logarithm of its standard deviation.

    Args:
        per_pixel: A standard deviation for each pixel and channel; else there is one for all, a learned parameter, and
            no map for it.
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
                f"model.likelihood: Gaussian is a density, but the values of {name} are binary; choose Bernoulli"
            )


def discretised_logistic_log_prob(images: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log mass of each 8-bit value: log(F((x + 1/255 - mean) / s) - F((x - 1/255 - mean) / s)), F the logistic CDF.

    The first and the last of the 256 bins reach to minus and plus infinity, so the masses sum to one (Salimans et al.
    2017, https://arxiv.org/abs/1701.05517). ln s is limited to [-7, 7].

    Args:
        images: Values k / 127.5 - 1, k in 0..255; any shape.
        mean: Mean of the logistic, of a shape that broadcasts with it.
        log_scale: ln s, likewise.

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
    """E[min(max(X, -1), 1)] of a logistic X, which is -1 + the integral of P(X > x) from -1 to 1.

    With softplus, the integral of the logistic CDF: -1 + s (softplus((mean + 1) / s) - softplus((mean - 1) / s)).
    """
    scale = torch.exp(log_scale.clamp(MIN_LOG_SCALE, MAX_LOG_SCALE))
    return scale * (functional.softplus((mean + 1) / scale) - functional.softplus((mean - 1) / scale)) - 1


def _full(params: Tensor) -> Tensor:
    """In float32, unless they are float64."""
    return params.to(torch.promote_types(params.dtype, torch.float32))


def _mean_and_log_scale(params: Tensor, log_scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """Those of each channel from the maps, or the maps and one scale for all; ln s is limited to [-7, 7]."""
    params = _full(params)
    mean, log_scale = params.unflatten(1, (-1, 2)).unbind(2) if log_scale is None else (params, log_scale)
    return mean, log_scale.clamp(MIN_LOG_SCALE, MAX_LOG_SCALE)


def _conditional_mean(mean: Tensor, coefficients: Tensor, before: list[Tensor]) -> Tensor:
    """Mean of the next channel, (N, K, H, W), given the channels before it, each (N, K or 1, H, W)."""
    c = len(before)
    first = c * (c - 1) // 2
    return mean[:, :, c] + sum(coefficients[:, :, first + j] * x for j, x in enumerate(before))


def _choose(logits: Tensor, noise: Noise, temperature: float) -> Tensor:
    """An index of the last axis (N, ..., K), drawn with probability softmax(logits / temperature), by Gumbel-max."""
    u = noise.uniform(logits.shape[1:], logits.dtype).to(logits.device)
    return (logits / temperature - torch.log(-torch.log(u))).argmax(-1)


def _draw_logistic(mean: Tensor, log_scale: Tensor, noise: Noise, temperature: float) -> Tensor:
    """The 8-bit value whose bin a draw of the logistic falls into, its scale times the temperature."""
    u = noise.uniform(mean.shape[1:], mean.dtype).to(mean.device)
    scale = temperature * torch.exp(log_scale.clamp(MIN_LOG_SCALE, MAX_LOG_SCALE))
    return _nearest_value(mean + scale * torch.logit(u))


def _nearest_value(x: Tensor) -> Tensor:
    """The nearest of the values u / 127.5 - 1."""
    return from_levels(nearest_levels(x).clamp(0, 255))
