"""Checkpoints that a kill cannot spoil."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from subprocess import TimeoutExpired
from typing import Any

import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, Trainer

from lit_gen.core.errors import UserError
from lit_gen.core.files import publish, staged
from lit_gen.families.base import GenerativeModel

BATCHES_BETWEEN_AGREEMENTS = 10
SECONDS_TO_LEAVE = 10.0


class Checkpoint(Callback):
    """Saves `checkpoints/last.ckpt` every so many images and at the end, whole or not at all.

    Lightning's ModelCheckpoint counts optimizer steps, which two optimizers count twice, and can leave a half-written
    file when it is killed; this one counts images, writes beside the old file and renames. It saves whole optimization
    steps alone, never some of a step's parts.

    It is written when its step is done, but renamed only before the next step or at the end of the training, when
    pictures, validation and rows of metrics.csv that belong to its step are on the disk as well. So nothing is missing
    that a resumed training would not make again, wherever a kill falls.

    Args:
        every: Images between two checkpoints; 0 saves only the last.
    """

    def __init__(self, every: int = 100_000) -> None:
        if every < 0:
            raise UserError(f"checkpoint.every: {every} is not a number of images; 0 saves only the last")
        self.every = every
        self.path: Path | None = None
        self.saved: Callable[[], object] = lambda: None
        """Called by the first process after each checkpoint."""
        self._saved_at = 0
        self._written: Path | None = None
        self._stop_after = False
        self._training = False
        self._interrupted = False
        self._interrupt: Callable[[int, Any], None] | None = None
        self._own_threads: int | None = None

    def setup(self, trainer: Trainer, pl_module: GenerativeModel, stage: str) -> None:
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = InPlace()

    def on_train_start(self, trainer: Trainer, pl_module: GenerativeModel) -> None:
        self._saved_at = pl_module.images_seen
        self._training = True
        if self._interrupt is not None:  # Lightning's stops without a checkpoint
            signal.signal(signal.SIGTERM, self._interrupt)

    def on_train_batch_start(self, trainer: Trainer, pl_module: GenerativeModel, batch: Any, batch_idx: int) -> None:
        self._conclude(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: GenerativeModel, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not pl_module.whole_step:  # gradients of a part are in no checkpoint
            return
        images = pl_module.images_seen
        # processes hear of Ctrl-C in different batches; to ask one another after each would cost time
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
        """Give the checkpoint that was written its name, and stop if that was asked for."""
        if self._written is not None:
            assert self.path is not None
            if trainer.is_global_zero:
                publish(self._written, self.path)
                self.saved()
            self._written = None
            trainer.strategy.barrier("checkpoint")
        if self._stop_after:
            self._stop(trainer)

    def _stop(self, trainer: Trainer) -> None:
        """Ends all processes, the first one last: Lightning kills it if another ends in an error."""
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
        """A CPU goes on with as many threads as it began with: a sum over another number of parts rounds otherwise."""
        own = torch.get_num_threads()
        saved = checkpoint.get("num_threads", own)
        if trainer.strategy.root_device.type == "cpu" and saved != own:
            self._own_threads = own
            torch.set_num_threads(saved)

    def restore_threads(self) -> None:
        """Gives the process back the number of threads that it had before a checkpoint was loaded."""
        if self._own_threads is not None:
            torch.set_num_threads(self._own_threads)
            self._own_threads = None

    def save(self, trainer: Trainer, pl_module: GenerativeModel) -> None:
        """Write the checkpoint and rename it at once."""
        self._write(trainer, pl_module)
        self._conclude(trainer)

    def _write(self, trainer: Trainer, pl_module: GenerativeModel) -> None:
        """Write the checkpoint beside the old one."""
        if self.path is None:
            return
        if not all(torch.isfinite(parameter).all() for parameter in pl_module.parameters()):
            raise diverged("the weights are not finite", trainer, pl_module)
        with staged(self.path) as temporary:
            trainer.save_checkpoint(temporary)
        self._written = temporary
        self._saved_at = pl_module.images_seen

    @contextmanager
    def saved_when_interrupted(self, trainer: Trainer) -> Iterator[None]:
        """Ctrl-C or SIGTERM while batches are trained saves a checkpoint first; a second one stops at once.

        Of several processes it is enough that one gets the signal: all save and stop after the same batch.
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


class InPlace(TorchCheckpointIO):
    """A writer that creates the checkpoint at its own path.

    Lightning's own goes through the system's folder of temporary files, which may be too small, and the file that comes
    from there cannot be read by other users.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with open(path, "wb") as file:
            torch.save(checkpoint, file)


def check_world_size(checkpoint: dict[str, Any], trainer: Trainer) -> None:
    """Refuses to go on with another number of processes: each draws random numbers of its own.

    Raises:
        UserError: the checkpoint was saved by another number of processes.
    """
    saved = checkpoint.get("world_size", trainer.world_size)
    if saved != trainer.world_size:
        raise UserError(
            f"trainer.devices: the checkpoint was saved by {saved} processes and cannot go on with "
            f"{trainer.world_size}; use {saved} again, or name a new run with --run.name"
        )


def diverged(what: str, trainer: Trainer, pl_module: GenerativeModel) -> UserError:
    """The error of a training that came to no numbers: what of it is kept, and what may help."""
    paths = [callback.path for callback in trainer.callbacks if isinstance(callback, Checkpoint)]  # type: ignore[attr-defined]
    saved = [f"{path} keeps the last good weights" for path in paths if path is not None and path.is_file()]
    kept = saved[0] if saved else "nothing was saved yet (--checkpoint.every)"
    clipping = "set --trainer.gradient_clip_val, " if pl_module.automatic_optimization else ""
    if hasattr(pl_module, "gradient_clip"):
        clipping = "set --model.gradient_clip, "
    return UserError(
        f"{what} after {pl_module.images_seen} images; {kept}: lower the learning rate, {clipping}or use "
        "--trainer.precision 32-true"
    )
