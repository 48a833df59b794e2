import json
import os
import re
import shlex
import signal
import threading
from io import StringIO
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from lit_gen.core.errors import UserError
from lit_gen.sweeps import current_results, dry_run, execution, load_sweep, run_sweep, sweep_results
from lit_gen.sweeps.journal import outcomes, read_journal
from lit_gen.sweeps.pool import ending
from lit_gen.sweeps.runner import command_of
from tests.cli.full_disk import files_of_at_most
from tests.sweeps.fake_sweeps import RUNNER, executions, read, sweep, worker_pids, write

pytestmark = pytest.mark.slow
"""End-to-end runs; the gate runs them."""


def test_a_sweep_runs_each_trial_once_and_remembers(tmp_path):
    path = write(tmp_path, **{"model.x": [1, 2], "sleep": 0})
    root = tmp_path / "runs"
    result, output = sweep(path, root)
    assert result.exit_status == 0 and not result.failures and not result.interrupted
    assert [read(path)["metrics"]["fd_digits"] for (path,) in result.results.values()] == [1.25, 1.25]
    assert list(result.results) == [trial.id for trial in result.trials]
    assert result.folder == root / "sweeps" / "demo"
    assert (result.folder / "s.yaml").read_text() == path.read_text()
    assert sweep_results(result.folder) == result.results
    assert len(set(worker_pids(root))) == 1  # one process for both trials
    log = (result.folder / "logs" / f"{result.trials[0].id}.log").read_text()
    assert "environment demo None" in log and "from a child process" in log
    assert "[1/2] x=1  fd_digits 1.25" in output and "inception_score_std" not in output
    event = outcomes(read_journal(result.folder / "journal.jsonl"))[result.trials[0].id]
    assert event["result"] == "run-model.x=1_sleep=0/evaluations/e/result.json"

    again, output = sweep(path, root)
    assert again.results == result.results
    assert set(executions(root).values()) == {1} and "2 of them finished before" in output

    next(iter(result.results.values()))[0].unlink()
    sweep(path, root)
    assert sorted(executions(root).values()) == [1, 2]


def test_a_trial_of_several_sampling_seeds_has_as_many_results(tmp_path):
    path, root = write(tmp_path, x=1, **{"evaluation.num_repeats": 3}), tmp_path / "runs"
    result, output = sweep(path, root)
    (paths,) = result.results.values()
    assert [read(path)["metrics"]["fd_digits"] for path in paths] == [1.25, 2.25, 3.25]
    assert "fd_digits 2.25  (mean of 3 sampling seeds)" in output
    journal = result.folder / "journal.jsonl"
    (event,) = outcomes(read_journal(journal)).values()
    folder = "run-evaluation.num_repeats=3_x=1/evaluations"
    assert event["results"] == [f"{folder}/{name}/result.json" for name in ("e", "e1", "e2")]
    assert event["result"] == event["results"][0]
    assert sweep_results(result.folder) == current_results(result.folder) == result.results

    paths[2].unlink()
    assert sweep_results(result.folder) == {}
    sweep(path, root)
    assert list(executions(root).values()) == [2] and paths[2].is_file()

    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    journal.write_text("".join(json.dumps(line | {"results": 7}) + "\n" for line in lines))
    with pytest.raises(UserError, match="line 1 is damaged"):
        sweep(path, root)


def test_failures_are_reported_and_tried_again_and_the_sweep_goes_on(tmp_path):
    kinds = ["user-error", "exception", "parser", "SIGKILL", "no-result", "heal", "none"]
    path = write(tmp_path, behaviour=kinds)
    result, output = sweep(path, tmp_path / "runs")
    errors = {trial.parameters["behaviour"]: result.failures.get(trial.id, ("", None))[0] for trial in result.trials}
    assert errors["user-error"] == "model.lr must be positive"
    assert errors["exception"] == "ValueError: bad thing"
    assert errors["parser"] == "error: no such option"
    assert errors["SIGKILL"] == "the worker was ended by SIGKILL; out of memory?"
    assert "without its result" in errors["no-result"]
    assert errors["heal"] == "not healed yet"
    assert errors["none"] == ""
    assert result.exit_status == 1 and len(result.results) == 1
    for trial in result.trials:
        if trial.id in result.failures:
            error, log = result.failures[trial.id]
            assert error in output and str(log) in output and log.exists()
    text = (result.folder / "logs" / f"{result.trials[1].id}.log").read_text()
    assert "Traceback" in text and "raise ValueError" in text

    (tmp_path / "runs" / "healed").touch()
    again, _ = sweep(path, tmp_path / "runs")
    assert len(again.failures) == 5 and len(again.results) == 2
    counts = executions(tmp_path / "runs")
    assert counts["behaviour=none"] == 1 and counts["behaviour=heal"] == counts["behaviour=SIGKILL"] == 2


