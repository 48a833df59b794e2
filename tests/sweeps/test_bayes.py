"""Bayesian optimization: proposals, their replay, and fewer trials than a random search."""

import json
import math
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from scipy import stats

from lit_gen.core.errors import UserError
from lit_gen.sweeps import dry_run, execution
from lit_gen.sweeps.bayes import Coordinates, Outcome, Search
from lit_gen.sweeps.distributions import FIELDS
from lit_gen.sweeps.journal import read_journal
from lit_gen.sweeps.proposals import Proposals
from lit_gen.sweeps.search_space import draw
from lit_gen.sweeps.spec import load_sweep
from tests.sweeps.fake_sweeps import executions, sweep

pytest.importorskip("optuna", reason="needs the extra sweep")

ALL: dict[str, dict[str, Any]] = {
    "constant": {"value": [1, "x"]},
    "categorical": {"values": ["a", None, {"b": 1}]},
    "categorical_w_probabilities": {"values": [1, 2, 3], "probabilities": [0.5, 0.0, 0.5]},
    "int_uniform": {"min": -3, "max": 4},
    "uniform": {"min": 0.5, "max": 2.5},
    "q_uniform": {"min": 0.0, "max": 10.0, "q": 2.5},
    "log_uniform": {"min": -3.0, "max": 2.0},
    "q_log_uniform": {"min": 0.0, "max": 3.0},
    "inv_log_uniform": {"min": -3.0, "max": 2.0},
    "log_uniform_values": {"min": 1e-5, "max": 1e-1},
    "q_log_uniform_values": {"min": 1.0, "max": 100.0, "q": 4},
    "inv_log_uniform_values": {"min": 1e-5, "max": 1e-1},
    "normal": {"mu": 3, "sigma": 2},
    "q_normal": {"mu": 3, "sigma": 20},
    "log_normal": {"mu": 0, "sigma": 1},
    "q_log_normal": {"mu": 2, "sigma": 1},
    "beta": {"a": 2, "b": 5},
    "q_beta": {"a": 2, "b": 5, "q": 0.25},
}
PLANE = {"x": {"min": -5.0, "max": 5.0}, "y": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1.0}}


def write(folder: Path, parameters: dict[str, Any] = PLANE, **keys: Any) -> Path:
    path = folder / "s.yaml"
    metric = {"name": "fd_digits", "goal": "minimize"}
    config = {"name": "demo", "method": "bayes", "metric": metric, "run_cap": 12, **keys, "parameters": parameters}
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def search_of(folder: Path, seed: int = 0, **keys: Any) -> Search:
    (search,) = load_sweep([write(folder, **keys)], seed).searches
    return search


def test_every_distribution_is_searched_within_its_bounds(tmp_path: Path) -> None:
    entries = {name: {"distribution": name, **fields} for name, fields in ALL.items()}
    assert ALL.keys() == FIELDS.keys()
    search = search_of(tmp_path, parameters={**entries, "outer": {"parameters": {"inner": entries["uniform"]}}})
    known: list[tuple[Coordinates, Outcome]] = []
    for number in range(14):  # ten at random, then by the estimator
        known.append((search.propose(known), Outcome(float(number % 3))))
    settings = [search.trial(coordinates).parameters for coordinates, _ in known]
    for setting in settings:
        assert setting["constant"] == [1, "x"] and setting["categorical"] in ["a", None, {"b": 1}]
        assert setting["categorical_w_probabilities"] in (1, 3), "never one of probability zero"
        assert setting["int_uniform"] in range(-3, 5) and setting["q_uniform"] in (0, 2.5, 5, 7.5, 10)
        assert 0.5 <= setting["uniform"] <= 2.5 and 0.5 <= setting["outer"]["inner"] <= 2.5
        assert 1e-5 <= setting["log_uniform_values"] <= 1e-1 and setting["q_log_uniform_values"] % 4 == 0
        assert 0 < setting["beta"] < 1 and setting["q_beta"] in (0, 0.25, 0.5, 0.75, 1)
        assert all(math.isfinite(value) for value in setting.values() if isinstance(value, float))
    assert len({repr(setting) for setting in settings}) == 14


