"""Optimizer steps of every family: their clock, their learning rate, what they log, and what a checkpoint keeps.

An author of a family calls `log_training` and `log_validation`, and sets `optimizer`. Lightning and the
callbacks call the rest.
"""

from abc import ABC, abstractmethod
from typing import Any, NoReturn

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lit_gen.core import processes
from lit_gen.core.accumulation import SumOverMicroBatches
from lit_gen.core.errors import UserError
from lit_gen.data.batches import Batch
from lit_gen.data.module import ImageDataModule
from lit_gen.families.clock import Clock, Division
from lit_gen.families.optimizers import OptimizerFactory, check_optimizer


class TrainsInSteps(LightningModule, ABC):
    """The half of `GenerativeModel` that trains in optimizer steps, in the same way for every family.

    Args:
        warmup: Images over which the learning rate rises linearly from zero.
        compile: Compile the generating network with torch.compile.

    Raises:
        UserError: If the warm-up is negative.
    """

    optimizer: OptimizerFactory
    """Optimizer of the parameters; the constructor of a family sets it."""

    def __init__(self, warmup: int, compile: bool) -> None:
        super().__init__()
        if warmup < 0:
            raise UserError(f"model.warmup: {warmup} is not a number of images; give 0 or more")
        self.warmup = warmup
        self.compiled = compile
        self.accumulate = 1
        """Number of micro-batches of each optimizer step. With automatic optimization, a batch is a micro-batch, and
        Lightning sums the gradients. With manual optimization, a batch is a whole step, and the model splits it."""
        # state, not a setting: the constructor does not know the run
        self.clock = Clock()
        """Progress of the run; `fit_run` and `load_model` give it the seed or the images seen."""
        self.training_values: dict[str, Tensor | float] = {}
        """Latest value of each quantity that `log_training` logs."""
        self._stop_asked = False

    @property
    @abstractmethod
    def generator(self) -> nn.Module:
        """The generating network, which EMA averages and samples come from."""

    # --- for authors of a family ---

    @property
    def images_seen(self) -> int:
        """Number of images that all processes together have trained on, the x axis of every curve."""
        return self.clock.images_seen

    def warmup_schedule(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the optimizer with its linear learning-rate warm-up, as Lightning expects it.

        Raises:
            UserError: If there is a warm-up and the Trainer has no data module, which knows the global batch size.
        """
        data: ImageDataModule | None = self.trainer.datamodule if self.warmup else None  # type: ignore[attr-defined]
        if self.warmup and data is None:
            raise UserError(
                f"model.warmup: {self.warmup} images cannot be counted in batches of a plain loader; train with an "
                "ImageDataModule, or set it to 0"
            )
        steps = 0.0 if data is None else self.warmup / data.batch_size
        scheduler = LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / steps) if steps else 1.0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_optimizers(self) -> Any:
        """Return the optimizer of all parameters, with its warm-up; a family with several optimizers overrides it."""
        return self.warmup_schedule(self.optimizer(self.parameters()))

    def log_training(self, **values: Tensor | float) -> None:
        """Log values of this step under `train/` against images seen, if this is a logging step.

        Tensors must have no graph. The logged value is the mean over the micro-batches of the step and the processes.
        """
        self.training_values |= self.clock.mean_over_step(self.training_values, values)

    def log_validation(self, batch: Batch, **means: Tensor) -> None:
        """Log means over the validation split under `val/`, given the means over a batch; stand-ins do not count.

        All processes call it for the same number of batches, so that none waits for another.
        """
        metrics = {f"val/{name}": mean for name, mean in means.items()}
        # a float, since Lightning averages the number of images over processes and truncates an integer
        num_images: Any = 0.0 if batch.stand_in else float(len(batch.images))
        self.log_dict(metrics, batch_size=num_images, sync_dist=True, on_step=False, on_epoch=True)
        self.log("step", float(self.images_seen), on_step=False, on_epoch=True, reduce_fx="max")

    def optimizer_factories(self) -> dict[str, OptimizerFactory]:
        """Return the optimizer factories by config key."""
        return {name: value for name, value in vars(self).items() if name.endswith("optimizer")}

    @property
    def step_periods(self) -> tuple[int, ...]:
        """Periods p of extra work: every p-th step costs more than the others. For the count of operations."""
        return ()

    @property
    def phase_starts(self) -> tuple[int, ...]:
        """Numbers of images seen, from 0, after which steps cost more or less. For the count of operations."""
        return (0,)

    # --- for Lightning, the callbacks and the experiment ---

    @property
    def whole_step(self) -> bool:
        """Whether the latest micro-batch was the last of its optimizer step."""
        return self.clock.is_whole_step(self.trainer.accumulate_grad_batches)

    def check_optimizers(self) -> None:
        """Raise a UserError unless every optimizer accepts its settings."""
        for name, factory in self.optimizer_factories().items():
            check_optimizer(f"model.{name}", factory)

    def split_steps(self, num_micro_batches: int) -> None:
        """Split each optimizer step into micro-batches."""
        self.accumulate = num_micro_batches
        for module in self.modules():
            if isinstance(module, SumOverMicroBatches):
                module.num_micro_batches = num_micro_batches

    def configure_model(self) -> None:
        if self.compiled:
            self.generator.compile()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Reseed the global generators for the micro-batch, and advance the clock."""
        num = self.trainer.accumulate_grad_batches
        self.clock.find_share(self.global_rank, Division(self.trainer.world_size, num))
        self.clock.reseed(self.device)
        self.clock.start_batch(len(batch.images) * self.trainer.world_size * num, num_micro_batches=num)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Log the latest training values at logging steps only, since logging takes Lightning a millisecond.

        The hook runs after those of all callbacks. If a callback stops training within a step, the step is completed.
        """
        if not self.whole_step:
            self._stop_asked |= self.trainer.should_stop
            self.trainer.should_stop = False
            return
        self.trainer.should_stop |= self._stop_asked
        self._stop_asked = False
        if self.trainer._logger_connector.should_update_logs:
            self.log_dict({f"train/{name}": value for name, value in self._values_of_all().items()})
            self.log("step", float(self.images_seen))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint |= self.clock.state_dict()
        # a step may set only some of the values; the others are logged as they were
        checkpoint["training_values"] = {name: float(value) for name, value in self._values_of_all().items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.clock.load_state_dict(checkpoint)
        self.training_values = dict(checkpoint.get("training_values", {}))  # older checkpoints do not hold them

    def _values_of_all(self) -> dict[str, Tensor | float]:
        """Return the means of the training values over the processes, which all call it together."""
        _, num = processes.ranks()
        if num == 1:
            return self.training_values
        values = [torch.as_tensor(value, dtype=torch.float32) for value in (0.0, *self.training_values.values())]
        means = processes.all_reduce_sum(torch.stack([value.to(self.device) for value in values])) / num
        return dict(zip(self.training_values, means[1:], strict=True))

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise a UserError: a checkpoint holds weights only; the settings are in the `config.yaml` of its run."""
        raise UserError(
            f"{cls.__name__}.load_from_checkpoint: {checkpoint_path} holds weights and no settings; load its run with "
            "lit_gen.load(RUN), or sample from it with lit-gen sample RUN"
        )
