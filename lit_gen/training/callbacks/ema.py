"""Averages of the weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn

from lit_gen.core.errors import UserError
from lit_gen.families.base import GenerativeModel
from lit_gen.runs.power_averages import gamma_of, halflife_decay, power_decay
from lit_gen.runs.weights import save_snapshot


@dataclass(frozen=True)
class EMASettings:
    """Averages of the generating network's weights over steps.

    Args:
        decay: beta after the warm-up; 0 makes the average equal to the weights.
        halflife: Half-life of a weight in images; replaces the decay.
        ramp: Upper limit of the half-life as a share of the images seen.
        stds: Relative standard deviations of the power-function averages, for example [0.05, 0.1].
        every: Images between two snapshots of the power-function averages; the last weights get one too.
        snapshot_dtype: Data type of the snapshots.
    """

    decay: float = 0.999
    halflife: int | None = None
    ramp: float = 0.05
    stds: tuple[float, ...] = ()
    every: int = 50_000
    snapshot_dtype: Literal["float32", "bfloat16", "float16"] = "float32"

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise UserError(f"ema.decay: {self.decay} is not in [0, 1); give a number in that range")
        if self.halflife is not None and self.halflife < 1:
            raise UserError(
                f"ema.halflife: {self.halflife} is not a positive number of images; give at least 1, or null"
            )
        if not self.ramp > 0:
            raise UserError(f"ema.ramp: {self.ramp} is not a positive share of the images seen; give more than 0")
        if self.every < 1:
            raise UserError(f"ema.every: {self.every} is not a positive number of images; give at least 1")
        if len(set(self.stds)) < len(self.stds):
            raise UserError(f"ema.stds: {list(self.stds)} names one width twice; remove the repeated one")
        for std in self.stds:
            gamma_of(std, "ema.stds")


class EMA(Callback):
    """Averages of the generating network's weights over steps: theta_ema <- beta theta_ema + (1 - beta) theta.

    Models sample with one average, which has one of two kinds:

    - a fixed decay with a warm-up, beta = min(decay, (1 + n) / (10 + n)) after n steps, so that the first, random
      weights are soon forgotten;
    - a half-life in images, beta = 0.5^(batch / min(halflife, ramp images_seen)), as in EDM
      (Karras et al. 2022, https://arxiv.org/abs/2206.00364).

    The checkpoint holds this average as `ema`, in addition to the raw weights. Any number of power-function averages
    (Karras et al. 2024, https://arxiv.org/abs/2312.02696) can be kept too. Snapshots of them are saved in
    `checkpoints/ema`, and `lit-gen ema` combines the snapshots into an average of another width. Two widths and 16
    snapshots suffice for widths from 0.05 to 0.2.

    Floating-point buffers are averaged too; other buffers are copied.

    Args:
        settings: Decay or half-life, and the widths of the power-function averages.
        folder: Folder of the snapshots; None keeps none.
    """

    def __init__(self, settings: EMASettings, folder: Path | None = None) -> None:
        self.decay = settings.decay
        self.halflife = settings.halflife
        self.ramp = settings.ramp
        self.gammas = {std: gamma_of(std, "ema.stds") for std in settings.stds}
        self.every = settings.every
        self.snapshot_dtype = getattr(torch, settings.snapshot_dtype)
        self.folder = folder
        self.num_updates = 0
        self._images = 0
        self._average: dict[str, Tensor] = {}
        self._power: dict[float, dict[str, Tensor]] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: GenerativeModel) -> None:
        weights = named_weights(pl_module.generator)

        def placed(average: dict[str, Tensor] | None) -> dict[str, Tensor]:
            if average:
                return {name: weight.to(weights[name].device) for name, weight in average.items()}
            return {name: _precise(weight.detach()).clone() for name, weight in weights.items()}

        self._average = placed(self._average)
        self._power = {std: placed(self._power.get(std)) for std in self.gammas}
        self._images = pl_module.images_seen

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: GenerativeModel, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not pl_module.whole_step:
            return
        images, before = pl_module.images_seen, self._images
        if self.halflife is None:
            beta = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        else:
            beta = halflife_decay(images - before, images, self.halflife, self.ramp)
        self.num_updates += 1
        self._images = images
        weights = named_weights(pl_module.generator)
        _update(self._average, weights, beta)
        for std, gamma in self.gammas.items():
            _update(self._power[std], weights, power_decay(images - before, images, gamma))
        if images // self.every > before // self.every:
            self._save_snapshots(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: GenerativeModel) -> None:
        # Also after a kill between the last checkpoint and this line; a snapshot saved before it is the same.
        self._save_snapshots(trainer)

    def _save_snapshots(self, trainer: Trainer) -> None:
        if self.folder is not None and trainer.is_global_zero:
            for std, average in self._power.items():
                save_snapshot(self.folder, self._images, std, average, self.snapshot_dtype)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: GenerativeModel, checkpoint: dict[str, Any]) -> None:
        checkpoint["ema"] = {"num_updates": self.num_updates, "weights": self._average}
        if self._power:
            checkpoint["ema"]["power"] = self._power

    def on_load_checkpoint(self, trainer: Trainer, pl_module: GenerativeModel, checkpoint: dict[str, Any]) -> None:
        self.num_updates = checkpoint["ema"]["num_updates"]
        self._average = checkpoint["ema"]["weights"]
        self._power = checkpoint["ema"].get("power", {})

    @contextmanager
    def averaged(self, network: nn.Module) -> Iterator[None]:
        """Give the network the averaged weights for the length of a `with` block."""
        raw = {name: weight.detach().clone() for name, weight in named_weights(network).items()}
        load_weights(network, self._average)
        try:
            yield
        finally:
            load_weights(network, raw)


def _precise(weight: Tensor) -> Tensor:
    """Return a weight in at least float32: in bfloat16, most updates of the average would round to nothing."""
    return weight.to(torch.promote_types(weight.dtype, torch.float32)) if weight.is_floating_point() else weight


def named_weights(network: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of a network by name."""
    return dict(network.named_parameters()) | dict(network.named_buffers())


def _update(average: dict[str, Tensor], weights: dict[str, Tensor], beta: float) -> None:
    floating = [name for name, weight in weights.items() if weight.is_floating_point()]
    torch._foreach_lerp_([average[name] for name in floating], [_precise(weights[name]) for name in floating], 1 - beta)
    for name in weights.keys() - set(floating):
        average[name].copy_(weights[name])


@torch.no_grad()
def load_weights(network: nn.Module, weights: dict[str, Tensor]) -> None:
    """Copy weights into a network in place.

    Raises:
        KeyError: If the names or shapes differ.
    """
    own = named_weights(network)
    ours, theirs = ({(name, tuple(weight.shape)) for name, weight in of.items()} for of in (own, weights))
    if ours != theirs:
        raise KeyError(f"weights differ in {sorted(ours ^ theirs)[:3]}")
    for name, weight in own.items():
        weight.copy_(weights[name])
