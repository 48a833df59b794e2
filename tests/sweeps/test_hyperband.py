"""Trials that are stopped early: the rule, the settings, and trials of a stand-in that logs scores."""

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console

from lit_gen.core.errors import UserError
from lit_gen.sweeps import dry_run, run_sweep
from lit_gen.sweeps.hyperband import Hyperband, parse_early_terminate
from lit_gen.sweeps.journal import read_journal
from lit_gen.sweeps.judge import Judge
from lit_gen.sweeps.objective import Objective
from lit_gen.sweeps.spec import load_sweep
from lit_gen.sweeps.trial import Trial
from lit_gen.sweeps.workers import _Answers, _Judged
from tests.conftest import arguments
from tests.sweeps.fake_sweeps import executions, sweep

HERE = Path("s.yaml")


def rule(**settings: Any) -> Hyperband:
    config = {"early_terminate": {"type": "hyperband", **settings}, "metric": {"name": "fd"}}
    found = parse_early_terminate(config, HERE)
    assert found is not None
    return found


def test_brackets_are_those_of_the_documentation_of_weights_and_biases() -> None:
    assert rule(min_iter=3).brackets[:4] == (3, 9, 27, 81)
    assert rule(max_iter=27, s=2).brackets == (3, 9)
    assert rule(max_iter=9, s=5, eta=3).brackets == (1, 3), "none below one"
    assert rule(min_iter=1, eta=1.5).brackets[:5] == (1, 2, 3, 5, 7)
    assert len(rule(min_iter=10**9).brackets) == 1


def test_about_the_best_in_eta_go_on() -> None:
    """Of n values number floor(n / eta), from 0, is the last to go on: W&B's own rule."""
    losses = [float(n) for n in range(9)]
    stopped = [
        rule(min_iter=1).verdict([loss], [[other] for other in losses if other != loss]) is not None for loss in losses
    ]
    assert stopped == [False] * 4 + [True] * 5
    assert rule(min_iter=1).verdict([5.0], []) is None, "the only one"
    assert rule(min_iter=1).verdict([5.0], [[5.0], [5.0], [6.0]]) is None, "a tie"
    assert rule(min_iter=2).verdict([9.0], [[1.0, 1.0]] * 9) is None, "before the first bracket"
    assert rule(min_iter=2).verdict([0.0, 9.0], [[1.0, 1.0]] * 9) is not None
    assert rule(min_iter=2, strict=False).verdict([0.0, 9.0], [[1.0, 1.0]] * 9) is None, "its best so far is better"
    assert rule(min_iter=2).verdict([9.0, 2.0, 9.0], [[1.0, 1.0]]) == (
        "number 2 of 2 at evaluation 2, not among the best 1/3"
    )
    assert rule(min_iter=1).verdict([float("inf")], [[1.0]]) is not None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"min_iter": 0}, "early_terminate.min_iter"),
        ({"max_iter": 9}, "early_terminate.s"),
        ({"max_iter": 2.5, "s": 1}, "early_terminate.max_iter"),
        ({"max_iter": 2, "s": 3}, "no bracket"),
        ({"min_iter": 1, "eta": 1}, "early_terminate.eta"),
        ({"min_iter": 1, "strict": "yes"}, "early_terminate.strict"),
        ({"min_iter": 1, "maxiter": 3}, "unknown key 'maxiter'"),
        ({}, "neither min_iter nor max_iter"),
        ({"type": "median", "min_iter": 1}, "type: hyperband"),
    ],
)
def test_settings_that_do_not_follow_the_schema_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        rule(**settings)


def test_the_judge_repeats_no_evaluation_and_knows_the_direction() -> None:
    objective = Objective("score", maximize=True)
    trials = [Trial(name, {}, [f"--x={name}"], objective, rule(min_iter=2)) for name in "abcd"]
    judge = Judge(trials)
    for name, values in {"a": [1, 9], "b": [1, 8], "c": [1, 7]}.items():
        for number, value in enumerate(values):
            judge.hear({"event": "scored", "trial": name, "images": number, "value": value})
    judge.hear({"event": "scored", "trial": "c", "images": 0, "value": 1})  # again, after a kill
    judge.hear({"event": "scored", "trial": "of an older file", "images": 0, "value": 99})
    judge.hear({"event": "scored", "trial": "b", "images": "?", "value": 1})
    assert judge.losses(trials[2]) == [-1, -7]
    assert [judge.verdict(trial) is not None for trial in trials] == [False, False, True, False]
    judge.hear({"event": "stopped", "trial": "c", "reason": "slow"})
    evaluates_more = Trial("e", {}, ["--x=c", "--sampler=Heun"], objective, rule(min_iter=2))
    assert judge.already_stopped(evaluates_more) == "slow" and judge.already_stopped(trials[0]) is None


def write(folder: Path, parameters: dict[str, Any], metric: str = "fd_digits", **keys: Any) -> Path:
    path = folder / "s.yaml"
    stop = {"type": "hyperband", "min_iter": 1, "eta": 2}
    config = {"name": "demo", "method": "grid", "metric": {"name": metric}, "early_terminate": stop, **keys}
    path.write_text(yaml.safe_dump(config | {"parameters": parameters}, sort_keys=False))
    return path


