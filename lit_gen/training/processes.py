"""The processes of one command: how many there are, on which device each works, and what the first decides for all.

Lightning starts the others from the first one, once there is something to do. torchrun and SLURM start all of them
alike; then every one must hear what the first decides, or some would train while others are finished.
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
from lit_gen.runs.directory import Run

SECONDS_TO_LEAVE = 10.0
"""Seconds that the first process waits for those it started, once they should end."""


def is_first() -> bool:
    """Whether this process started the others, or stands alone, or is rank 0 of those that were started together."""
    return (_get_rank() or 0) == 0 and int(os.environ.get("NODE_RANK", 0)) == 0


def num_started() -> int | None:
    """How many processes torchrun or srun started, this one among them; None where neither did."""
    if TorchElasticEnvironment.detect():
        return int(os.environ["WORLD_SIZE"])
    started = os.environ.get("SLURM_STEP_NUM_TASKS")
    return int(started) if started else None


def check_number(configured: int) -> None:
    """Compares the processes that were started with those that the configuration asks for.

    Raises:
        UserError: they differ; each would take itself for the whole.
    """
    started = num_started()
    if started is not None and started != configured:
        raise UserError(
            f"trainer.devices: {started} processes were started, but the configuration asks for {configured}; "
            "--trainer.devices times --trainer.num_nodes must be the number that torchrun or srun starts"
        )


def accelerator(asked: Any) -> Any:
    """What `trainer.accelerator` stands for here: MPS computes no float64, which noise, times and samplers need.

    Raises:
        UserError: MPS is asked for by name.
    """
    mps = MPSAccelerator.is_available()
    if asked == "mps" or (mps and asked == "gpu"):
        raise UserError(
            f"trainer.accelerator: {asked} is MPS, which computes no float64, but noise, times and samplers need it; "
            "use --trainer.accelerator cpu"
        )
    return "cpu" if mps and asked == "auto" else asked


def device(trainer: Any) -> torch.device:
    """The device of this process: the CPU, or that of the CUDA devices which has its local rank.

    Args:
        trainer: The configuration of the trainer.
    """
    if accelerator(trainer.accelerator) == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    local_rank = int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)
    return torch.device("cuda", cuda_index(trainer.devices, local_rank))


def cuda_index(devices: int | str | list[int], local_rank: int) -> int:
    """Which CUDA device a process uses, given `trainer.devices`: a number of devices, or a list of their indices."""
    if isinstance(devices, str) and "," in devices:
        devices = [int(index) for index in devices.split(",") if index.strip()]
    return devices[local_rank] if isinstance(devices, list) else local_rank


def num_devices(devices: Any, accelerator: str) -> Any:
    """Return how many devices a list, or `auto` on this machine, stands for; any other value as it is."""
    if isinstance(devices, list):
        return len(devices)
    if devices in ("auto", -1, "-1"):
        on_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
        return torch.cuda.device_count() if on_gpu else 1
    return devices


def number(trainer: Any) -> int:
    """Return how many processes will train.

    Args:
        trainer: The configuration of the trainer.

    Raises:
        UserError: The number of devices or nodes is below 1 or not a number.
    """
    started, devices = num_started(), trainer.devices
    if isinstance(devices, str) and "," in devices:
        devices = [index for index in devices.split(",") if index.strip()]
    devices = num_devices(devices, trainer.accelerator)
    for key, count in {"devices": devices, "num_nodes": trainer.num_nodes}.items():
        if not str(count).strip().isdecimal() or int(count) < 1:
            raise UserError(
                f"trainer.{key}: {getattr(trainer, key)} leaves no process to train; give at least 1, or leave it out"
            )
    return int(devices) * int(trainer.num_nodes) if started is None else started


@contextmanager
def losses_reported(rank: int, number: int) -> Iterator[None]:
    """Turn the error of a collective operation whose other side has ended into one line.

    Args:
        rank: This process.
        number: How many processes there are.

    Raises:
        LostProcessError: in the place of the error of gloo or NCCL.
    """
    try:
        yield
    except RuntimeError as error:
        lost = isinstance(error, distributed.DistError) or any(name in str(error) for name in ("gloo", "NCCL"))
        if number == 1 or not lost:
            raise
        other = f"process {1 - rank} of 2" if number == 2 else f"one of {number} processes"
        raise LostProcessError(
            f"{other} has ended (killed? out of memory?), so process {rank} stops; the same command resumes from the "
            "last checkpoint"
        ) from None


def end_others(trainer: Trainer) -> None:
    """End the processes that Lightning has started from this one: at first by themselves, then by force.

    Lightning watches them in a thread that kills this process as well, before it can say what has happened.
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
    """Whether a run is still to be trained: decided by the first process, which holds the run's lock for the block.

    Processes that were started alike form their group here and wait for the first one's word, however long another
    command holds the lock. Those that Lightning starts exist because the first one trains, or is done.
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


def launch(trainer: Any) -> None:
    """Forms the group of a distributed evaluation, one process for each device, unless a training has done so.

    Args:
        trainer: The configuration of the trainer.

    Raises:
        UserError: the processes cannot be had.
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
        raise UserError(f"trainer: {' '.join(str(error).split())}") from None
