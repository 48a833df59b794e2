"""Sampling of codes from the logits of a prior: temperature, top-k and top-p.

The temperature T divides the logits. With the codes ordered by probability, top-k keeps the first k, and top-p then
keeps the fewest whose mass is at least p (nucleus sampling, Holtzman et al. 2019, https://arxiv.org/abs/1904.09751).
The kept probabilities are normalised to 1. Each code is drawn from one uniform number, by the inverse of the
distribution function.
"""

import math
import sys

import torch
from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.families.settings import Sampler
from lit_gen.families.vq.networks.quantisers import draw_codes

SMALLEST = sys.float_info.min
"""Smallest temperature with a finite inverse, by which a GPU multiplies; only the most probable code is drawn."""


class TokenSampling(Sampler):
    """Sampler that draws codes one after the other.

    Args:
        temperature: T; 1 is the model itself, less is sharper.
        top_k: Number of most probable codes to draw from; 1 always takes the most probable. null: all codes.
        top_p: Mass p; codes are drawn from the fewest most probable ones whose mass is at least p. null: all codes.
        size: (H, W) of a grid of codes larger than the training grid, for images larger than those of the data. It
            suits data that looks alike everywhere, such as crops, but not data with one centred object.

    Raises:
        UserError: If a number is out of range.
    """

    def __init__(
        self,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        size: tuple[int, int] | None = None,
    ) -> None:
        if not 0 < temperature < math.inf:
            raise UserError(f"sampler.temperature: {temperature} is not a positive number; give 1 for the model itself")
        if top_k is not None and top_k < 1:
            raise UserError(
                f"sampler.top_k: {top_k} is not a positive number of codes; give at least 1, or null for all"
            )
        if top_p is not None and not 0 < top_p <= 1:
            raise UserError(
                f"sampler.top_p: {top_p} is not a mass in (0, 1]; give a number in it, or null for all codes"
            )
        self.temperature = temperature
        self.top_k = top_k
        self.top_p = top_p
        self.size = size

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the probabilities from which codes are drawn, float64: logits (..., K) -> (..., K)."""
        below = logits.double() - logits.amax(-1, keepdim=True).double()  # at most 0, however small the temperature
        p = torch.softmax(below / max(self.temperature, SMALLEST), -1)
        if self.top_k is None and self.top_p is None:
            return p
        ranked, order = p.sort(dim=-1, descending=True, stable=True)
        if self.top_k is not None:
            ranked[..., self.top_k :] = 0
            ranked = ranked / ranked.sum(-1, keepdim=True)
        if self.top_p is not None:
            before = ranked.cumsum(-1) - ranked
            ranked = torch.where(before < self.top_p, ranked, 0)
            ranked = ranked / ranked.sum(-1, keepdim=True)
        return torch.zeros_like(p).scatter(-1, order, ranked)

    def choose(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """Return codes (N,) given logits (N, K) and uniform numbers (N,), float64 in (0, 1)."""
        return draw_codes(self.probabilities(logits), uniform[:, None])[:, 0]
