"""Exponential moving average of the weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn

from lit_gen.errors import UserError
from lit_gen.models.base import GenerativeModel


class EMA(Callback):
    """An average of the generating network's weights, over batches: theta_ema <- d theta_ema + (1 - d) theta.

    The decay warms up as d = min(decay, (1 + n) / (10 + n)) after n batches, so that the first, random weights are
    soon forgotten. Floating-point buffers are averaged as well; other buffers are copied. The average is saved in the
    checkpoint as `ema`, beside the raw weights.

    Args:
        decay: d after the warm-up; 0 keeps no average apart from the weights themselves.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise UserError(f"ema.decay: {decay} is not in [0, 1)")
        self.decay = decay
        self.num_updates = 0
        self._average: dict[str, Tensor] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: GenerativeModel) -> None:
        weights = named_weights(pl_module.generator)
        if not self._average:
            self._average = {name: weight.detach().clone() for name, weight in weights.items()}
        else:
            self._average = {name: average.to(weights[name].device) for name, average in self._average.items()}

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: GenerativeModel, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        self.num_updates += 1
        weights = named_weights(pl_module.generator)
        floating = [name for name, weight in weights.items() if weight.is_floating_point()]
        torch._foreach_lerp_(
            [self._average[name] for name in floating], [weights[name] for name in floating], 1 - decay
        )
        for name in weights.keys() - set(floating):
            self._average[name].copy_(weights[name])

    def on_save_checkpoint(self, trainer: Trainer, pl_module: GenerativeModel, checkpoint: dict[str, Any]) -> None:
        checkpoint["ema"] = {"num_updates": self.num_updates, "weights": self._average}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: GenerativeModel, checkpoint: dict[str, Any]) -> None:
        self.num_updates = checkpoint["ema"]["num_updates"]
        self._average = checkpoint["ema"]["weights"]

    @contextmanager
    def averaged(self, network: nn.Module) -> Iterator[None]:
        """The network with the averaged weights, for the length of a `with` block."""
        raw = {name: weight.detach().clone() for name, weight in named_weights(network).items()}
        load_weights(network, self._average)
        try:
            yield
        finally:
            load_weights(network, raw)


def named_weights(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of a network, by name."""
    return dict(network.named_parameters()) | dict(network.named_buffers())


@torch.no_grad()
def load_weights(network: nn.Module, weights: dict[str, Tensor]) -> None:
    """Copies weights into a network in place.

    Raises:
        KeyError: the names of the two differ.
    """
    own = named_weights(network)
    if own.keys() != weights.keys():
        raise KeyError(f"weights differ in {sorted(own.keys() ^ weights.keys())[:3]}")
    for name, weight in own.items():
        weight.copy_(weights[name])
