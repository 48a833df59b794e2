"""Launchers start the same sweep on several nodes of a cluster, which share its trials by their locks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from lit_gen.core.errors import UserError

LAUNCHERS = ("slurm", "ray")
"""Names of the launchers, each of which has an option of that name for its settings."""


class Launcher(Protocol):
    """An engine that runs commands on the nodes of a cluster."""

    def launch(self, words: Sequence[str], num_nodes: int, folder: Path) -> list[int]:
        """Run `lit-gen WORDS` on each of some nodes, and return their exit statuses once all have ended.

        Args:
            words: Words of the command.
            num_nodes: Number of nodes.
            folder: Folder of the sweep, on storage that all nodes share.

        Raises:
            UserError: If the engine is missing or refuses the jobs.
        """


def make_launcher(name: str, settings: Mapping[str, str]) -> Launcher:
    """Return a launcher by its name.

    Raises:
        UserError: If there is none, or its package is not installed.
    """
    if name == "slurm":
        from lit_gen.sweeps.launchers.slurm import Slurm

        return Slurm(settings)
    if name == "ray":
        from lit_gen.sweeps.launchers.ray import Ray

        return Ray(settings)
    raise UserError(f"--launcher: {name} is not a launcher; choose {' or '.join(LAUNCHERS)}")
