"""Settings of Lightning's Trainer that lit_gen reads itself; the Trainer gets all of them from the parser."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class TrainerSettings:
    """Settings under `trainer` in a configuration, with Lightning's defaults and types.

    Attributes:
        accelerator: auto, gpu, cuda, cpu or mps.
        devices: Number of devices, a list of their indices, or auto.
        num_nodes: Number of machines.
        strategy: Name of the strategy, or the strategy.
        precision: Precision of the weights and the computation.
        accumulate_grad_batches: Number of micro-batches per optimizer step.
        gradient_clip_val: Largest norm of the gradient; None for no limit.
        max_epochs: Largest number of epochs; -1 for no limit.
        max_steps: Largest number of optimizer steps; -1 for no limit.
        max_time: Longest time, in any form that Lightning's Timer takes; None for no limit.
        limit_train_batches: Number or share of the training batches of an epoch.
        limit_val_batches: Number or share of the validation batches.
        val_check_interval: Number or share of the training batches between two validations.
        check_val_every_n_epoch: Epochs between two validations; None counts batches instead.
        fast_dev_run: Number of batches of a trial run, or whether there is one.
        overfit_batches: Number or share of training batches that are repeated.
    """

    accelerator: Any = "auto"
    devices: int | str | list[int] = "auto"
    num_nodes: int = 1
    strategy: Any = "auto"
    precision: Any = None
    accumulate_grad_batches: int = 1
    gradient_clip_val: int | float | None = None
    max_epochs: int | None = None
    max_steps: int = -1
    max_time: Any = None
    limit_train_batches: int | float | None = None
    limit_val_batches: int | float | None = None
    val_check_interval: Any = None
    check_val_every_n_epoch: int | None = 1
    fast_dev_run: int | bool = False
    overfit_batches: int | float = 0.0

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "TrainerSettings":
        """Return the settings that lit_gen reads out of all settings of a Trainer."""
        return cls(**{field.name: settings[field.name] for field in fields(cls)})
