"""The clock of a training run: how many images it has seen, and the random seeds of every micro-batch.

An optimizer step takes one or more micro-batches. The images of a step count with its first micro-batch, so the clock
stands still within a step. Generators are seeded by (seed, stream, micro-batch), where a stream is a rank or a purpose.
A resumed run therefore draws the same random numbers as an uninterrupted one.

A micro-batch of a process is a share of the batch. Consecutive shares are those of the ranks, micro-batch by
micro-batch. A run that resumes on another number of processes has the same shares if it keeps their number; each share
then keeps its seeds, which are those of the rank and the micro-batch that had it when the run began.
"""

import hashlib
from typing import Any, NamedTuple

import torch
from torch import Tensor

Values = dict[str, Tensor | float]


class Division(NamedTuple):
    """Division of a batch into shares, one per process and micro-batch."""

    processes: int = 1
    micro_batches: int = 1

    @property
    def num_shares(self) -> int:
        return self.processes * self.micro_batches


class Clock:
    """Progress of a training run.

    Args:
        seed: Seed of the run.
        images_seen: Number of images that the run starts from.
        kept: Division of the batches when the run began, whose random numbers it keeps; None for that of today.

    Attributes:
        seed: Seed of the run.
        images_seen: Number of images that all processes together have trained on.
        batches_seen: Number of micro-batches that each process has started.
        micro_batch: Index of the current micro-batch within its optimizer step.
        rank: Rank that the share of this process had when the run began.
        num_ranks: Number of processes when the run began.
    """

    def __init__(self, seed: int = 0, images_seen: int = 0, kept: Division | None = None) -> None:
        self.seed = seed
        self.images_seen = images_seen
        self.kept = kept
        self.batches_seen = 0
        self.micro_batch = 0
        self.rank, self.num_ranks = 0, 1
        self._ahead = 0

    def find_share(self, rank: int, today: Division) -> None:
        """Find the rank and the micro-batch that had the next share of this process when the run began."""
        began = self.kept or today
        step, part = divmod(self.batches_seen, today.micro_batches)
        part, self.rank = divmod(part * today.processes + rank, began.processes)
        self.num_ranks = began.processes
        self._ahead = step * began.micro_batches + part - self.batches_seen

    def resume(self, num_micro_batches: int, before: int) -> None:
        """Count in micro-batches of today, given their number per step, and the number per step before."""
        self.batches_seen = self.batches_seen // before * num_micro_batches

    def start_batch(self, num_images: int, num_micro_batches: int) -> None:
        """Advance to the next micro-batch.

        Args:
            num_images: Number of images of the optimizer step, over all processes and micro-batches.
            num_micro_batches: Number of micro-batches of the step.
        """
        self.micro_batch = self.batches_seen % num_micro_batches
        if self.micro_batch == 0:
            self.images_seen += num_images
        self.batches_seen += 1

    def is_whole_step(self, num_micro_batches: int) -> bool:
        """Return whether the current micro-batch is the last of its optimizer step."""
        return self.batches_seen % num_micro_batches == 0

    def mean_over_step(self, means: Values, values: Values) -> Values:
        """Return the means of values over the micro-batches of a step so far.

        Args:
            means: Means over the micro-batches before, by name; may hold other names.
            values: Values of the current micro-batch. A value without a mean is taken for its mean so far.
        """
        if self.micro_batch == 0:
            return dict(values)
        before = {name: means.get(name, value) for name, value in values.items()}
        return {name: before[name] + (value - before[name]) / (self.micro_batch + 1) for name, value in values.items()}

    def seed_of(self, stream: int | str) -> int:
        """Return the seed of a stream, a rank or a purpose, at the current count of micro-batches."""
        return step_seed(self.seed, stream, self.batches_seen + self._ahead)

    def reseed(self, device: torch.device) -> None:
        """Reseed the global generators of the CPU and of the device for the micro-batch that is about to start."""
        seed = self.seed_of(self.rank)
        # Like torch.manual_seed, which without a GPU formats stack traces to keep for one: half a millisecond.
        torch.default_generator.manual_seed(seed)
        if device.type != "cpu":
            torch.get_device_module(device).manual_seed(seed)

    def state_dict(self) -> dict[str, int]:
        """Return the counts, by the keys of a checkpoint."""
        return {"images_seen": self.images_seen, "batches_seen": self.batches_seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the counts from a checkpoint, which may hold other keys."""
        self.images_seen = state["images_seen"]
        self.batches_seen = state["batches_seen"]


def step_seed(seed: int, stream: int | str, step: int) -> int:
    """Return a 63-bit seed for (seed, stream, step); seeds of neighbouring arguments are unrelated."""
    digest = hashlib.blake2b(f"{seed} {stream} {step}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
