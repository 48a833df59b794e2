"""Bayesian optimization: `method: bayes` of a sweep file, by Optuna's tree-structured Parzen estimator.

Every parameter is a uniform number u, x = F^-1(u) with the distribution of the sweep file, so that a search without any
knowledge draws what `method: random` draws; only `values` without probabilities have no order and are categories:

    proposal i = TPE(seed, i, losses of proposals 0 ... i - 1)

The sampler has a seed of its own for each proposal, so proposal i depends only on the seed, i, and what was known. The
journal holds all proposals. A search that was killed reads them and resumes; with one job, which knows all losses at
each proposal, it makes the same ones. A trial that is running counts as a bad one near its parameters, so that parallel
jobs do not propose the same (a "constant liar"). A trial that failed counts as the worst so far. One that was stopped
early counts by its evaluations during training.

Bergstra et al., "Algorithms for Hyper-Parameter Optimization",
https://papers.nips.cc/paper/4443-algorithms-for-hyper-parameter-optimization
"""

import hashlib
import importlib.util
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lit_gen.core.errors import UserError
from lit_gen.sweeps.distributions import SMALLEST, Distribution
from lit_gen.sweeps.objective import Objective
from lit_gen.sweeps.search_space import Space
from lit_gen.sweeps.trial import Trial

Coordinates = dict[str, float]


@dataclass(frozen=True)
class Outcome:
    """Outcome of a proposal so far.

    Args:
        loss: The value of the metric, smaller is better; None if the trial runs or failed.
        failed: Whether the trial failed.
        stopped: The losses of its evaluations during training, if it was stopped early.
    """

    loss: float | None = None
    failed: bool = False
    stopped: Sequence[float] = ()


@dataclass(frozen=True)
class Search:
    """A sweep file whose trials are proposed one after the other.

    Args:
        file: The sweep file.
        space: Its parameters.
        objective: Its metric.
        num_proposals: Number of proposals.
        seed: Seed of the search.
        command: Arguments that all its trials share, and macros.
        make: Function from a setting of the parameters to the trial.
    """

    file: Path
    space: Space
    objective: Objective
    num_proposals: int
    seed: int
    command: Sequence[str]
    make: Callable[[dict[str, Any]], Trial]

    @property
    def key(self) -> str:
        """Name of the search in the journal: a hash of its parameters, metric, seed and command."""
        shape = [(path, each.name, each.fields) for path, each in _leaves(self.space)]
        goal = (self.objective.name, self.objective.maximize)
        return hashlib.sha256(repr((shape, goal, self.seed, list(self.command))).encode()).hexdigest()[:12]

    def check(self) -> None:
        """Raise a UserError if Optuna is not installed."""
        if importlib.util.find_spec("optuna") is None:
            raise UserError(
                f"{self.file}: method: bayes needs optuna, which is not installed; pip install 'lit_gen[sweep]'"
            )

    @property
    def middle(self) -> Coordinates:
        """The coordinates of a setting in the middle of the search space."""
        return {path: 0.5 for path, _ in _leaves(self.space)}

    def made_by(self, change: Callable[[Trial], Trial]) -> "Search":
        """Return the search with a change of each of its trials."""
        return replace(self, make=lambda setting: change(self.make(setting)))

    def trial(self, coordinates: Coordinates) -> Trial:
        """Return the trial of a proposal.

        Raises:
            UserError: If the coordinates are not those of this search.
        """
        return self.make(_setting(self.space, coordinates, ""))

    def propose(self, known: Sequence[tuple[Coordinates, Outcome]]) -> Coordinates:
        """Return the next proposal from all earlier ones."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        distributions: dict[str, Any] = {}
        for path, leaf in _leaves(self.space):
            if leaf.name == "categorical":
                distributions[path] = optuna.distributions.CategoricalDistribution(
                    list(range(len(leaf.fields["values"])))
                )
            elif leaf.name != "constant":
                distributions[path] = optuna.distributions.FloatDistribution(0.0, 1.0)
        digest = hashlib.sha256(f"{self.seed}/{len(known)}".encode()).digest()
        seed = int.from_bytes(digest[:4], "big")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of options that Optuna calls experimental
            sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)
            study = optuna.create_study(sampler=sampler)
            study.add_trials(list(self._told(known, distributions)))
            return dict(study.ask(distributions).params)

    def _told(self, known: Sequence[tuple[Coordinates, Outcome]], distributions: dict[str, Any]) -> Iterator[Any]:
        """Yield earlier proposals as trials of Optuna."""
        from optuna.trial import TrialState, create_trial

        worst: float | None = None
        for coordinates, outcome in known:
            given: dict[str, Any] = {"params": coordinates, "distributions": distributions}
            loss = worst if outcome.failed else outcome.loss
            if loss is not None and math.isfinite(loss):
                worst = loss if worst is None else max(worst, loss)
                yield create_trial(value=loss, **given)
            elif outcome.stopped:
                values = dict(enumerate(outcome.stopped))
                yield create_trial(state=TrialState.PRUNED, intermediate_values=values, **given)
            elif outcome.failed or loss is not None:
                yield create_trial(state=TrialState.FAIL, **given)
            else:
                yield create_trial(state=TrialState.RUNNING, **given)


def _leaves(space: Space, path: str = "") -> Iterator[tuple[str, Distribution]]:
    for name, child in space.items():
        if isinstance(child, dict):
            yield from _leaves(child, f"{path}{name}/")
        else:
            yield path + name, child


def _setting(space: Space, coordinates: Coordinates, path: str) -> dict[str, Any]:
    return {
        name: _setting(child, coordinates, f"{path}{name}/")
        if isinstance(child, dict)
        else _value(child, coordinates.get(path + name))
        for name, child in space.items()
    }


def _value(leaf: Distribution, coordinate: float | None) -> Any:
    if leaf.name == "constant":
        return leaf.fields["value"]
    values = leaf.fields["values"] if leaf.name == "categorical" else ()
    if isinstance(coordinate, bool) or not isinstance(coordinate, int | float):
        raise UserError(f"{leaf.where}: the journal has no coordinate of this parameter; choose another --name")
    if not 0 <= coordinate <= max(len(values) - 1, 1):
        raise UserError(f"{leaf.where}: the journal has the coordinate {coordinate:g}; choose another --name")
    if leaf.name == "categorical":
        return values[min(int(coordinate), len(values) - 1)]
    return leaf.at(min(max(coordinate, SMALLEST), 1 - SMALLEST))
