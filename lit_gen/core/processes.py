"""Processes of one distributed command: ranks and collective operations."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, distributed

_ALONE: ContextVar[bool] = ContextVar("alone", default=False)


@contextmanager
def alone() -> Iterator[None]:
    """Let the functions of this module see one process in the block, so that none waits for another."""
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


def is_distributed() -> bool:
    """Return whether there are other processes to communicate with."""
    return distributed.is_available() and distributed.is_initialized() and not _ALONE.get()


def ranks() -> tuple[int, int]:
    """Return (rank, number of processes); (0, 1) if the command is not distributed."""
    if is_distributed():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def gather(part: Any) -> list[Any]:
    """Return the values of all processes, in order of rank, on every process."""
    _, world_size = ranks()
    if world_size == 1:
        return [part]
    parts: list[Any] = [None] * world_size
    distributed.all_gather_object(parts, part)
    return parts


def from_first(value: Any) -> Any:
    """Return the value of rank 0 on every process."""
    if ranks()[1] == 1:
        return value
    values = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]


def all_reduce_sum(x: Tensor) -> Tensor:
    """Sum a tensor over all processes in place, and return it on every process."""
    if is_distributed():
        distributed.all_reduce(x)
    return x


def all_gather_cat(x: Tensor) -> Tensor:
    """Concatenate the tensors of all processes, which have one shape, along the first dimension."""
    if not is_distributed():
        return x
    parts = [torch.empty_like(x) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, x.contiguous())
    return torch.cat(parts)
