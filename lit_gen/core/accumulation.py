"""Quantities of an optimizer step that are known only after its last micro-batch."""

from torch import Tensor, nn


class SumOverMicroBatches(nn.Module):
    """Sum of a tensor over the micro-batches of an optimizer step.

    Attributes:
        num_micro_batches: Number of micro-batches per step; `TrainsInSteps.split_steps` sets it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.num_micro_batches = 1
        self._done = 0
        self._sum: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor | None:
        """Add the tensor of one micro-batch; return the sum after the last micro-batch, and None before."""
        x = x if self._sum is None else self._sum + x
        self._done = (self._done + 1) % self.num_micro_batches
        self._sum = x if self._done else None
        return None if self._done else x
