"""Learning rate, gradient norm and speed, and a stop if the loss is not finite."""

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
    """Callback that logs `train/lr`, `train/grad_norm` and `train/images_per_second` at every logging step.

    The gradient norm is taken over all parameters of the optimizer about to step, before any clipping. If the loss of
    any process is not finite at a logging step, the run stops; the last checkpoint is kept.
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
        pl_module.training_values[name] = norm  # two optimizers: logs the norm of each one's latest step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: GenerativeModel, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not (pl_module.whole_step and trainer._logger_connector.should_update_logs):
            return
        for name in ("loss", "generator_loss"):
            loss = pl_module.training_values.get(name)
            if not isinstance(loss, Tensor):
                continue
            # over all processes: if only one stopped, the others would wait for it
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