def test_how_a_worker_ended_is_said_by_name(tmp_path):
    errors = {
        "SIGINT": "the trial was interrupted, by SIGINT or SIGTERM",
        "SIGTERM": "the worker was ended by SIGTERM",
        "SIGSEGV": "the worker was ended by SIGSEGV",
        "hurried": "the worker was ended by SIGINT",
        "leaves": "the worker ended before its trial, with exit status 0",
        "real-time": "the worker was ended by signal 37",
    }
    result, _ = sweep(write(tmp_path, behaviour=list(errors)), tmp_path / "runs")
    said = {trial.parameters["behaviour"]: result.failures[trial.id][0] for trial in result.trials}
    assert said == errors
    assert ending(137) == "ended before its trial, with exit status 137, as a shell says of SIGKILL"


@pytest.mark.slow
def test_a_stopped_worker_is_reported_and_so_is_its_return(tmp_path, monkeypatch):
    """But not one that is busy without a word: it gives signs of life."""
    monkeypatch.setattr(execution, "SECONDS_OF_SILENCE", 2.5)
    path, output, done = write(tmp_path, behaviour=["SIGSTOP", "none"], sleep=3), StringIO(), threading.Event()

    def wake() -> None:
        while not done.wait(0.1):
            for process in re.findall(r"kill -CONT (\d+)", output.getvalue()):
                os.kill(int(process), signal.SIGCONT)

    waking = threading.Thread(target=wake)
    waking.start()
    try:
        result = run_sweep([path], tmp_path / "runs", runner=RUNNER, console=Console(file=output, width=200))
    finally:
        done.set()
        waking.join()
    assert len(result.results) == 2
    silent = re.findall(r"^(.*): process \d+ has given no sign of life for [23] s", output.getvalue(), re.MULTILINE)
    assert set(silent) == {"SIGSTOP"}
    assert output.getvalue().count("is running again") == len(silent)


def test_a_full_disk_ends_a_sweep_in_a_line_and_whole_events(tmp_path):
    path, root = write(tmp_path, x=list(range(9))), tmp_path / "runs"
    with files_of_at_most(700), pytest.raises(UserError, match="journal.jsonl: cannot be written: File too large"):
        sweep(path, root)
    (journal,) = root.rglob("journal.jsonl")
    whole = journal.read_bytes()
    assert whole.endswith(b"\n") and whole.count(b"\n") == len(read_journal(journal)) > 2
    result, _ = sweep(path, root)
    assert len(result.results) == 9 and journal.read_bytes().startswith(whole)


def test_two_jobs_share_the_queue_and_the_cores(tmp_path):
    path = write(tmp_path, x=list(range(6)), sleep=0.3)
    result, _ = sweep(path, tmp_path / "runs", jobs=2)
    assert len(result.results) == 6 and set(executions(tmp_path / "runs").values()) == {1}
    assert len(set(worker_pids(tmp_path / "runs"))) == 2
    assert "environment demo None" not in (result.folder / "logs" / f"{result.trials[0].id}.log").read_text()


def test_two_jobs_begin_with_two_trainings(tmp_path):
    path = write(tmp_path, model=["A", "B"], **{"sampler.nfe": [1, 2, 3]}, sleep=0.2)
    result, _ = sweep(path, tmp_path / "runs", jobs=2)
    events = read_journal(result.folder / "journal.jsonl")
    started = [event["arguments"][:2] for event in events if event["event"] == "started"]
    assert started[:2] == [["--model=A", "--sampler.nfe=1"], ["--model=B", "--sampler.nfe=1"]]
    assert len(started) == 6


