"""Several processes of one command, as torchrun starts them.

They are forked from a process that has imported what they need: importing is most of what a short command takes.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from torch import distributed
from torch.multiprocessing import start_processes

from lit_gen.cli.main import main

MOST_SECONDS = 1200
"""Time after which processes that have not ended are taken to hang."""

multiprocessing.set_forkserver_preload(
    ["lit_gen.cli.commands", "lit_gen.experiment.parser", "torch._dynamo", "sklearn.datasets"]
)


def in_two_processes(work: Callable[[int, Path], object], folder: Path, **environment: str) -> None:
    """Calls `work(rank, folder)` in two processes, see `in_processes`."""
    in_processes(2, work, folder, **environment)


def in_processes(count: int, work: Callable[[int, Path], object], folder: Path, **environment: str) -> None:
    """Calls `work(rank, folder)` in so many processes.

    Raises:
        ProcessRaisedException: it raised in one of them.
        ProcessExitedException: one of them was killed.
        TimeoutError: they hang, as in a collective operation that one of them does not take part in.
    """
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_network_port())}
    size = str(count)
    torchrun = {"TORCHELASTIC_RUN_ID": "tests", "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "GROUP_RANK": "0"}
    everywhere = address | torchrun | environment
    started = start_processes(_begin, (work, folder, everywhere), nprocs=count, join=False, start_method="forkserver")
    end = time.monotonic() + MOST_SECONDS
    while not started.join(timeout=10, grace_period=30):  # the other one ends by itself, and says why
        if time.monotonic() > end:
            for process in started.processes:
                process.kill()
            raise TimeoutError(f"the processes of {folder} wait for each other, or take more than {MOST_SECONDS} s")


def lit_gen_in_two_processes(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the command in two processes, in a folder: the exit status of both, and what both print."""
    for rank in (0, 1):
        _said(folder, rank, "code").unlink(missing_ok=True)
    in_two_processes(partial(_command, words), folder, **environment)
    codes, out, err = ([_said(folder, rank, what).read_text() for rank in (0, 1)] for what in ("code", "out", "err"))
    assert codes[0] == codes[1], (codes, *err)
    return subprocess.CompletedProcess(words, int(codes[0]), "".join(out), "".join(err))


def _begin(rank: int, work: Callable[[int, Path], object], folder: Path, environment: dict[str, str]) -> None:
    os.environ |= environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    multiprocessing.set_start_method("fork", force=True)  # for the workers of a data loader, as elsewhere on Linux
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    work(rank, folder)
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _command(words: tuple[str, ...], rank: int, folder: Path) -> None:
    os.chdir(folder)
    for stream, what in ((sys.stdout, "out"), (sys.stderr, "err")):
        with _said(folder, rank, what).open("w") as file:
            os.dup2(file.fileno(), stream.fileno())
    code = main(list(words))
    sys.stdout.flush()
    sys.stderr.flush()
    _said(folder, rank, "code").write_text(str(code))


def _said(folder: Path, rank: int, what: str) -> Path:
    return folder / f"process-{rank}.{what}"


def in_one_process(work: Callable[..., object], *arguments: object) -> int:
    """Calls `work(*arguments)` in a process of its own: its exit status, negative for the signal that ended it."""
    process = multiprocessing.get_context("forkserver").Process(target=_alone, args=(work, *arguments))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _alone(work: Callable[..., object], *arguments: object) -> None:
    multiprocessing.set_start_method("fork", force=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    work(*arguments)
