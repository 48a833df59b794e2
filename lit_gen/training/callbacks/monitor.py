"""Learning rate, gradient norm and speed, and a stop when the loss is no number."""

import math
import time
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor
from torch.optim import Optimizer

from lit_gen.families.base import GenerativeModel
from lit_gen.training.callbacks.checkpoint import diverged


class Monitor(Callback):
    """Logs `train/lr`, `train/grad_norm` and `train/images_per_second` at every logging step.

    The gradient norm is that of all parameters of the optimizer about to step, before any clipping. A loss that is not
    finite in any process at a logging step ends the run; the last checkpoint stays.
    """

    def __init__(self) -> None:
        self._since: tuple[float, int] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: GenerativeModel) -> None:
        self._since = None

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: GenerativeModel, optimizer: Optimizer) -> None:
        if not trainer._logger_connector.should_update_logs:
            return
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        name = "grad_norm"
        optimizers = trainer.optimizers
        if len(optimizers) > 1:
            index = [getattr(own, "optimizer", own) for own in optimizers].index(
                getattr(optimizer, "optimizer", optimizer)
            )
            name = f"{name}_{index}"
        norms = torch._foreach_norm(gradients)
        norm = torch.linalg.vector_norm(torch.stack([norm.float() for norm in norms]))
        pl_module.training_values[name] = norm  # of two optimizers, that of the latest step of each is logged

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: GenerativeModel, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not (pl_module.whole_step and trainer._logger_connector.should_update_logs):
            return
        for name in ("loss", "generator_loss"):
            loss = pl_module.training_values.get(name)
            if not isinstance(loss, Tensor):
                continue
            # over all processes: one that stopped alone would leave the others waiting
            value = trainer.strategy.reduce(loss.clone(), reduce_op="mean").item()
            if not math.isfinite(value):
                raise diverged(f"the {name.replace('_', ' ')} is {value}", trainer, pl_module)
        now = time.perf_counter()
        pl_module.log("train/lr", trainer.optimizers[0].param_groups[0]["lr"])
        if self._since is not None:
            then, images = self._since
            pl_module.log("train/images_per_second", (pl_module.images_seen - images) / (now - then))
        self._since = (now, pl_module.images_seen)

    def on_validation_start(self, trainer: Trainer, pl_module: GenerativeModel) -> None:
        self._since = None
