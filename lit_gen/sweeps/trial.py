"""One setting of the parameters of a sweep, and its arguments."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lit_gen.sweeps.hyperband import Hyperband
from lit_gen.sweeps.objective import Objective


@dataclass(frozen=True)
class Trial:
    """One setting of the parameters of a sweep.

    Args:
        id: Hash of the fixed arguments, the parameters and the files they name; independent of the sweep file.
        parameters: The parameters as W&B stores them, in the order of the file.
        arguments: The arguments of `lit-gen run`.
        objective: `metric` of the sweep file.
        hyperband: `early_terminate` of the sweep file.
    """

    id: str
    parameters: dict[str, Any]
    arguments: list[str]
    objective: Objective | None = None
    hyperband: Hyperband | None = None

    @property
    def metric(self) -> str | None:
        """Name of the score to optimize; None if the sweep file names none."""
        return None if self.objective is None else self.objective.name


def option(arguments: Sequence[str], key: str) -> str | None:
    """Return the last value of `--key=value` or `--key value` in the arguments; None if there is none."""
    value = None
    for index, argument in enumerate(arguments):
        if argument.startswith(f"--{key}="):
            value = argument.partition("=")[2]
        elif argument == f"--{key}" and index + 1 < len(arguments):
            value = arguments[index + 1]
    return value
