"""The interface of a tracker of training runs; each of W&B, TensorBoard and MLflow is one file."""

from abc import abstractmethod
from pathlib import Path

from lightning.pytorch.loggers import Logger


class Tracker(Logger):
    """Curves and pictures of one training run against the images seen; a resume continues them.

    Lightning calls `log_metrics` of each process, as of any logger; the other methods are called on the first process.
    """

    @abstractmethod
    def log_picture(self, name: str, picture: Path, images: int) -> None:
        """Log a picture, such as samples of the model after so many images."""

    @abstractmethod
    def alert(self, title: str, text: str) -> None:
        """Record an event that the user should hear of."""

    @abstractmethod
    def finish(self, failed: bool) -> None:
        """Record that the training has ended, or has failed."""
