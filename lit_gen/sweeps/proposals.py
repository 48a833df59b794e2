"""The proposals of the searches of a sweep, as the journal has them, and what became of their trials."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from lit_gen.sweeps.bayes import Coordinates, Outcome, Search
from lit_gen.sweeps.objective import Objective
from lit_gen.sweeps.trial import Trial


class Proposals:
    """Proposals in the order in which they were made, by all processes that run the sweep.

    Args:
        searches: The searches of the sweep.
    """

    def __init__(self, searches: Sequence[Search]) -> None:
        self._searches = {search.key: search for search in searches}
        self._made: dict[str, list[tuple[Coordinates, str]]] = {key: [] for key in self._searches}
        self._outcomes: dict[str, Outcome] = {}
        self._closed: set[Objective] = set()

    def hear(self, event: dict[str, Any]) -> Trial | None:
        """Take an event of the journal, and return the trial that it proposes, if it is one of these searches.

        Raises:
            UserError: If the proposal is damaged.
        """
        search = self._searches.get(str(event.get("search"))) if event["event"] == "proposed" else None
        if search is None:
            return None
        coordinates = event.get("coordinates")
        trial = search.trial(coordinates if isinstance(coordinates, dict) else {})
        self._made[search.key].append((dict(coordinates or {}), trial.id))
        return trial

    @property
    def is_any(self) -> bool:
        """Whether a file of the sweep proposes its trials by a search."""
        return bool(self._searches)

    def open(self) -> Iterator[Search]:
        """Yield the searches that make another proposal."""
        for key, search in self._searches.items():
            if search.objective not in self._closed and len(self._made[key]) < search.num_proposals:
                yield search

    @property
    def num_left(self) -> int:
        """Number of proposals that will still be made."""
        return sum(search.num_proposals - len(self._made[search.key]) for search in self.open())

    def close(self, objective: Objective) -> None:
        """Make no more proposals for an objective."""
        self._closed.add(objective)

    def record(self, trial: Trial, value: float | None, stopped: Iterable[float] = ()) -> None:
        """Record the value of the metric of a trial that ended; None if it failed or was stopped early.

        Args:
            trial: The trial.
            value: The value of its metric.
            stopped: The losses of its evaluations during training, if it was stopped early.
        """
        losses = tuple(stopped)
        if trial.objective is not None:
            loss = None if value is None else trial.objective.loss(value)
            self._outcomes[trial.id] = Outcome(loss, loss is None and not losses, losses)

    def propose(self, search: Search) -> tuple[dict[str, Any], Trial]:
        """Return the fields of the event of the next proposal of a search, and its trial."""
        made = self._made[search.key]
        known = [(coordinates, self._outcomes.get(trial, Outcome())) for coordinates, trial in made]
        coordinates = search.propose(known)
        fields = {"search": search.key, "number": len(made), "coordinates": coordinates}
        return fields, search.trial(coordinates)
