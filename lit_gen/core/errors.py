"""The exception for input that the user can correct, and the class names that its messages list."""

import inspect
from abc import ABC
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Invalid input; the message is one line that names the key or file and the remedy.

    The command line prints the message without a traceback and exits with code 2.
    """

    exit_code = 2


class LostProcessError(UserError):
    """Failure of another process of a distributed command; the input is not the cause."""

    exit_code = 1


class DivergedError(UserError):
    """Training with a loss or weights that are not finite."""


class NoTestImagesError(UserError):
    """Request for test images of a data set that has only training images."""


@contextmanager
def belonging_to(key: str) -> Iterator[None]:
    """Prefix the message of a UserError raised in the block with the key."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{key}: {error}") from None


def class_names(base: type) -> list[str]:
    """Return the sorted names of the concrete subclasses of `base`, itself included; private names are left out."""
    abstract = inspect.isabstract(base) or ABC in base.__bases__ or base.__name__.startswith("_")
    below: list[type] = base.__subclasses__()
    return sorted({*([] if abstract else [base.__name__]), *(name for child in below for name in class_names(child))})
