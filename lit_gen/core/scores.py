"""Scores of evaluations during training: events for listeners in the same process, which may stop the training."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol


class ScoreListener(Protocol):
    """A listener to the evaluations of one training run."""

    def expect(self, names: Collection[str]) -> None:
        """Take the names of the scores before the training begins; there are none if it is not evaluated.

        Raises:
            UserError: If the listener needs another score.
        """

    def hear(self, images: int, scores: Mapping[str, float]) -> bool:
        """Take the scores after a number of training images, and return whether the training is to stop."""
        ...


listeners: list[ScoreListener] = []
"""Listeners to the training run of this process; they hear it in the first process of a distributed run."""


@contextmanager
def unheard() -> Iterator[None]:
    """Keep the listeners from hearing the block, which trains something that the training run builds on."""
    kept = listeners[:]
    listeners.clear()
    try:
        yield
    finally:
        listeners[:] = kept
