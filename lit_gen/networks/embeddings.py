r"""How a network is told the noise level, the class and the augmentation of each image: by one vector e (N, E),

e = MLP(features(c_noise)) + class embedding + W augment_labels.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from lit_gen.core.errors import UserError

TimeEmbedding = Literal["positional", "fourier"]


def sinusoids(c: Tensor, dim: int) -> Tensor:
    """c (N,) -> (cos(w_k c), sin(w_k c)) (N, dim), frequencies w_k = 10000^(-k / (dim/2 - 1)) from 1 down to 1e-4.

    One set of frequencies serves every c_noise in use: step indices 0..999 spread over all of them, and EDM's
    ln(sigma) / 4 in [-1.6, 1.1] stays within a quarter turn of the fastest, whose sine is therefore one to one (EDM's
    own DDPM++ networks embed it so). Computed in float32, or in float64 for float64: half precision cannot tell
    neighbouring steps apart, so c must not arrive in it.
    """
    dtype = torch.promote_types(c.dtype, torch.float32)
    frequencies = torch.logspace(0, -4, dim // 2, dtype=dtype, device=c.device)
    phases = c.to(dtype)[:, None] * frequencies
    return torch.cat([phases.cos(), phases.sin()], dim=1)


class FourierFeatures(nn.Module):
    """c (N,) -> (cos(2 pi f_k c), sin(2 pi f_k c)) (N, dim), random fixed frequencies f_k ~ N(0, scale^2).

    The frequencies are a buffer: saved with the weights, never trained, and the same in every process, since they come
    from a generator of their own. They suit a c_noise that spans a few units, such as EDM's ln(sigma) / 4; one that
    counts to 1000 steps would turn many times between neighbours.

    Paper: Song et al. 2021, https://arxiv.org/abs/2011.13456, appendix C.2

    Args:
        dim: Number of features, even.
        scale: Standard deviation of the frequencies.
    """

    frequencies: Tensor

    def __init__(self, dim: int, scale: float = 16.0) -> None:
        super().__init__()
        # The device is named so that a network built on `meta` still has its frequencies.
        drawn = torch.randn(dim // 2, generator=torch.Generator().manual_seed(0), device="cpu")
        self.register_buffer("frequencies", scale * drawn)

    def forward(self, c: Tensor) -> Tensor:
        dtype = torch.promote_types(c.dtype, torch.float32)
        phases = 2 * math.pi * c.to(dtype)[:, None] * self.frequencies.to(dtype)
        return torch.cat([phases.cos(), phases.sin()], dim=1)


class ConditionalNetwork(nn.Module):
    """The conditioning that the networks of diffusion models share; called as network(x, c_noise, labels).

    A label below 0 stands for "no class": it has a row of its own in the class embedding, index `num_classes`, which is
    also used where labels are None. The augmentation enters without a bias, so that labels of zero, as in sampling,
    are the same as none.

    Args:
        num_features: Features of c_noise, even.
        emb_channels: E.
        num_classes: Number of classes; 0 for an unconditional network.
        time_embedding: Features of c_noise: `sinusoids` or `FourierFeatures`.
        augment_dim: Length of the augmentation labels; 0 for a network that takes none.
    """

    def __init__(
        self, num_features: int, emb_channels: int, num_classes: int, time_embedding: TimeEmbedding, augment_dim: int
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.num_classes = num_classes
        self.fourier = FourierFeatures(num_features) if time_embedding == "fourier" else None
        self.embed_noise = nn.Sequential(
            nn.Linear(num_features, emb_channels), nn.SiLU(), nn.Linear(emb_channels, emb_channels)
        )
        self.embed_label = nn.Embedding(num_classes + 1, emb_channels) if num_classes else None
        self.embed_augment = nn.Linear(augment_dim, emb_channels, bias=False) if augment_dim else None

    def embedding(self, c_noise: Tensor, labels: Tensor | None, augment_labels: Tensor | None = None) -> Tensor:
        """The embedding e (N, E).

        Args:
            c_noise: (N,), in float32 or float64.
            labels: Classes (N,), below 0 for none, or None.
            augment_labels: (N, augment_dim), or None for images as they are.

        Raises:
            UserError: labels are given to a network that takes none.
        """
        features = sinusoids(c_noise, self.num_features) if self.fourier is None else self.fourier(c_noise)
        emb: Tensor = self.embed_noise(features.to(next(self.embed_noise.parameters()).dtype))
        if self.embed_label is not None:
            if labels is None:
                labels = torch.full_like(c_noise, -1, dtype=torch.long)
            emb = emb + self.embed_label(torch.where(labels < 0, self.num_classes, labels))
        elif labels is not None:
            raise UserError(
                f"labels were given to a {type(self).__name__} without classes: set num_classes, or give no labels"
            )
        if augment_labels is not None:
            if self.embed_augment is None:
                raise UserError(f"augment_labels were given to a {type(self).__name__} without them: set augment_dim")
            emb = emb + self.embed_augment(augment_labels.to(emb.dtype))
        return emb
