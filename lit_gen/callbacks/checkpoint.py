"""Checkpoints that a kill cannot spoil."""

import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from lit_gen.errors import UserError
from lit_gen.models.base import GenerativeModel


class Checkpoint(Callback):
    """Saves `checkpoints/last.ckpt` every so many images and at the end, whole or not at all.

    Lightning's ModelCheckpoint counts optimizer steps, which two optimizers count twice, and can leave a half-written
    file when it is killed; this one counts images, writes beside the old file and renames.

    Args:
        every: Images between two checkpoints; 0 saves only the last.
    """

    interrupted: bool = False
    """Set by Ctrl-C: save after this batch, then stop."""

    def __init__(self, every: int = 100_000) -> None:
        self.every = every
        self.path: Path | None = None
        self._saved_at = 0

    def on_train_start(self, trainer: Trainer, pl_module: GenerativeModel) -> None:
        self._saved_at = pl_module.images_seen

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: GenerativeModel, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        images = pl_module.images_seen
        if self.interrupted or (self.every and images // self.every > self._saved_at // self.every):
            self.save(trainer, pl_module)
        if self.interrupted:
            raise KeyboardInterrupt

    def on_train_end(self, trainer: Trainer, pl_module: GenerativeModel) -> None:
        if pl_module.images_seen != self._saved_at:
            self.save(trainer, pl_module)

    def save(self, trainer: Trainer, pl_module: GenerativeModel) -> None:
        """Writes the checkpoint beside the old one, then renames it over that."""
        if self.path is None:
            return
        finite = all(torch.isfinite(parameter).all() for parameter in pl_module.parameters())
        if not finite:
            raise UserError(
                f"the weights are not finite after {pl_module.images_seen} images; {self.path} keeps the last good "
                "ones: lower the learning rate or set --trainer.gradient_clip_val"
            )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        trainer.save_checkpoint(temporary)
        if trainer.is_global_zero:
            os.replace(temporary, self.path)
        trainer.strategy.barrier("checkpoint")
        self._saved_at = pl_module.images_seen