def test_a_trial_of_several_devices_leaves_its_worker_to_no_other(tmp_path):
    path = write(tmp_path, x=[1, 2], **{"trainer.devices": 2})
    sweep(path, tmp_path / "runs")
    assert len(set(worker_pids(tmp_path / "runs"))) == 2


def test_trials_do_not_inherit_each_others_environment(tmp_path):
    path = write(tmp_path, x=[1, 2], behaviour="environment")
    result, _ = sweep(path, tmp_path / "runs")
    assert len(result.results) == 2 and len(set(worker_pids(tmp_path / "runs"))) == 1


def test_trials_look_like_the_command(tmp_path):
    path = write(tmp_path, x=1, **{"run.root": str(tmp_path / "elsewhere")})
    result, _ = sweep(path, tmp_path / "runs")
    (execution,) = (tmp_path / "elsewhere" / "executions").glob("*")
    assert read(execution)["argv"] == ["lit-gen", "run", "--x=1", f"--run.root={tmp_path / 'elsewhere'}"]
    ((found,), (given,)) = (results[result.trials[0].id] for results in (sweep_results(result.folder), result.results))
    assert found.samefile(given)


def test_an_edited_file_keeps_the_trials_it_still_shares(tmp_path):
    sweep(write(tmp_path, x=[1, 2]), tmp_path / "runs")
    result, output = sweep(write(tmp_path, x=[3, 2]), tmp_path / "runs")
    assert executions(tmp_path / "runs") == {"x=1": 1, "x=2": 1, "x=3": 1}
    assert [trial.parameters["x"] for trial in result.trials if trial.id in result.results] == [3, 2]
    assert current_results(result.folder) == result.results, "what the sweep's own report ranks"
    assert len(sweep_results(result.folder)) == 3, "the journal forgets none"


def test_a_worker_says_how_far_its_trial_is(tmp_path):
    output = StringIO()
    console = Console(file=output, force_terminal=True, width=200, color_system=None)
    result = run_sweep([write(tmp_path, x=1, steps=3)], tmp_path / "runs", runner=RUNNER, console=console)
    assert len(result.results) == 1
    assert re.search(": fake .* 10/20 5 images/s 0:02 left", output.getvalue())


def test_dry_run_lists_the_trials_and_touches_nothing(tmp_path):
    path = write(tmp_path, **{"model.x": [1, 2], "sleep": 0})
    output = StringIO()
    dry_run([path], tmp_path / "runs", console=Console(file=output, width=120))
    assert not (tmp_path / "runs").exists()
    assert "2 trials, 0 of them finished" in output.getvalue() and "sleep" not in output.getvalue()
    sweep(write(tmp_path, **{"model.x": [1], "sleep": 0}), tmp_path / "runs")
    output = StringIO()
    listed = dry_run(
        [write(tmp_path, **{"model.x": [1, 2], "sleep": 0})], tmp_path / "runs", console=Console(file=output)
    )
    assert listed.trials[1].arguments == ["--model.x=2", "--sleep=0"]
    rows = [line.split() for line in output.getvalue().splitlines()]
    assert [row[2:] for row in rows[1:3]] == [["1", "finished"], ["2", "waiting"]]


def test_bad_settings_are_refused(tmp_path):
    path = write(tmp_path, x=[1])
    with pytest.raises(UserError, match="--jobs"):
        sweep(path, tmp_path / "runs", jobs=0)
    with pytest.raises(UserError, match="--retries"):
        sweep(path, tmp_path / "runs", retries=-1)


def test_the_last_trial_has_as_many_threads_as_the_first(tmp_path, monkeypatch):
    """One that is resumed when few are left goes on with the threads it began with."""
    monkeypatch.setattr(execution, "num_cores", lambda: 12)
    path = write(tmp_path, x=[1, 2, 3])
    result, _ = sweep(path, tmp_path / "runs", jobs=4)
    first = result.trials[0].id
    result.results[first][0].unlink()
    sweep(path, tmp_path / "runs", jobs=4)
    log = (result.folder / "logs" / f"{first}.log").read_text()
    assert [line for line in log.splitlines() if line.startswith("environment")] == ["environment demo 3"] * 2


