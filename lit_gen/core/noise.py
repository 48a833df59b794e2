r"""Random numbers keyed by (seed, sample index, draw).

Image i of seed s is the same image for every batch size, number of processes and choice of other images, because its
random numbers are a pure function of (seed, index, draw). The function is Philox4x32-10, a counter-based generator: ten
rounds that mix a counter of four 32-bit words under a key of two words,

    (c0, c1, c2, c3)  <-  (hi(M1 c2) ^ c1 ^ k0,  lo(M1 c2),  hi(M0 c0) ^ c3 ^ k1,  lo(M0 c0)).

Here the counter is (block, draw, index low, index high) and the key is the seed; a block gives four words, and so four
numbers.

Paper: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", https://doi.org/10.1145/2063384.2063405
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lit_gen.core.errors import UserError

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_AHEAD = 2**14
"""Number of counters to compute at once when reading ahead: up to here, philox costs little more than for one."""


Words = tuple[Tensor, Tensor, Tensor, Tensor]


def philox(counter: Words, key: tuple[int, int]) -> Words:
    """Return four words of random bits per counter, by Philox4x32-10.

    Args:
        counter: Four int64 tensors that broadcast against each other, values in [0, 2^32).
        key: Two words in [0, 2^32).

    Returns:
        Four int64 tensors of the broadcast shape, uniform on [0, 2^32).
    """
    c0, c1, c2, c3 = (word.clone(memory_format=torch.contiguous_format) for word in torch.broadcast_tensors(*counter))
    k0, k1 = key
    for _ in range(_ROUNDS):
        # In place, and with the upper halves masked only if they matter: this is most of the cost of a draw.
        # An int64 product wraps around, and its 64 bits are still correct.
        p0, p1 = c0.bitwise_and_(_MASK).mul_(_MULTIPLIERS[0]), c2.bitwise_and_(_MASK).mul_(_MULTIPLIERS[1])
        c0, c2 = c1.bitwise_xor_(p1 >> 32).bitwise_xor_(k0), c3.bitwise_xor_(p0 >> 32).bitwise_xor_(k1)
        c1, c3 = p1, p0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0.bitwise_and_(_MASK), c1.bitwise_and_(_MASK), c2.bitwise_and_(_MASK), c3.bitwise_and_(_MASK)


class Noise:
    """Random numbers of a batch of samples, on any device, independent of the global random state.

    Each call of `normal` or `uniform` is one draw and returns new numbers; the n-th draw of sample i is the same in
    every batch. The numbers are computed in float64 and then cast, so that they agree between data types.

    Args:
        seed: Seed in [0, 2^64).
        index: Indices (N,) of the samples, at least 0.
        device: Device of the numbers.

    Raises:
        UserError: If the seed or an index is out of range.
    """

    def __init__(self, seed: int, index: Tensor | Sequence[int], device: torch.device | str | None = None) -> None:
        if not 0 <= seed < 2**64:
            raise UserError(f"seed: {seed} is out of range; give a whole number in [0, 2^64)")
        self.seed = seed
        index = torch.as_tensor(index, dtype=torch.int64)
        if index.ndim != 1 or bool((index < 0).any()):  # checked where it is: a check on a GPU waits for the GPU
            raise UserError("index: not a flat sequence of whole numbers >= 0; give one index per sample")
        self.index = index.to(device, non_blocking=True)
        self.draws = 0
        self.reads_ahead = False
        """Compute several draws at once if true: the numbers are the same, and many small draws are faster."""
        self._kept: dict[int, tuple[int, list[Tensor]]] = {}

    def __len__(self) -> int:
        return len(self.index)

    @property
    def device(self) -> torch.device:
        return self.index.device

    def normal(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        r"""Draw standard normal numbers (N, \*shape), by the Box-Muller transform."""
        pairs = self._uniform(shape)
        values = []
        for u, v in (pairs[:2], pairs[2:]):
            radius, angle = u.log().mul_(-2).sqrt_(), v * (2 * math.pi)
            values += [radius * angle.cos(), radius * angle.sin()]
        return self._gather(values, shape).to(dtype)

    def uniform(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        r"""Draw uniform numbers (N, \*shape) in the open interval (0, 1)."""
        limits = torch.finfo(dtype)
        return self._gather(self._uniform(shape), shape).to(dtype).clamp_(limits.tiny, 1 - limits.eps / 2)

    def _uniform(self, shape: Sequence[int]) -> list[Tensor]:
        """Return four tensors (N, num_blocks) of uniform numbers of the next draw, float64."""
        num_blocks = -(-math.prod(shape) // 4)
        first, numbers = self._kept.get(num_blocks) or (0, None)
        if numbers is None or not first <= self.draws < first + len(numbers[0]):
            first, numbers = self.draws, self._next(num_blocks)
        if self.reads_ahead:
            self._kept[num_blocks] = first, numbers
        self.draws += 1
        return [part[self.draws - 1 - first] for part in numbers]

    def _next(self, num_blocks: int) -> list[Tensor]:
        """Return four tensors (D, N, num_blocks) of uniform numbers of the next D draws, float64."""
        num_draws = max(1, _AHEAD // max(1, len(self) * num_blocks)) if self.reads_ahead else 1
        blocks = torch.arange(num_blocks, device=self.device)
        draws = torch.arange(self.draws, self.draws + num_draws, device=self.device)[:, None, None]
        low, high = self.index[:, None] & _MASK, self.index[:, None] >> 32
        words = philox((blocks, draws, low, high), (self.seed & _MASK, self.seed >> 32))
        return [word.double().add_(0.5).mul_(2.0**-32) for word in words]

    def _gather(self, values: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
        return torch.cat(tuple(values), dim=1)[:, : math.prod(shape)].reshape(len(self), *shape)
