"""How codes are drawn from the logits of a prior: temperature, the k most probable, the most probable of a mass.

Temperature T divides the logits. Of the codes in order of probability, top-k keeps the first k, and top-p then the
fewest whose mass is at least p (nucleus sampling, Holtzman et al. 2019, https://arxiv.org/abs/1904.09751); the mass of
what is kept is made 1. A code is drawn by the inverse of its distribution function, from one uniform number.
"""

import math
import sys

import torch
from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.families.settings import Sampler
from lit_gen.families.vq.networks.quantisers import draw_codes

SMALLEST = sys.float_info.min
"""The smallest temperature that has a finite inverse, by which a GPU multiplies; the most probable alone is drawn."""


class TokenSampling(Sampler):
    """Draws codes one after the other.

    Args:
        temperature: T; 1 is the model itself, less is sharper.
        top_k: Draw from so many of the most probable codes; 1 always takes the most probable. null: from all.
        top_p: Draw from the fewest of the most probable codes that have this mass. null: from all.
        size: (H, W) of a grid of codes that is larger than that of training, for images larger than those of the data:
            where these look alike everywhere, as crops do, and not where one thing stands in the middle.

    Raises:
        UserError: a number is out of range.
    """

    def __init__(
        self,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        size: tuple[int, int] | None = None,
    ) -> None:
        if not 0 < temperature < math.inf:
            raise UserError(f"sampler.temperature: {temperature} is not a positive number; 1 is the model itself")
        if top_k is not None and top_k < 1:
            raise UserError(f"sampler.top_k: {top_k} is not a positive number of codes; null draws from all")
        if top_p is not None and not 0 < top_p <= 1:
            raise UserError(f"sampler.top_p: {top_p} is not a mass in (0, 1]; null draws from all")
        self.temperature = temperature
        self.top_k = top_k
        self.top_p = top_p
        self.size = size

    def probabilities(self, logits: Tensor) -> Tensor:
        """The probabilities from which codes are drawn, float64: logits (..., K) -> (..., K)."""
        below = logits.double() - logits.amax(-1, keepdim=True).double()  # not over 0, however small the temperature
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
        """Codes (N,) from logits (N, K) and uniform numbers (N,), float64 in (0, 1)."""
        return draw_codes(self.probabilities(logits), uniform[:, None])[:, 0]