def test_files_that_differ_in_their_commands_are_searched_each(tmp_path: Path) -> None:
    paths = [tmp_path / name / "s.yaml" for name in ("a", "b")]
    for path in paths:
        path.parent.mkdir()
        write(path.parent, command=["run", f"--config={path.parent.name}", "${args}"])
    assert Proposals(load_sweep(paths).searches).num_left == 24
    assert Proposals(load_sweep([paths[0], paths[0]]).searches).num_left == 12, "one file, given twice"


@pytest.mark.parametrize("coordinate", [7.0, -0.1, math.nan, math.inf, True, "0.5"])
def test_a_coordinate_of_a_damaged_journal_is_refused(tmp_path: Path, coordinate: Any) -> None:
    with pytest.raises(UserError, match="parameters.x: the journal has"):
        search_of(tmp_path).trial({"x": coordinate, "y": 0.5})
    with pytest.raises(UserError, match="parameters.x: the journal has"):
        search_of(tmp_path, parameters={"x": {"values": ["a", "b"]}}).trial({"x": coordinate})


def test_proposals_depend_on_seed_and_outcomes_alone(tmp_path: Path) -> None:
    def first(search: Search, number: int, known: list[tuple[Coordinates, Outcome]]) -> list[Coordinates]:
        known = list(known)
        for _ in range(number):
            coordinates = search.propose(known)
            known.append((coordinates, Outcome(sum(coordinates.values()))))
        return [coordinates for coordinates, _ in known]

    search, again, other = search_of(tmp_path), search_of(tmp_path), search_of(tmp_path, seed=1)
    whole = first(search, 13, [])
    assert first(again, 13, []) == whole != first(other, 13, [])
    told = [(coordinates, Outcome(sum(coordinates.values()))) for coordinates in whole[:7]]
    assert first(again, 6, told) == whole, "after a kill"
    assert search.key == again.key != other.key
    known = [(coordinates, Outcome(sum(coordinates.values()))) for coordinates in whole]
    assert search.propose(known) != search.propose([*known[:-1], (known[-1][0], Outcome())]), "one that is running"
    failed = search.propose([*known[:-1], (known[-1][0], Outcome(failed=True))])
    assert failed == search.propose(
        [*known[:-1], (known[-1][0], Outcome(max(map(sum, [c.values() for c in whole[:-1]]))))]
    )
    search.propose([*known[:-1], (known[-1][0], Outcome(stopped=[3.0, 2.0]))])
    search.propose([(known[0][0], Outcome(failed=True))])


