"""How far a command is, told to whoever listens in the same process: a worker passes it on to its sweep."""

from collections.abc import Callable
from typing import NamedTuple


class Step(NamedTuple):
    """Images done of something that is being done.

    Attributes:
        description: What is being done.
        completed: Images done.
        total: Images to be done.
        images_per_second: Mean since the beginning; 0 before the first images.
    """

    description: str
    completed: int
    total: int
    images_per_second: float

    @property
    def seconds_left(self) -> float:
        """Seconds until all are done at that speed; infinite before the first images, 0 behind the last one."""
        left = max(self.total - self.completed, 0)
        return left / self.images_per_second if self.images_per_second else float("inf")


listeners: list[Callable[[Step], object]] = []
"""Each is called with every step; they must be quick."""
