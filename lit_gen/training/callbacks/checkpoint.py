"""Checkpoints that a kill cannot damage, and that are saved first on Ctrl-C and SIGTERM."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import TimeoutExpired
from typing import Any

import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, Trainer

from lit_gen.core.errors import DivergedError, UserError
from lit_gen.core.files import publish, staged
from lit_gen.families.base import GenerativeModel
from lit_gen.families.clock import Clock
from lit_gen.training.processes import BATCHES_BETWEEN_AGREEMENTS, SECONDS_TO_LEAVE


@dataclass(frozen=True)
class CheckpointSettings:
    """Times at which `checkpoints/last.ckpt` is saved.

    Args:
        every: Images between two checkpoints; 0 saves only the last one.
    """

    every: int = 100_000

    def __post_init__(self) -> None:
        if self.every < 0:
            raise UserError(
                f"checkpoint.every: {self.every} is negative; give a number of images, or 0 for only the last "
                "checkpoint"
            )


class Checkpoint(Callback):
    """Callback that saves `checkpoints/last.ckpt` at regular numbers of images and at the end, atomically.

    Lightning's ModelCheckpoint counts optimizer steps, which two optimizers count twice, and can leave a half-written
    file when it is killed. This callback counts images, and writes a temporary file that it renames. It saves only
    after whole optimizer steps, never between micro-batches.

    The file is written after its step, but renamed only before the next step or at the end of training. By then the
    plots, validation results and rows of metrics.csv of that step are on disk. A resumed run therefore creates again
    everything that a kill has lost.

    Args:
        settings: Images between two checkpoints.
        path: Path of the checkpoint.
        saved: Function that the first process calls after each checkpoint.
    """

    def __init__(self, settings: CheckpointSettings, path: Path, saved: Callable[[], object] = lambda: None) -> None:
        self.every = settings.every
        self.path = path
        self.saved = saved
        self._saved_at = 0
        self._written: Path | None = None
        self._stop_after = False
        self._training = False
        self._interrupted = False
        self._interrupt: Callable[[int, Any], None] | None = None

    def setup(self, trainer: Trainer, pl_module: GenerativeModel, stage: str) -> None:
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = InPlace()

    def on_train_start(self, trainer: Trainer, pl_module: GenerativeModel) -> None:
        self._saved_at = pl_module.images_seen
        self._training = True
        if self._interrupt is not None:  # Lightning's handler stops without a checkpoint
            signal.signal(signal.SIGTERM, self._interrupt)

    def on_train_batch_start(self, trainer: Trainer, pl_module: GenerativeModel, batch: Any, batch_idx: int) -> None:
        self._conclude(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: GenerativeModel, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not pl_module.whole_step:  # a checkpoint does not hold the gradients of a micro-batch
            return
        images = pl_module.images_seen
        # processes receive Ctrl-C in different batches, and an agreement after every batch would be slow
        agree = trainer.world_size == 1 or pl_module.clock.batches_seen % BATCHES_BETWEEN_AGREEMENTS == 0
        self._stop_after = agree and trainer.strategy.reduce_boolean_decision(self._interrupted, all=False)
        if self._stop_after or (self.every and images // self.every > self._saved_at // self.every):
            self._write(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: GenerativeModel) -> None:
        if pl_module.images_seen != self._saved_at:
            self._write(trainer, pl_module)
        self._stop_after = trainer.strategy.reduce_boolean_decision(self._interrupted, all=False)
        self._conclude(trainer)
        self._training = False

    def on_exception(self, trainer: Trainer, pl_module: GenerativeModel, exception: BaseException) -> None:
        if self._written is not None and trainer.is_global_zero:
            self._written.unlink(missing_ok=True)

    def _conclude(self, trainer: Trainer) -> None:
        """Rename the written checkpoint to its final name, and stop if the run was interrupted."""
        if self._written is not None:
            if trainer.is_global_zero:
                publish(self._written, self.path)
                self.saved()
            self._written = None
            trainer.strategy.barrier("checkpoint")
        if self._stop_after:
            self._stop(trainer)

    def _stop(self, trainer: Trainer) -> None:
        """Stop all processes, the first one last: Lightning kills it if another one ends with an error."""
        others = getattr(trainer.strategy.launcher, "procs", [])
        environment = getattr(trainer.strategy, "cluster_environment", None)
        if isinstance(environment, LightningEnvironment) and trainer.local_rank > 0:
            raise SystemExit(0)
        for process in others:
            with suppress(TimeoutExpired):
                process.wait(SECONDS_TO_LEAVE)
        raise KeyboardInterrupt

    def on_save_checkpoint(self, trainer: Trainer, pl_module: GenerativeModel, checkpoint: dict[str, Any]) -> None:
        checkpoint["world_size"] = trainer.world_size
        checkpoint["num_threads"] = torch.get_num_threads()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: GenerativeModel, checkpoint: dict[str, Any]) -> None:
        """Count in micro-batches of today, and use the number of CPU threads of the checkpoint.

        A sum over another number of threads rounds differently.
        """
        count_in_micro_batches(checkpoint, trainer.accumulate_grad_batches, pl_module.clock)
        own = torch.get_num_threads()
        saved = checkpoint.get("num_threads", own)
        if trainer.strategy.root_device.type == "cpu" and saved != own:
            torch.set_num_threads(saved)

    def stop(self) -> None:
        """Save a checkpoint after this batch and then stop, as after a Ctrl-C; call it from any process."""
        self._interrupted = True

    def save(self, trainer: Trainer, pl_module: GenerativeModel) -> None:
        """Write the checkpoint and rename it at once."""
        self._write(trainer, pl_module)
        self._conclude(trainer)

    def save_as(self, path: Path, trainer: Trainer, pl_module: GenerativeModel) -> None:
        """Write a checkpoint that is not resumed from, under another name."""
        temporary = self._stage(path, trainer, pl_module)
        if trainer.is_global_zero:
            publish(temporary, path)
        trainer.strategy.barrier("checkpoint")

    def _write(self, trainer: Trainer, pl_module: GenerativeModel) -> None:
        """Write the checkpoint to a temporary file next to the old one."""
        self._written = self._stage(self.path, trainer, pl_module)
        self._saved_at = pl_module.images_seen

    def _stage(self, path: Path, trainer: Trainer, pl_module: GenerativeModel) -> Path:
        """Write a checkpoint to a temporary file that can replace a path, and return it; collective."""
        if not all(torch.isfinite(parameter).all() for parameter in pl_module.parameters()):
            raise diverged("the weights are not finite", trainer, pl_module)
        with staged(path) as temporary:
            trainer.save_checkpoint(temporary)
        return temporary

    @contextmanager
    def saved_when_interrupted(self, trainer: Trainer) -> Iterator[None]:
        """Save a checkpoint on Ctrl-C or SIGTERM during training and then stop; a second signal stops at once.

        If any process receives a signal, all processes save and stop after the same batch.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def interrupt(number: int, frame: Any) -> None:
            if self._interrupted or not self._training:
                raise KeyboardInterrupt
            self._interrupted = True
            if trainer.is_global_zero:
                print("stopping after this batch; its checkpoint is saved", file=sys.stderr, flush=True)

        self._interrupt = interrupt
        before = signal.signal(signal.SIGINT, interrupt)
        try:
            yield
        finally:
            self._interrupt = None
            signal.signal(signal.SIGINT, before)


