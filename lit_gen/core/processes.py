"""The processes of one command: which one this is, and what they tell one another."""

from typing import Any

import torch
from torch import Tensor, distributed


def ranks() -> tuple[int, int]:
    """(rank, number of processes); (0, 1) when nothing is distributed."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def gather(part: Any) -> list[Any]:
    """The part of every process, on every process."""
    _, world_size = ranks()
    if world_size == 1:
        return [part]
    parts: list[Any] = [None] * world_size
    distributed.all_gather_object(parts, part)
    return parts


def from_first(value: Any) -> Any:
    """The value of the first process, on every process."""
    if ranks()[1] == 1:
        return value
    values = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]


def all_reduce_sum(x: Tensor) -> Tensor:
    """The sum over all processes, on each of them."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(x)
    return x


def all_gather_cat(x: Tensor) -> Tensor:
    """The tensors of all processes, of one shape, one after the other along the first dimension."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return x
    parts = [torch.empty_like(x) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, x.contiguous())
    return torch.cat(parts)