def test_the_advice_repeats_the_command_with_its_options(tmp_path):
    """Quoted for the shell; options that were left at their defaults are left out."""
    folder = tmp_path / "my sweeps"
    folder.mkdir()
    path = write(folder, x=[1, 2, 3], behaviour="user-error")
    root = tmp_path / "my runs"
    _, output = sweep(path, root, jobs=1, seed=3, count=2, name="it's mine")
    advice = next(line for line in output.splitlines() if "with the same command" in line)
    command = advice.partition("same command: ")[2].partition("; finished trials")[0]
    words = ["lit-gen", "sweep", str(path), "--root", str(root), "--seed", "3", "--count", "2", "--name", "it's mine"]
    assert shlex.split(command) == words


@pytest.mark.parametrize("limit", ["2h", "12d", "0.5s", "1d1h1m1s"])
def test_a_time_limit_is_repeated_as_the_command_reads_it(limit):
    from lit_gen.cli.sweep import _seconds

    seconds = _seconds(limit)
    words = command_of([Path("s.yaml")], seconds)
    assert words[:-1] == ["lit-gen", "sweep", "s.yaml", "--time-limit"] and _seconds(words[-1]) == seconds


def test_parameters_as_json_and_as_a_json_file(tmp_path):
    path = write(tmp_path, x=[1, 2], **{"model.y": "a"})
    command = ["lit-gen", "run", "--config", "${args_json_file}", "${args_json}"]
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"command": command}, sort_keys=False))
    root = tmp_path / "runs"
    listed = dry_run([path], root, console=Console(file=StringIO()))
    assert listed.trials[0].arguments == ["--config", "${args_json_file}", '{"x": 1, "model.y": "a"}']
    trials = [run_sweep([path], root, runner="fake_run:parameters", console=Console(file=StringIO())).trials[0]]
    (file,) = [word for word in trials[0].arguments if word.endswith(".json")]
    assert read(Path(file)) == trials[0].parameters == {"x": 1, "model.y": "a"}
    assert trials[0].id == listed.trials[0].id and len(list((root / "sweeps/demo/arguments").iterdir())) == 2
    assert sorted(read(path)["x"] for path in root.glob("read-*.json")) == [1, 2]


def tracked(folder: Path, **keys: object) -> Path:
    path = write(folder, x=[1, 2])
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | keys))
    return path


def test_a_metric_that_no_result_holds_is_said_with_those_there_are(tmp_path):
    path = tracked(tmp_path, metric={"name": "fid", "goal": "minimize"})
    result, output = sweep(path, tmp_path / "runs")
    assert not result.failures and result.exit_status == 1
    said = [line for line in output.splitlines() if line.startswith("metric.name")]
    assert [line.partition("; ")[0] for line in said] == [
        "metric.name: the first result does not hold fid",
        "metric.name: no result holds fid",
    ]
    assert all(line.endswith("name one of fd_digits, inception_score_std, nfe") for line in said)
    _, again = sweep(path, tmp_path / "runs")  # when all had finished before
    assert "metric.name: no result holds fid" in again and "the first result" not in again
    result, output = sweep(tracked(tmp_path, metric={"name": "nfe"}), tmp_path / "runs")
    assert "metric.name" not in output and result.exit_status == 0


def test_project_entity_and_description_of_a_file_are_heeded(tmp_path):
    """Trials are logged there, and known by the same ids as without."""
    plain = load_sweep([write(tmp_path, x=[1, 2])])
    path = tracked(tmp_path, project="digits", entity="team", description="What a\n  step costs")
    result, output = sweep(path, tmp_path / "runs")
    assert [trial.id for trial in result.trials] == [trial.id for trial in plain.trials]
    for trial, without in zip(result.trials, plain.trials, strict=True):
        place = ["--wandb.project=digits", "--wandb.entity=team"]
        assert trial.arguments == [*without.arguments, *place, f"--run.root={tmp_path / 'runs'}"]
    assert f"{path}: What a step costs" in output.splitlines()
    dry = StringIO()
    dry_run([path], tmp_path / "runs", console=Console(file=dry, width=200))
    assert f"{path}: What a step costs" in dry.getvalue()
