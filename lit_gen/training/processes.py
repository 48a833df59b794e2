"""Processes of one command: their number, their devices, and the decisions that the first one makes for all.

Lightning starts the other processes from the first one, once there is work to do. torchrun and SLURM start all of them
at once. Each must then receive the decision of the first one, or some would train while others have finished.
"""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from subprocess import TimeoutExpired
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import _get_rank
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import MPSAccelerator
from torch import distributed

from lit_gen.core.errors import LostProcessError, UserError
from lit_gen.core.processes import from_first, ranks
from lit_gen.core.trainer_settings import TrainerSettings
from lit_gen.runs.directory import Run

SECONDS_TO_LEAVE = 10.0
"""Seconds that the first process waits for the others to end before it kills them."""
BATCHES_BETWEEN_AGREEMENTS = 10
"""Batches between two decisions that all processes take together, such as to stop: each one takes time."""


def is_first() -> bool:
    """Return whether this process has rank 0, is the only process, or has started the others."""
    return (_get_rank() or 0) == 0 and int(os.environ.get("NODE_RANK", 0)) == 0


def num_started() -> int | None:
    """Return the number of processes that torchrun or srun started, this one included; None if neither did."""
    if TorchElasticEnvironment.detect():
        return int(os.environ["WORLD_SIZE"])
    started = os.environ.get("SLURM_STEP_NUM_TASKS")
    return int(started) if started else None


def check_number(configured: int) -> None:
    """Compare the number of processes that were started with the configured number.

    Raises:
        UserError: If the two differ: each process would train alone.
    """
    started = num_started()
    if started is not None and started != configured:
        raise UserError(
            f"trainer.devices: {started} processes were started, but the configuration asks for {configured}; "
            "make --trainer.devices times --trainer.num_nodes the number that torchrun or srun starts"
        )


def accelerator(asked: Any) -> Any:
    """Return the accelerator to use: `auto` never selects MPS, which has no float64.

    Raises:
        UserError: If the setting names MPS.
    """
    mps = MPSAccelerator.is_available()
    if asked == "mps" or (mps and asked == "gpu"):
        raise UserError(
            f"trainer.accelerator: {asked} is MPS, which has no float64, but noise, times and samplers need it; "
            "use --trainer.accelerator cpu"
        )
    return "cpu" if mps and asked == "auto" else asked


def device(trainer: TrainerSettings) -> torch.device:
    """Return the device of this process: the CPU, or the CUDA device of its local rank."""
    if accelerator(trainer.accelerator) == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    local_rank = int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)
    return torch.device("cuda", cuda_index(trainer.devices, local_rank))


def cuda_index(devices: int | str | list[int], local_rank: int) -> int:
    """Return the CUDA device index of a process, given `trainer.devices`: their number, or a list of indices."""
    if isinstance(devices, str) and "," in devices:
        devices = [int(index) for index in devices.split(",") if index.strip()]
    return devices[local_rank] if isinstance(devices, list) else local_rank


def num_devices(devices: Any, accelerator: str) -> Any:
    """Return the number of devices of a list or of `auto` on this machine, and any other value unchanged."""
    if isinstance(devices, list):
        return len(devices)
    if devices in ("auto", -1, "-1"):
        on_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
        return torch.cuda.device_count() if on_gpu else 1
    return devices


def number(trainer: TrainerSettings) -> int:
    """Return the number of training processes.

    Raises:
        UserError: If the number of devices or nodes is below 1 or not a number.
    """
    started = num_started()
    devices: Any = trainer.devices
    if isinstance(devices, str) and "," in devices:
        devices = [index for index in devices.split(",") if index.strip()]
    devices = num_devices(devices, trainer.accelerator)
    for key, count in {"devices": devices, "num_nodes": trainer.num_nodes}.items():
        if not str(count).strip().isdecimal() or int(count) < 1:
            raise UserError(
                f"trainer.{key}: {getattr(trainer, key)} leaves no process to train; give at least 1, or remove the key"
            )
    return int(devices) * int(trainer.num_nodes) if started is None else started


@contextmanager
def losses_reported(rank: int, number: int) -> Iterator[None]:
    """Turn the error of a collective operation, after another process has ended, into a one-line error.

    Args:
        rank: Rank of this process.
        number: Number of processes.

    Raises:
        LostProcessError: If gloo or NCCL raises an error in the block.
    """
    try:
        yield
    except RuntimeError as error:
        lost = isinstance(error, distributed.DistError) or any(name in str(error) for name in ("gloo", "NCCL"))
        if number == 1 or not lost:
            raise
        other = f"process {1 - rank} of 2" if number == 2 else f"one of {number} processes"
        raise LostProcessError(
            f"{other} has ended (killed? out of memory?), so process {rank} stops; run the same command to resume from "
            "the last checkpoint"
        ) from None


def end_others(trainer: Trainer) -> None:
    """Wait for the processes that Lightning has started from this one, and kill those that do not end.

    Lightning watches them in a thread that would kill this process too, before it can report an error.
    """
    for thread in threading.enumerate():
        if thread.name == "child-process-observer":
            thread._child_processes = []  # type: ignore[attr-defined]
    until = time.monotonic() + SECONDS_TO_LEAVE
    for process in getattr(trainer.strategy.launcher, "procs", []):
        with suppress(TimeoutExpired):
            process.wait(max(0.0, until - time.monotonic()))
        process.kill()


@contextmanager
def turn(run: Run, trainer: Trainer) -> Iterator[bool]:
    """Yield whether the run still needs training, as decided by the first process, which locks the run for the block.

    Processes of torchrun or SLURM form their group here and wait for that decision, for as long as another command
    holds the lock. Processes that Lightning starts need not wait: the first one holds the lock already.
    """
    check_number(trainer.num_devices * trainer.num_nodes)
    environment = getattr(trainer.strategy, "cluster_environment", None)
    alike = environment is not None and not isinstance(environment, LightningEnvironment)
    if alike:
        trainer.strategy.setup_environment()
    with losses_reported(trainer.global_rank, trainer.world_size):
        if is_first():
            with run.lock(waiting=lambda: from_first(None)):
                yield from_first(not run.finished)
        elif alike:
            while (word := from_first(None)) is None:
                pass
            yield word
        else:
            yield not run.finished


def launch(trainer: TrainerSettings) -> None:
    """Form the process group of a distributed evaluation, one process per device, unless training has formed it.

    Raises:
        UserError: If the processes cannot be started.
    """
    if ranks()[1] > 1 or (trainer.devices in ("auto", 1, "1") and num_started() in (None, 1)):
        return
    try:
        fabric = Fabric(
            accelerator=accelerator(trainer.accelerator),
            devices=trainer.devices,
            num_nodes=1 if num_started() is None else trainer.num_nodes,
            strategy=trainer.strategy,
        )
        check_number(fabric.world_size)
        fabric.launch()
    except (MisconfigurationException, ValueError, RuntimeError, ImportError) as error:
        raise UserError(f"trainer: {' '.join(str(error).split())}; correct the settings of the trainer") from None
