"""Share the batches of an evaluation among processes: batch b goes to process b mod world size.

The batches, and with them the numbers of each image, are those of a single process.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from lit_gen.core.processes import ranks
from lit_gen.core.progress import ImageProgress, image_progress


@contextmanager
def shared_batches(
    description: str | None, num_images: int, batch_size: int, repeat: tuple[int, int] = (1, 1)
) -> Iterator[Iterator[range]]:
    """Show the progress of a block that computes the batches of this process.

    Args:
        description: What is computed; None shows no progress.
        num_images: Images of all processes.
        batch_size: Images per batch.
        repeat: Number of the block among repeats, from 1, and their number; the progress is that of all.

    Yields:
        An iterator over the indices of each batch.
    """
    number, num = repeat
    done = (number - 1) * num_images
    show = description is not None and ranks()[0] == 0
    with image_progress(description or "", num * num_images, show=show, completed=done) as progress:
        yield _batches(num_images, batch_size, progress, done)


def _batches(num_images: int, batch_size: int, progress: ImageProgress | None, done: int) -> Iterator[range]:
    rank, world_size = ranks()
    for first in range(rank * batch_size, num_images, world_size * batch_size):
        yield range(first, min(first + batch_size, num_images))
        if progress is not None:
            progress.update(done + min(first + world_size * batch_size, num_images))


def in_order(shares: Iterable[dict[int, Tensor]]) -> Tensor:
    """Return the batches of all processes in the order of their images.

    Args:
        shares: The batches of each process, by the index of their first image.
    """
    batches = sorted((pair for share in shares for pair in share.items()), key=lambda pair: pair[0])
    return torch.cat([batch for _, batch in batches])
