"""Published scores, shown beside results and never ranked: their protocols cannot be checked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lit_gen.core.errors import UserError
from lit_gen.core.files import read_text

FILE = Path(__file__).with_name("published.yaml")


@dataclass(frozen=True)
class Published:
    """One published score.

    Attributes:
        model: Name of the model.
        nfe: Network evaluations per image; None if not stated.
        fid: Frechet distance of Inception features.
        source: Where it was published.
        note: What differs from the protocol of its data set; empty if nothing.
    """

    model: str
    nfe: float | None
    fid: float
    source: str
    note: str = ""

    @property
    def title(self) -> str:
        """The model with source and note."""
        return f"{self.model} ({self.source}{', ' if self.note else ''}{self.note})"


def published(data: str) -> tuple[str, list[Published]]:
    """Return the protocol and the published scores of a data set.

    Raises:
        UserError: If there are none for it.
    """
    sets: dict[str, dict[str, Any]] = yaml.safe_load(read_text(FILE))
    if data not in sets:
        raise UserError(f"--published: there are no published scores of {data}; choose one of {', '.join(sets)}")
    return sets[data]["protocol"], [Published(**entry) for entry in sets[data]["values"]]
