"""What a step of training knows only when all the parts in which it is computed are done."""

from torch import Tensor, nn


class SumOverParts(nn.Module):
    """The sum of a tensor over the parts in which a step of training is computed, one pass each.

    Attributes:
        num_parts: How many there are; `GenerativeModel.split_steps` sets it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.num_parts = 1
        self._done = 0
        self._sum: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor | None:
        """Takes the tensor of one part; gives the sum with the last of them, and None before."""
        x = x if self._sum is None else self._sum + x
        self._done = (self._done + 1) % self.num_parts
        self._sum = x if self._done else None
        return None if self._done else x
