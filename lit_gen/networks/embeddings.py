r"""Conditioning of a network on the noise level, the class and the augmentation of each image by one vector e (N, E).

e = MLP(features(c_noise)) + class embedding + W augment_labels

A network of a flow map from time t to time s is conditioned on two times. c_noise is then (N, 2), its value at t and
the span c_noise(t) - c_noise(s), and e has the further term MLP'(features(span)).
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from lit_gen.core.errors import UserError
from lit_gen.networks.blocks import zeros

TimeEmbedding = Literal["positional", "fourier"]


def sinusoids(c: Tensor, dim: int) -> Tensor:
    """Return (cos(w_k c), sin(w_k c)) (N, dim), with frequencies w_k = 10000^(-k / (dim/2 - 1)) from 1 down to 1e-4.

    These frequencies suit every c_noise in use. Step indices 0..999 vary over all of them. EDM's ln(sigma) / 4 in
    [-1.6, 1.1] stays within a quarter turn at the highest frequency, whose sine is therefore one-to-one (EDM's own
    DDPM++ networks use the same embedding). The result is computed in float32, or in float64 if c is float64. Half
    precision cannot distinguish neighbouring steps, so c must not be in half precision.

    Args:
        c: Noise levels c_noise (N,), float32 or float64.
        dim: Number of features, even.
    """
    dtype = torch.promote_types(c.dtype, torch.float32)
    frequencies = torch.logspace(0, -4, dim // 2, dtype=dtype, device=c.device)
    phases = c.to(dtype)[:, None] * frequencies
    return torch.cat([phases.cos(), phases.sin()], dim=1)


class FourierFeatures(nn.Module):
    """Features (cos(2 pi f_k c), sin(2 pi f_k c)) (N, dim) of c (N,), with fixed random f_k ~ N(0, scale^2).

    The frequencies are a buffer: they are saved with the weights, never trained, and the same in every process, since
    they come from a separate generator. They suit a c_noise with a range of a few units, such as EDM's ln(sigma) / 4;
    the features of a c_noise that counts 1000 steps would turn many times between neighbours.

    Paper: Song et al. 2021, https://arxiv.org/abs/2011.13456, appendix C.2

    Args:
        dim: Number of features, even.
        scale: Standard deviation of the frequencies.
    """

    frequencies: Tensor

    def __init__(self, dim: int, scale: float = 16.0) -> None:
        super().__init__()
        # The explicit device gives a network built on `meta` its frequencies.
        drawn = torch.randn(dim // 2, generator=torch.Generator().manual_seed(0), device="cpu")
        self.register_buffer("frequencies", scale * drawn)

    def forward(self, c: Tensor) -> Tensor:
        dtype = torch.promote_types(c.dtype, torch.float32)
        phases = 2 * math.pi * c.to(dtype)[:, None] * self.frequencies.to(dtype)
        return torch.cat([phases.cos(), phases.sin()], dim=1)


class ConditionalNetwork(nn.Module):
    """Base class of the networks of diffusion models, with their conditioning; called as network(x, c_noise, labels).

    A label below 0 represents "no class". It has its own row in the class embedding, index `num_classes`, which is also
    used if labels are None. The projection of the augmentation labels has no bias, so zero labels, as in sampling, are
    equivalent to None.

    Args:
        num_features: Number of features of c_noise, even.
        emb_channels: Width E of the embedding.
        num_classes: Number of classes; 0 for an unconditional network.
        time_embedding: Features of c_noise: `sinusoids` (positional) or `FourierFeatures` (fourier).
        augment_dim: Length of the augmentation labels; 0 for a network without them.
    """

    def __init__(
        self, num_features: int, emb_channels: int, num_classes: int, time_embedding: TimeEmbedding, augment_dim: int
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.emb_channels = emb_channels
        self.num_classes = num_classes
        self.fourier = FourierFeatures(num_features) if time_embedding == "fourier" else None
        self.embed_noise = nn.Sequential(
            nn.Linear(num_features, emb_channels), nn.SiLU(), nn.Linear(emb_channels, emb_channels)
        )
        self.embed_label = nn.Embedding(num_classes + 1, emb_channels) if num_classes else None
        self.embed_augment = nn.Linear(augment_dim, emb_channels, bias=False) if augment_dim else None
        self.embed_span: nn.Sequential | None = None

    def condition_on_span(self) -> None:
        """Add a second time, the span; its embedding is zero until it is trained."""
        width = self.emb_channels
        self.embed_span = nn.Sequential(nn.Linear(self.num_features, width), nn.SiLU(), zeros(nn.Linear(width, width)))

    def embedding(self, c_noise: Tensor, labels: Tensor | None, augment_labels: Tensor | None = None) -> Tensor:
        """Return the embedding e (N, E).

        Args:
            c_noise: Noise levels (N,), in float32 or float64; with a second time (N, 2), where (N,) means no span.
            labels: Classes (N,), below 0 for no class, or None.
            augment_labels: Augmentation labels (N, augment_dim), or None for images without augmentation.

        Raises:
            UserError: If labels, augmentation labels or a second time are given to a network without them.
        """
        if c_noise.ndim == 1:
            span = torch.zeros_like(c_noise)
        elif self.embed_span is None:
            raise UserError(f"c_noise: this {type(self).__name__} has one time; call condition_on_span, or pass (N,)")
        else:
            c_noise, span = c_noise.unbind(1)
        emb: Tensor = self.embed_noise(self._features(c_noise))
        if self.embed_span is not None:
            emb = emb + self.embed_span(self._features(span))
        if self.embed_label is not None:
            if labels is None:
                labels = torch.full_like(c_noise, -1, dtype=torch.long)
            emb = emb + self.embed_label(torch.where(labels < 0, self.num_classes, labels))
        elif labels is not None:
            raise UserError(f"labels: this {type(self).__name__} has no classes; set num_classes, or pass no labels")
        if augment_labels is not None:
            if self.embed_augment is None:
                raise UserError(f"augment_labels: this {type(self).__name__} does not use them; set augment_dim")
            emb = emb + self.embed_augment(augment_labels.to(emb.dtype))
        return emb

    def _features(self, c: Tensor) -> Tensor:
        """Return the features (N, num_features) of c (N,), in the data type of the weights."""
        features: Tensor = sinusoids(c, self.num_features) if self.fourier is None else self.fourier(c)
        return features.to(next(self.embed_noise.parameters()).dtype)