def test_trials_are_stopped_recorded_and_not_run_again(tmp_path: Path) -> None:
    """The stand-in logs its value three times, so all that are worse than the best half end after the first."""
    path = write(tmp_path, {"scores": {"values": [3, 1, 4, 2, 5]}, "sampler": {"values": ["A", "B"]}})
    result, output = sweep(path, tmp_path / "runs")
    values = {trial.id: (trial.parameters["scores"], trial.parameters["sampler"]) for trial in result.trials}
    assert {values[trial] for trial in result.results} == {(x, s) for x in (3, 1, 2) for s in "AB"}
    assert {values[trial] for trial in result.stopped} == {(x, s) for x in (4, 5) for s in "AB"}
    assert result.exit_status == 0 and not result.failures
    assert sum(executions(tmp_path / "runs").values()) == 8, "a stopped training run is not trained for another sampler"
    assert "6 finished, 4 stopped early, 0 failed of 10 trials" in output
    events = [event for event in read_journal(result.folder / "journal.jsonl") if event["event"] == "stopped"]
    assert events[0]["reason"] == "number 5 of 5 at evaluation 1, not among the best 1/2"
    assert events[0]["num_evaluations"] == 1 and events[1]["reason"].startswith("the same training run: number 5 of 5")
    assert len(list((tmp_path / "runs" / "workers").iterdir())) == 1, "the worker goes on with the next trial"
    again, output = sweep(path, tmp_path / "runs")
    assert again.stopped == result.stopped and "4 stopped early before" in output
    assert sum(executions(tmp_path / "runs").values()) == 8
    listed = StringIO()
    dry_run([path], tmp_path / "runs", console=Console(file=listed, width=120))
    assert listed.getvalue().count("stopped early") == 4
    path.write_text(
        yaml.safe_dump({k: v for k, v in yaml.safe_load(path.read_text()).items() if k != "early_terminate"})
    )
    whole, _ = sweep(path, tmp_path / "runs")
    assert len(whole.results) == 10 and not whole.stopped, "without the key they run to their end"


def test_a_metric_that_is_not_logged_during_training_is_refused() -> None:
    judged = _Judged("trial", "fid", None, _Answers(-1))
    with pytest.raises(UserError, match="early_terminate compares trials by fid, .* name one of fd_digits, recall"):
        judged.expect(["fd_digits", "recall"])
    with pytest.raises(UserError, match="set monitor.every"):
        judged.expect([])
    assert not judged.hear(100, {"fd_digits": 1.0}) and judged.reason is None, "a score that is not defined"


def test_a_sweep_without_evaluations_during_training_is_refused(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(json.dumps({"model": "EDM"}))
    path = write(tmp_path, {"config": {"value": str(config)}})
    with pytest.raises(UserError, match="c.yaml has no evaluations during training .* monitor.every"):
        load_sweep([path])
    load_sweep([write(tmp_path, {"config": {"value": str(config)}, "monitor.every": {"value": 100}})])
    config.write_text(json.dumps({"monitor": {"every": 64}}))
    load_sweep([path])
    with pytest.raises(UserError, match="no evaluations"):
        load_sweep([write(tmp_path, {"config": {"value": str(config)}, "monitor.every": {"value": 0}})])
    with pytest.raises(UserError, match="early_terminate: needs a metric"):
        path.write_text(yaml.safe_dump({k: v for k, v in yaml.safe_load(path.read_text()).items() if k != "metric"}))
        load_sweep([path])


@pytest.mark.slow
def test_a_training_that_is_stopped_keeps_its_checkpoint(tmp_path: Path) -> None:
    """Two learning rates of EDM on digits, of which one learns nothing; then one whose metric nobody logs."""
    monitor = ["--monitor.every=64", "--monitor.num_samples=16", "--monitor.sampler=Euler", "--monitor.sampler.steps=2"]
    words = arguments("EDM", tmp_path / "runs", 64 * 2, *monitor, "--sampler=Euler", "--sampler.steps=2")
    path = tmp_path / "s.yaml"
    config: dict[str, Any] = {"method": "grid", "metric": {"name": "fd_digits"}, "command": ["run", *words, "${args}"]}
    config["parameters"] = {"model.optimizer.lr": {"values": [3.0e-3, 1.0e-12]}}
    config["early_terminate"] = {"type": "hyperband", "min_iter": 1, "eta": 3}
    path.write_text(yaml.safe_dump(config))
    result = run_sweep([path], tmp_path / "runs", console=Console(file=StringIO()))
    learns, stands_still = result.trials
    assert not result.failures and list(result.results) == [learns.id] and list(result.stopped) == [stands_still.id]
    assert result.stopped[stands_still.id] == "number 2 of 2 at evaluation 1, not among the best 1/3"
    status = {json.loads(file.read_text())["status"]: file.parent for file in (tmp_path / "runs").glob("*/run.json")}
    assert sorted(status) == ["finished", "training"]
    checkpoint = torch.load(status["training"] / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["images_seen"] == 64, "right after the evaluation that stopped it"
    config["parameters"] = {"monitor.every": {"value": 0}}
    path.write_text(yaml.safe_dump(config))
    ((error, _),) = run_sweep([path], tmp_path / "runs", console=Console(file=StringIO())).failures.values()
    assert error.startswith("metric.name: early_terminate compares") and "set monitor.every" in error