@contextmanager
def threads_restored() -> Iterator[None]:
    """Give the process its number of CPU threads back at the end of the block, in which a checkpoint may change it."""
    own = torch.get_num_threads()
    try:
        yield
    finally:
        if torch.get_num_threads() != own:
            torch.set_num_threads(own)


class InPlace(TorchCheckpointIO):
    """Writer that creates the checkpoint directly at its path.

    Lightning's own writer goes through the system's temporary folder, which may be too small, and its files cannot be
    read by other users.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with open(path, "wb") as file:
            torch.save(checkpoint, file)


def count_in_micro_batches(checkpoint: dict[str, Any], num: int, clock: Clock) -> None:
    """Make a checkpoint of another number of micro-batches per step, as other processes need, one of this number.

    Lightning counts micro-batches in the progress of an epoch, and steps everywhere else.

    Args:
        checkpoint: The checkpoint, changed in place.
        num: Number of micro-batches of a step.
        clock: The clock, which has read the checkpoint.
    """
    loop = checkpoint["loops"]["fit_loop"]
    loaders = [state for state in loop["state_dict"].get("combined_loader", []) if state]
    before = {state.get("accumulate_grad_batches", 1) for state in loaders}
    if len(before) != 1 or before == {num}:
        return
    (saved,) = before
    for counts in (loop["epoch_loop.batch_progress"][key] for key in ("total", "current")):
        ready = counts["ready"]  # of whole steps; what is `completed` is one micro-batch behind within a step's hooks
        for key, count in counts.items():
            counts[key] = ready // saved * num - (ready - count)
    for state in loaders:
        state["accumulate_grad_batches"] = num
    clock.resume(num, saved)


def diverged(what: str, trainer: Trainer, pl_module: GenerativeModel) -> DivergedError:
    """Return the error of a run with non-finite values: which weights are kept, and what may help."""
    paths = [callback.path for callback in trainer.callbacks if isinstance(callback, Checkpoint)]  # type: ignore[attr-defined]
    saved = [f"{path} keeps the last good weights" for path in paths if path.is_file()]
    kept = saved[0] if saved else "nothing was saved yet (--checkpoint.every)"
    clipping = "set --trainer.gradient_clip_val, " if pl_module.automatic_optimization else ""
    if hasattr(pl_module, "gradient_clip"):
        clipping = "set --model.gradient_clip, "
    return DivergedError(
        f"{what} after {pl_module.images_seen} images; {kept}: lower the learning rate, {clipping}or use "
        "--trainer.precision 32-true"
    )
