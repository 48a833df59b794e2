r"""Quantisers: every latent vector becomes one of finitely many codes.

With a codebook e_1 ... e_K (van den Oord et al. 2017, https://arxiv.org/abs/1711.00937) and sg the stop-gradient:

    k(x) = argmin_k |x - e_k|^2
    z_q  = x + sg(e_k - x)                                     the value is the code, the gradient goes straight through
    loss = |sg(x) - e_k|^2 + beta |x - sg(e_k)|^2              codebook and commitment

The first term of the loss moves only codes, the second only encoders. Instead of the first, codes can follow the means
of their vectors, an exponential average of k-means.

Without a codebook (finite scalar quantization, Mentzer et al. 2023, https://arxiv.org/abs/2309.15505), each of a few
coordinates is bounded and rounded, and the codes are the points of a grid.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from lit_gen.core.accumulation import SumOverMicroBatches
from lit_gen.core.errors import UserError
from lit_gen.core.processes import all_gather_cat, all_reduce_sum

MAX_SCORES = 2**26
"""Largest number of scores, of vectors against codes, in memory at a time."""


class Quantised(NamedTuple):
    """Output of a quantiser for latents (N, dim, h, w).

    Attributes:
        z_q: Codes (N, dim, h, w); their gradient is passed on to the latents.
        indices: Indices (N, h, w) of the codes, int64.
        loss: Codebook and commitment loss, a scalar.
        stats: `perplexity` and `usage` of this batch (in training, of all processes together) and `revived`, the number
            of codes revived so far; without a graph.
    """

    z_q: Tensor
    indices: Tensor
    loss: Tensor
    stats: dict[str, Tensor]


class Quantiser(nn.Module, ABC):
    """Latents (N, dim, h, w) -> codes, with linear maps from width `dim` to `code_dim` and back.

    Args:
        dim: Width of the latents.
        code_dim: Width of the codes.
        num_codes: Number K of codes.
    """

    revived: Tensor

    def __init__(self, dim: int, code_dim: int, num_codes: int) -> None:
        super().__init__()
        self.code_dim = code_dim
        self.num_codes = num_codes
        self.inwards = nn.Identity() if code_dim == dim else nn.Conv2d(dim, code_dim, 1)
        self.outwards = nn.Identity() if code_dim == dim else nn.Conv2d(code_dim, dim, 1)
        self.register_buffer("revived", torch.zeros((), dtype=torch.int64))

    @abstractmethod
    def nearest(self, x: Tensor) -> Tensor:
        """Return the indices (...) of the codes nearest to vectors (..., code_dim)."""

    @abstractmethod
    def lookup(self, indices: Tensor) -> Tensor:
        """Return the codes (..., code_dim) of indices (...)."""

    def prepare(self, x: Tensor) -> None:  # noqa: B027
        """Prepare the quantisation of the vectors (M, code_dim) of a training batch; does nothing by default."""

    @torch.no_grad()
    def learn(self, x: Tensor, indices: Tensor) -> Tensor:
        """Learn from the vectors (M, code_dim) of a training batch and the indices (M,) of their codes.

        Returns:
            Share (K,) of each code among the vectors of all processes.
        """
        counts = all_reduce_sum(torch.bincount(indices, minlength=self.num_codes)).float()
        return counts / counts.sum()

    @property
    def num_initial(self) -> int:
        """Number of vectors that `start` needs; 0 by default."""
        return 0

    def start(self, z: Tensor) -> None:  # noqa: B027
        """Set initial codes from latents (N, dim, h, w); does nothing by default."""

    def loss(self, x: Tensor, codes: Tensor) -> Tensor:
        """Return the loss of vectors and their codes; 0 by default."""
        return x.new_zeros(())

    def vectors(self, z: Tensor) -> Tensor:
        """Return the vectors that are compared with codes: latents (N, dim, h, w) -> (N, code_dim, h, w)."""
        x: Tensor = self.inwards(z)
        return x

    def restore(self, indices: Tensor) -> Tensor:
        """Return the quantised latents (N, dim, h, w) of indices (N, h, w)."""
        z_q: Tensor = self.outwards(self.lookup(indices).movedim(-1, 1))
        return z_q

    def forward(self, z: Tensor) -> Quantised:
        """Quantise latents (N, dim, h, w); in training mode, also update the codes by them."""
        with torch.autocast(z.device.type, enabled=False):
            z = z.to(torch.promote_types(z.dtype, torch.float32))
            x = self.vectors(z).movedim(1, -1)
            if self.training:
                self.prepare(x.detach().flatten(0, -2))
            with torch.no_grad():
                indices = self.nearest(x)
            codes = self.lookup(indices)
            if self.training:
                share = self.learn(x.detach().flatten(0, -2), indices.flatten())
            else:
                share = frequencies(indices, self.num_codes)
            # the values are exactly those of the codes; x + (codes - x) would round
            z_q = codes.detach() + (x - x.detach())
            stats = {"perplexity": perplexity(share), "usage": usage(share), "revived": self.revived.clone().float()}
            return Quantised(self.outwards(z_q.movedim(-1, 1)), indices, self.loss(x, codes), stats)


class VectorQuantiser(Quantiser):
    """A learned codebook, with the equations at the top of this module.

    Averages, and codes that follow them, move once per step, even if the step is split into micro-batches
    (`over_micro_batches`).

    A code is dead if its share of the vectors is below `revive_below` times the share 1 / K of equal use. It is then
    moved to a vector of the batch, drawn with a probability proportional to the squared distance to its code, and its
    averages are reset. All processes use the sums over all processes, and end with the same codes.

    Args:
        dim: Width of the latents.
        num_codes: Number K of codes.
        code_dim: Width of the codes. Default: the width of the latents. A small width such as 8 keeps more codes in use
            (Yu et al. 2021, https://arxiv.org/abs/2110.04627).
        similarity: euclidean, or cosine, which normalises vectors and codes to length 1.
        beta: Weight of the commitment loss.
        decay: Decay rate of the averages over batches. With `ema`, 0 sets each code to the mean of its vectors in the
            batch.
        ema: Let codes follow the means of their vectors; otherwise they learn by the codebook loss.
        revive_below: Fraction of equal use below which a code is dead; 0 revives none.

    Raises:
        UserError: If a number is out of range.
    """

    codes: Tensor
    share: Tensor
    total: Tensor

    def __init__(
        self,
        dim: int,
        num_codes: int = 512,
        code_dim: int | None = None,
        similarity: Literal["euclidean", "cosine"] = "euclidean",
        beta: float = 0.25,
        decay: float = 0.99,
        ema: bool = True,
        revive_below: float = 0.05,
    ) -> None:
        for name, value, fits in (
            ("num_codes", num_codes, num_codes > 1),
            ("code_dim", code_dim, code_dim is None or code_dim > 0),
            ("beta", beta, beta >= 0),
            ("decay", decay, 0 <= decay < 1),
            ("revive_below", revive_below, 0 <= revive_below < 1),
        ):
            if not fits:
                raise UserError(f"model.quantiser.{name}: {value} is out of range; remove the key for the default")
        super().__init__(dim, code_dim or dim, num_codes)
        self.similarity = similarity
        self.beta = beta
        self.decay = decay
        self.ema = ema
        self.revive_below = revive_below
        codes = self.on_sphere(torch.randn(num_codes, self.code_dim) / math.sqrt(self.code_dim))
        if ema:
            self.register_buffer("codes", codes)
            self.register_buffer("total", codes / num_codes)
        else:
            self.register_parameter("codes", nn.Parameter(codes))
        self.register_buffer("share", torch.full((num_codes,), 1 / num_codes))
        self.over_micro_batches = SumOverMicroBatches()

    def on_sphere(self, x: Tensor) -> Tensor:
        """Return vectors (..., code_dim), normalised to length 1 for the cosine similarity."""
        return functional.normalize(x, dim=-1) if self.similarity == "cosine" else x

    def vectors(self, z: Tensor) -> Tensor:
        return self.on_sphere(super().vectors(z).movedim(1, -1)).movedim(-1, 1)

    def nearest(self, x: Tensor) -> Tensor:
        return nearest(self.on_sphere(x), self.on_sphere(self.codes))

    def lookup(self, indices: Tensor) -> Tensor:
        return self.on_sphere(self.codes)[indices]

    def loss(self, x: Tensor, codes: Tensor) -> Tensor:
        commitment = self.beta * functional.mse_loss(x, codes.detach())
        return commitment if self.ema else commitment + functional.mse_loss(codes, x.detach())

    @property
    def num_initial(self) -> int:
        """16 vectors per code."""
        return 16 * self.num_codes

    @torch.no_grad()
    def start(self, z: Tensor) -> None:
        """Set the codes to the k-means centres of latents (N, dim, h, w), deterministically."""
        x = self.vectors(z).movedim(1, -1).flatten(0, -2)
        self._set(torch.arange(self.num_codes), k_means(x, self.num_codes, self.on_sphere))

    @torch.no_grad()
    def prepare(self, x: Tensor) -> None:
        """Revive dead codes."""
        dead = (self.share * self.num_codes < self.revive_below).nonzero().flatten()
        if not len(dead):
            return
        distance = (x - self.lookup(self.nearest(x))).square().sum(-1)
        keys = distance.new_empty(len(x)).exponential_() / distance
        first = keys.topk(min(len(dead), len(x)), largest=False).indices
        # the smallest keys of all processes are a draw without replacement from all their vectors
        candidates, keys = all_gather_cat(x[first]), all_gather_cat(keys[first])
        new = candidates[keys.topk(min(len(dead), len(x)), largest=False).indices]
        self._set(dead[: len(new)], new)
        self.revived += len(new)

    @torch.no_grad()
    def learn(self, x: Tensor, indices: Tensor) -> Tensor:
        """Update the averages over batches and, with `ema`, the codes; return the share (K,) of each code."""
        sums = x.new_zeros(self.num_codes, self.code_dim + 1)
        sums.index_add_(0, indices, torch.cat([x, torch.ones_like(x[:, :1])], 1))
        sums = all_reduce_sum(sums)
        if (of_step := self.over_micro_batches(sums)) is not None:
            self._follow(of_step / of_step[:, -1].sum())
        return sums[:, -1] / sums[:, -1].sum()

    def _follow(self, means: Tensor) -> None:
        """Move the averages towards the sums of vectors and their counts in one step, (K, code_dim + 1)."""
        self.share.lerp_(means[:, -1], 1 - self.decay)
        if self.ema:
            self.total.lerp_(means[:, :-1], 1 - self.decay)
            # a code without vectors does not move
            codes = torch.where(self.share[:, None] > 1e-12, self.total / self.share[:, None], self.codes)
            self.codes.copy_(self.on_sphere(codes))

    def _set(self, slots: Tensor, codes: Tensor) -> None:
        """Set codes, with averages as if all codes had been used equally and these had always been in place."""
        self.codes[slots] = codes
        self.share[slots] = 1 / self.num_codes
        if self.ema:
            self.total[slots] = codes / self.num_codes


class FSQ(Quantiser):
    """Finite scalar quantization: coordinate i is bounded and rounded to one of levels_i values.

    x = tanh(y + shift) (L - 1) / 2 - offset, rounded and divided by floor(L / 2), so the values lie in [-1, 1] and
    y = 0 maps to 0. The offset is 1/2 for even L and 0 for odd L. The index of a code is sum_i digit_i prod_{j<i} L_j.
    FSQ needs no loss and revives no codes.

    Args:
        dim: Width of the latents.
        levels: Number L of values per coordinate. The paper's choices are [8, 6, 5] for 2^8 codes, [8, 5, 5, 5] for
            2^10, [7, 5, 5, 5, 5] for 2^12, [8, 8, 8, 6, 5] for 2^14.

    Raises:
        UserError: If there are no levels, or if a level is below 2.
    """

    levels: Tensor
    basis: Tensor
    steps: Tensor

    def __init__(self, dim: int, levels: Sequence[int] = (8, 5, 5, 5)) -> None:
        if not levels or min(levels) < 2:
            raise UserError(
                f"model.quantiser.levels: {list(levels)} is out of range; give at least one number, each 2 or more"
            )
        super().__init__(dim, len(levels), math.prod(levels))
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        basis = [math.prod(levels[:i]) for i in range(len(levels))]
        self.register_buffer("basis", torch.tensor(basis), persistent=False)
        self.register_buffer("steps", torch.tensor([float(level // 2) for level in levels]), persistent=False)

    def vectors(self, z: Tensor) -> Tensor:
        y = super().vectors(z).movedim(1, -1)
        levels = self.levels.to(self.steps)
        reach = (levels - 1) * (1 + 1e-3) / 2
        offset = (1 - levels % 2) / 2
        shift = torch.atanh(offset / reach)
        return ((torch.tanh(y + shift) * reach - offset) / self.steps).movedim(-1, 1)

    def nearest(self, x: Tensor) -> Tensor:
        digits = (x * self.steps).round().long() + self.levels // 2
        return (torch.minimum(digits.clamp(min=0), self.levels - 1) * self.basis).sum(-1)

    def lookup(self, indices: Tensor) -> Tensor:
        digits = indices[..., None] // self.basis % self.levels
        return (digits - self.levels // 2) / self.steps


def nearest(x: Tensor, codes: Tensor) -> Tensor:
    """Return argmin_k |x - e_k|^2 = argmin_k (|e_k|^2 / 2 - x . e_k): vectors (..., d), codes (K, d) -> (...)."""
    half = 0.5 * codes.square().sum(1)
    vectors = x.reshape(-1, x.shape[-1]).split(max(MAX_SCORES // len(codes), 1))
    return torch.cat([torch.addmm(half, part, codes.T, alpha=-1).argmin(1) for part in vectors]).reshape(x.shape[:-1])


def frequencies(indices: Tensor, num_codes: int) -> Tensor:
    """Return the share (K,) of each code among the indices."""
    return torch.bincount(indices.flatten(), minlength=num_codes).float() / indices.numel()


def draw_codes(share: Tensor, uniform: Tensor) -> Tensor:
    """Return the smallest k with P(code <= k) > u: M codes (..., M) per distribution.

    Args:
        share: Numbers (..., K) proportional to the probabilities. If one is not finite, the result is an arbitrary code
            in range.
        uniform: Uniform numbers (..., M), float64 in (0, 1).
    """
    cdf = share.double().cumsum(-1)
    drawn = torch.searchsorted(cdf, (uniform * cdf[..., -1:]).contiguous(), right=True)
    return drawn.clamp(max=share.shape[-1] - 1)


def perplexity(share: Tensor) -> Tensor:
    """Return exp(-sum_k p_k ln p_k): 1 if a single code is used, K if all are used equally."""
    out: Tensor = torch.special.entr(share).sum().exp()
    return out


def usage(share: Tensor) -> Tensor:
    """Return the share of codes that are used at all."""
    return (share > 0).float().mean()


def k_means(
    x: Tensor, num: int, project: Callable[[Tensor], Tensor] | None = None, iterations: int = 10, seed: int = 0
) -> Tensor:
    """Return k-means centres (num, d) of vectors (M, d), by Lloyd's iterations.

    The initial centres are vectors drawn with a probability proportional to the squared distance to the nearest centre
    so far. Each round draws an eighth as many as there are centres (k-means++ draws one at a time). The draws use a
    generator of their own.

    Args:
        x: Vectors (M, d).
        num: Number of centres; with fewer vectors, some are repeated with a little noise.
        project: Applied to the centres after each iteration. Default: the identity.
        iterations: Number of Lloyd's iterations.
        seed: Seed of the draws.
    """
    generator = torch.Generator(x.device).manual_seed(seed)
    centres = x[torch.randint(len(x), (1,), generator=generator, device=x.device)]
    while len(centres) < num:
        distance = (x - centres[nearest(x, centres)]).square().sum(1)
        keys = distance.new_empty(len(x)).exponential_(generator=generator) / distance
        more = min(max(len(centres) // 8, 1), num - len(centres), len(x))
        drawn = keys.topk(more, largest=False).indices
        noise = torch.randn(len(drawn), x.shape[1], generator=generator, device=x.device, dtype=x.dtype)
        centres = torch.cat([centres, x[drawn] + 1e-6 * noise])
    for _ in range(iterations):
        chosen = nearest(x, centres)
        counts = torch.bincount(chosen, minlength=num).to(x)[:, None]
        sums = torch.zeros_like(centres).index_add_(0, chosen, x)
        centres = torch.where(counts > 0, sums / counts.clamp(min=1), centres)
        centres = project(centres) if project is not None else centres
    return centres
