"""The cost of a training run in floating-point operations, forward and backward of every network that learns.

Operations are those of `core.operations`; the steps of optimizers, which are elementwise, and averages are not counted.

They are counted on the first micro-batch, with a copy of the model: weights, random numbers and results stay as they
are. A step may cost more than the one before it, as in a GAN that trains its generator in every fifth step. Each kind
of step is therefore counted once and weighted by how often it occurs (`step_periods`), and all are counted anew when
the number of images seen passes one of `phase_starts`.
"""

import copy
import math
import sys
import warnings
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lit_gen.core.operations import OperationCounter
from lit_gen.core.processes import alone
from lit_gen.data.batches import Batch
from lit_gen.families.base import GenerativeModel
from lit_gen.families.clock import Division


class TrainingCost(Callback):
    """Callback that counts the operations of training on an image, in every process.

    All processes count, since a network of the user's own may communicate (`torch.nn.SyncBatchNorm`). Batches are those
    of one process, so quantities over all processes are those of one.
    """

    def __init__(self) -> None:
        self._per_image: dict[int, float] = {}
        self._failed = False

    def flops(self, images_seen: int) -> float | None:
        """Return the operations of training on a number of images in all processes; None if they are unknown."""
        if self._failed or not self._per_image:
            return None
        ends = [*list(self._per_image)[1:], images_seen]
        return sum(
            flops * max(0, min(images_seen, end) - start)
            for (start, flops), end in zip(self._per_image.items(), ends, strict=True)
        )

    def on_train_batch_start(self, trainer: Trainer, pl_module: GenerativeModel, batch: Any, batch_idx: int) -> None:
        begun = [start for start in pl_module.phase_starts if start <= pl_module.images_seen]
        if len(begun) == len(self._per_image) or self._failed:
            return
        with isolate_rng(include_cuda=pl_module.device.type == "cuda"), warnings.catch_warnings(), alone():
            warnings.simplefilter("ignore")
            try:
                for start in begun[len(self._per_image) :]:
                    self._per_image[start] = flops_per_trained_image(pl_module, batch, start)
            except Exception:  # a model of the user's own may need more of a Trainer: its cost is unknown then
                self._failed = True


def flops_per_trained_image(model: GenerativeModel, batch: Batch, images_seen: int = 0) -> float:
    """Return the mean operations of a step per image.

    Args:
        model: The model, which stays as it is.
        batch: A batch of one process, on the device of the model.
        images_seen: Number of images seen before.
    """
    num = len(batch.images) // (1 if model.automatic_optimization else model.accumulate)
    parts: dict[str, Any] = {name: part[:num] for name, part in batch._asdict().items() if isinstance(part, Tensor)}
    own = _copy(model)
    kinds = kinds_of_steps(model.step_periods)
    return sum(
        share * _flops_of_step(own, batch._replace(**parts), step, images_seen + 1) / num
        for step, share in kinds.items()
    )


def kinds_of_steps(periods: tuple[int, ...]) -> dict[int, float]:
    """Return the number of one step of each kind, with the share of its kind of all steps.

    Steps are of one kind if their numbers, from 1, are multiples of the same periods.
    """
    cycle = math.lcm(*periods)
    kinds = [tuple(step % period == 0 for period in periods) for step in range(1, cycle + 1)]
    return {kinds.index(kind) + 1: count / cycle for kind, count in Counter(kinds).items()}


def _copy(model: GenerativeModel) -> GenerativeModel:
    """Return a copy of a model, with what its training steps ask of a Trainer of a single process."""
    stage = model.first_stage
    own = copy.deepcopy(model, {} if stage is None else {id(stage): stage})
    own.split_steps(1)
    own.clock.kept = None
    own.clock.find_share(0, Division())
    own.__dict__["_trainer"] = SimpleNamespace(
        world_size=1,
        global_rank=0,
        accumulate_grad_batches=1,
        strategy=SimpleNamespace(reduce=_alone, all_gather=_alone),
        datamodule=SimpleNamespace(batch_size=1),
    )
    if not own.automatic_optimization:
        made: Any = own.configure_optimizers()
        optimizers = [each["optimizer"] if isinstance(each, dict) else each for each in made]
        schedule = SimpleNamespace(step=lambda: None)
        for optimizer in optimizers:
            optimizer.step = schedule.step
        own.__dict__ |= {"optimizers": lambda: optimizers, "lr_schedulers": lambda: schedule}
    return own


def _alone(value: Tensor, *_: Any, **__: Any) -> Tensor:
    """Return the value itself, as a collective operation of a single process does."""
    return value


def _flops_of_step(model: GenerativeModel, batch: Batch, step: int, images_seen: int) -> int:
    """Return the operations of one step, which changes buffers and counts of the model."""
    model.clock.batches_seen, model.clock.images_seen = step, images_seen
    # the registry does not know the fused attention of the CPU
    with torch.enable_grad(), _eager(), sdpa_kernel(SDPBackend.MATH), OperationCounter() as counter:
        output: Any = model.training_step(batch, 0)
        if model.automatic_optimization:
            loss: Tensor = output["loss"] if isinstance(output, dict) else output
            loss.backward()
    return counter.total


def _eager() -> AbstractContextManager[Any]:
    """Return a context in which nothing is compiled; importing the compiler only for this would take a second."""
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance
