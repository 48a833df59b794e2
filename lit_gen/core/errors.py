"""The one exception for input that a user can mend, and the choices that its messages name."""

import inspect
from abc import ABC
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Bad input: one clear line that names the key or file and the remedy.

    The command line prints the message without a traceback and exits with code 2.
    """

    exit_code = 2


class LostProcessError(UserError):
    """Another process of a distributed command has ended, which nothing in the input explains."""

    exit_code = 1


class NoTestImagesError(UserError):
    """The data has training images alone."""


@contextmanager
def belonging_to(key: str) -> Iterator[None]:
    """Says of a mistake that it is one of what a key names: of another experiment, or of a network."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{key}: {error}") from None


def class_names(base: type) -> list[str]:
    """Names of the classes of a kind that can be chosen, sorted."""
    abstract = inspect.isabstract(base) or ABC in base.__bases__ or base.__name__.startswith("_")
    below: list[type] = base.__subclasses__()
    return sorted({*([] if abstract else [base.__name__]), *(name for child in below for name in class_names(child))})