@pytest.mark.slow
def test_a_sweep_that_was_killed_makes_the_same_proposals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Undisturbed, and ended after each third trial; the values are functions of the parameters."""
    path = write(tmp_path, {**PLANE, "square": {"value": 1}})
    whole, output = sweep(path, tmp_path / "whole")
    assert len(whole.results) == 12 and "[12/12]" in output and "12 finished, 0 failed of 12 trials" in output
    parameters = [trial.parameters for trial in whole.trials]
    start = execution.SweepProgress.started

    def ends_in_the_third(self: Any, trial: Any) -> None:
        start(self, trial)
        self.number = getattr(self, "number", 0) + 1
        if self.number == 3:
            raise RuntimeError("killed")

    monkeypatch.setattr(execution.SweepProgress, "started", ends_in_the_third)
    for _ in range(2):
        with pytest.raises(RuntimeError):
            sweep(path, tmp_path / "killed")
    monkeypatch.setattr(execution.SweepProgress, "started", start)
    result, _ = sweep(path, tmp_path / "killed")
    assert [trial.parameters for trial in result.trials] == parameters and list(result.results) == list(whole.results)
    assert set(executions(tmp_path / "killed").values()) == {1}
    listed = dry_run([path], tmp_path / "killed")
    assert [trial.parameters for trial in listed.trials] == parameters
    assert json.loads((result.folder / "trials.json").read_text()) == list(result.results)


@pytest.mark.slow
def test_parallel_jobs_and_a_target(tmp_path: Path) -> None:
    """Two jobs share the proposals, and the search ends at its target: the values are x squared and more."""
    metric = {"name": "fd_digits", "goal": "maximize", "target": 20}
    path = write(tmp_path, {**PLANE, "square": {"value": 1}}, metric=metric, run_cap=30)
    result, output = sweep(path, tmp_path / "runs", jobs=2)
    assert "reaches metric.target 20; no other trial is started" in output and result.exit_status == 0
    assert 1 <= len(result.results) < 30
    events = [event for event in read_journal(result.folder / "journal.jsonl") if event["event"] == "proposed"]
    assert [event["number"] for event in events] == list(range(len(events))) and len(events) == len(result.trials)


def test_a_setting_that_is_proposed_again_is_not_run_again(tmp_path: Path) -> None:
    path = write(tmp_path, {"square": {"values": [1, 2]}, "x": {"value": 3}}, run_cap=4)
    result, output = sweep(path, tmp_path / "runs")
    assert len(result.results) == 2 and set(executions(tmp_path / "runs").values()) == {1}
    events = [event for event in read_journal(result.folder / "journal.jsonl") if event["event"] == "proposed"]
    assert len(events) == 4 and "2 finished, 0 failed of 2 trials" in output


@pytest.mark.slow
def test_failed_and_unscored_trials(tmp_path: Path) -> None:
    path = write(tmp_path, {"x": {"min": 0.0, "max": 1.0}, "behaviour": {"value": "exception"}}, run_cap=3)
    result, _ = sweep(path, tmp_path / "runs")
    assert len(result.failures) == 3
    path = write(tmp_path, metric={"name": "fid"}, name="unscored")
    result, output = sweep(path, tmp_path / "runs")
    assert len(result.results) == 1 and result.exit_status == 1, "there is nothing to search by"
    assert "metric.name: no result holds fid" in output


def test_bad_searches_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for keys, words in (
        ({"run_cap": None}, "bayes needs an end; set run_cap"),
        ({"metric": {"name": "fd", "impute": "best"}}, "metric.impute"),
        ({"metric": {"name": "fd", "target": "low"}}, "metric.target"),
        ({"parameters": {"x": {"min": 0, "max": 900.0, "distribution": "log_normal"}}}, "log_normal takes"),
    ):
        with pytest.raises(UserError, match=words):
            load_sweep([write(tmp_path, **keys)])
    path = write(tmp_path)
    path.write_text(yaml.safe_dump({k: v for k, v in yaml.safe_load(path.read_text()).items() if k != "metric"}))
    with pytest.raises(UserError, match="bayes needs a metric"):
        load_sweep([path])
    search = search_of(tmp_path)
    with pytest.raises(UserError, match="no coordinate of this parameter"):
        Proposals([search]).hear({"event": "proposed", "trial": "t", "search": search.key, "coordinates": {"x": 0.5}})
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"pip install 'lit_gen\[sweep\]'"):
        sweep(write(tmp_path), tmp_path / "runs")


@pytest.mark.slow
def test_fewer_trials_than_a_random_search(tmp_path: Path) -> None:
    """Trials until a value within 2 % of a known optimum, of 20 seeds each; a sign test."""

    def value(parameters: dict[str, Any]) -> float:
        return ((parameters["x"] - 1.7) / 5) ** 2 + (math.log10(parameters["y"] / 0.01) / 2) ** 2

    def num_trials(settings: Any) -> int:
        return next((number for number, setting in enumerate(settings, start=1) if value(setting) < 0.004), 61)

    def proposed(search: Search) -> Any:
        known: list[tuple[Coordinates, Outcome]] = []
        for _ in range(60):
            coordinates = search.propose(known)
            parameters = search.trial(coordinates).parameters
            known.append((coordinates, Outcome(value(parameters))))
            yield parameters

    signs: Counter[bool] = Counter()
    for seed in range(20):
        search = search_of(tmp_path, seed)
        ours = num_trials(proposed(search))
        theirs = num_trials(draw(search.space, f"{seed}/{index}") for index in range(60))
        if ours != theirs:
            signs[ours < theirs] += 1
    assert stats.binomtest(signs[True], sum(signs.values()), alternative="greater").pvalue < 0.01, signs
