"""Several processes of one sweep, retries, limits, and kills at any moment."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from lit_gen.sweeps import SweepResult, execution, load_sweep
from lit_gen.sweeps.journal import Journal, outcomes, read_journal
from lit_gen.sweeps.locks import Process, TrialLocks
from lit_gen.sweeps.queue import SharedTrials, Training
from lit_gen.sweeps.trial import Trial
from tests.sweeps.fake_sweeps import executions, sweep, write

pytestmark = pytest.mark.slow
"""End-to-end runs; the gate runs them."""

PARENT = """
import sys
from pathlib import Path
from lit_gen.sweeps import run_sweep
result = run_sweep([sys.argv[1]], Path(sys.argv[2]), jobs=2, runner="fake_run:run")
sys.exit(result.exit_status)
"""


def test_two_parents_share_the_trials_and_both_report_all(tmp_path):
    path, root = write(tmp_path, x=list(range(4)), behaviour="meets"), tmp_path / "runs"
    found: list[tuple[SweepResult, str]] = []
    parents = [threading.Thread(target=lambda: found.append(sweep(path, root))) for _ in range(2)]
    for parent in parents:
        parent.start()
    for parent in parents:
        parent.join()
    assert executions(root) == dict.fromkeys([f"behaviour=meets_x={x}" for x in range(4)], 1)
    assert found[0][0].results == found[1][0].results and len(found[0][0].results) == 4
    assert all("4 finished, 0 failed of 4 trials" in output for _, output in found)
    assert any("finished, by another process" in output for _, output in found)
    assert list((root / "sweeps" / "demo" / "locks").iterdir()) == []


def test_a_trial_that_another_process_ends_at_the_last_moment_is_reported(tmp_path, monkeypatch):
    """Between the last look at the others and the lock of the last trial."""
    path, root = write(tmp_path, x=1), tmp_path / "runs"
    claim = SharedTrials.claim

    def ended_a_moment_before(self: SharedTrials, busy: set[Training]) -> Trial | None:
        (trial,) = load_sweep([path]).trials
        Journal(root / "sweeps" / "demo" / "journal.jsonl", "other").append("finished", trial.id, result="r.json")
        monkeypatch.setattr(SharedTrials, "claim", claim)
        return claim(self, busy)

    monkeypatch.setattr(SharedTrials, "claim", ended_a_moment_before)
    result, output = sweep(path, root)
    assert list(result.results.values()) == [[root / "r.json"]] and not (root / "executions").exists()
    assert "1 finished, 0 failed of 1 trials" in output


def test_the_lock_of_a_process_that_was_killed_after_its_trial_had_finished_is_removed(tmp_path):
    path, root = write(tmp_path, x=1), tmp_path / "runs"
    sweep(path, root)
    locks = root / "sweeps" / "demo" / "locks"
    (trial,) = load_sweep([path]).trials
    of_killed = TrialLocks(locks, process=replace(Process.this(), pid=2**22 + 1, token="killed"))
    assert of_killed.acquire(trial.id)
    sweep(path, root)
    assert list(locks.iterdir()) == [] and sum(executions(root).values()) == 1


def test_a_failed_trial_runs_again_as_often_as_asked_unless_its_settings_are_at_fault(tmp_path):
    path, root = write(tmp_path, behaviour=["exception", "user-error"]), tmp_path / "runs"
    result, output = sweep(path, root, retries=2)
    assert executions(root) == {"behaviour=exception": 3, "behaviour=user-error": 1}
    assert len(result.failures) == 2 and "0 finished, 2 failed of 2" in output
    assert "exception  failed and runs again (1 of 2): ValueError: bad thing (see " in output
    assert " --retries 2; finished" in output, "the advice repeats the option"


@pytest.mark.slow
def test_a_trial_that_takes_too_long_is_ended(tmp_path):
    """After the time limit it gets a SIGINT, to save its state; the next trial gets a worker of its own."""
    path, root = write(tmp_path, sleep=[30, 0]), tmp_path / "runs"
    result, output = sweep(path, root, time_limit=1.0)
    ((error, log),) = result.failures.values()
    assert error == "the trial took longer than --time-limit, 1 s" and len(result.results) == 1
    assert "KeyboardInterrupt" in log.read_text() and " --time-limit 1s; finished" in output


@pytest.mark.slow
def test_a_silent_worker_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(execution, "SECONDS_OF_SILENCE", 1.2)
    monkeypatch.setattr(execution, "SECONDS_UNTIL_REPLACED", 1.6)
    path, root = write(tmp_path, behaviour="stops-once"), tmp_path / "runs"
    result, output = sweep(path, root)
    assert len(result.results) == 1 and executions(root) == {"behaviour=stops-once": 2}
    assert "no sign of life for" in output and "stops-once" not in result.failures
    events = read_journal(result.folder / "journal.jsonl")
    assert [event["event"] for event in events] == ["started", "failed", "started", "finished"]
    assert events[1]["again"] and "no sign of life" in events[1]["error"]


def test_the_target_of_the_metric_ends_the_sweep(tmp_path):
    """The trials have 1.25, 2.25 and so on, one more per sampling seed, and their mean."""
    path = write(tmp_path, x=[1, 2, 3], **{"evaluation.num_repeats": [5, 1]})
    metric = {"name": "fd_digits", "goal": "minimize", "target": 1.3}
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"metric": metric}, sort_keys=False))
    for _ in range(2):
        result, output = sweep(path, tmp_path / "runs")
        assert len(result.results) == 2 and result.exit_status == 0
        assert "fd_digits 1.25 reaches metric.target 1.3; no other trial is started" in output
    assert sum(executions(tmp_path / "runs").values()) == 2


def _start(path: Path, root: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", PARENT, str(path), str(root)], stdout=subprocess.PIPE, text=True)


def _finished(root: Path) -> set[str]:
    events = read_journal(root / "sweeps" / "demo" / "journal.jsonl")
    return {trial for trial, event in outcomes(events).items() if event["event"] == "finished"}


def _is_worker(pid: int) -> bool:
    """Return whether a process is a worker of a sweep, and not a later one with the id of such a worker."""
    try:
        return b"lit_gen.sweeps.workers" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
@pytest.mark.slow
def test_sigkill_at_any_moment_loses_no_finished_trial_and_repeats_none(tmp_path):
    """Of one to three parents and their workers; then two parents finish."""
    path = write(tmp_path, x=list(range(16)), sleep=0.15)
    root = tmp_path / "runs"
    rng = random.Random(0)
    counted: Counter = Counter()
    done: set[str] = set()
    for number in range(8):
        parents = [_start(path, root) for _ in range(1 + number % 3)]
        time.sleep(rng.uniform(0.2, 1.2))
        if number % 2 and (workers := sorted(filter(_is_worker, set(worker_pids_of(root))))):
            with contextlib.suppress(ProcessLookupError):
                os.kill(rng.choice(workers), signal.SIGKILL)
        for parent in parents:
            parent.kill()
            parent.wait()
        deadline = time.monotonic() + 30
        while any(map(_alive, worker_pids_of(root))) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not any(map(_alive, worker_pids_of(root)))
        assert done <= _finished(root)
        repeated = {key for key in executions(root) if executions(root)[key] > counted[key]}
        assert not repeated & {_key(root, trial) for trial in done}
        done, counted = _finished(root), executions(root)
    parents = [_start(path, root) for _ in range(2)]
    assert [parent.wait(60) for parent in parents] == [0, 0]
    assert len(_finished(root)) == 16
    assert all(executions(root)[_key(root, trial)] == counted[_key(root, trial)] for trial in done)
    events = read_journal(root / "sweeps" / "demo" / "journal.jsonl")
    finished = Counter(event["trial"] for event in events if event["event"] == "finished")
    assert set(finished.values()) == {1}
    assert list((root / "sweeps" / "demo" / "locks").iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
@pytest.mark.slow
def test_of_two_parents_one_is_killed_and_the_other_does_its_trials(tmp_path):
    """Each trial has one outcome; only those that the dead one was running are executed twice."""
    path, root = write(tmp_path, x=list(range(12)), sleep=0.5), tmp_path / "runs"
    parents = [_start(path, root) for _ in range(2)]
    deadline = time.monotonic() + 60
    while sum(executions(root).values()) < 5 and time.monotonic() < deadline:
        time.sleep(0.02)
    parents[0].kill()
    output, _ = parents[1].communicate(timeout=120)
    assert parents[1].returncode == 0 and "12 finished, 0 failed of 12 trials" in output
    events = [event for event in read_journal(root / "sweeps" / "demo" / "journal.jsonl")]
    finished = Counter(event["trial"] for event in events if event["event"] == "finished")
    assert len(finished) == 12 and set(finished.values()) == {1}
    assert len({event["by"] for event in events}) == 2
    assert 12 <= sum(executions(root).values()) <= 14
    assert list((root / "sweeps" / "demo" / "locks").iterdir()) == []


def worker_pids_of(root: Path) -> list[int]:
    pids = []
    for path in (root / "executions").glob("*"):
        text = path.read_text()
        if text:  # a kill may fall between making the file and filling it
            pids.append(json.loads(text)["pid"])
    return pids


def _key(root: Path, trial: str) -> str:
    result = outcomes(read_journal(root / "sweeps" / "demo" / "journal.jsonl"))[trial]["result"]
    return Path(result).parts[0].removeprefix("run-")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_stops_the_trials_and_says_how_to_go_on(tmp_path, number):
    path = write(tmp_path, x=[1, 2, 3], sleep=60)
    root = tmp_path / "runs"
    process = _start(path, root)
    deadline = time.monotonic() + 60
    while sum(executions(root).values()) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    again = f"with the same command: lit-gen sweep {path} --root {root} --jobs 2; finished"
    assert again in output and "0 finished, 0 failed of 3" in output
    assert not any(map(_alive, worker_pids_of(root)))
    events = read_journal(root / "sweeps" / "demo" / "journal.jsonl")
    assert [event["event"] for event in events] == ["started", "started"]
