"""Launchers: jobs of a cluster share a sweep, and are queued again when they are stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from lit_gen.cli.main import main
from lit_gen.core.errors import UserError
from lit_gen.sweeps.journal import read_journal
from lit_gen.sweeps.launchers import make_launcher
from lit_gen.sweeps.locks import start_of
from tests.conftest import DIGITS, ROOT, TINY

pytest.importorskip("submitit")


def sweep_file(folder: Path) -> Path:
    words = [word for word in (*TINY["VAE"], *DIGITS) if not word.startswith("--wandb")]
    parameters: dict[str, dict] = {}
    for word in words:
        key, _, value = word.removeprefix("--").partition("=")
        parameters[key] = {"value": yaml.safe_load(value)}
    parameters |= {
        "budget.num_images": {"value": 128},
        "evaluation.metrics": {"value": "[FrechetDistance]"},
        "wandb.mode": {"value": "disabled"},
        "evaluation.seed": {"values": [0, 1]},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({"name": "tiny", "method": "grid", "parameters": parameters}))
    return path


@pytest.mark.slow
@pytest.mark.exhaustive
def test_two_jobs_share_a_sweep_and_end_with_the_table_of_one(tmp_path: Path) -> None:
    file = str(sweep_file(tmp_path))
    assert main(["sweep", file, "--root", str(tmp_path / "one")]) == 0
    jobs = ["--launcher", "slurm", "--nodes", "2", "--slurm", "cluster=local", "--slurm", "timeout_min=10"]
    assert main(["sweep", file, "--root", str(tmp_path / "two"), *jobs]) == 0
    scores = []
    for root in ("one", "two"):
        folder = tmp_path / root / "sweeps" / "tiny"
        finished = [event for event in read_journal(folder / "journal.jsonl") if event["event"] == "finished"]
        assert len({event["trial"] for event in finished}) == len(finished) == 2
        results = sorted((tmp_path / root).rglob("result.json"))
        scores.append({path.parent.name: json.loads(path.read_text())["metrics"] for path in results})
        assert (folder / "leaderboard.md").is_file()
    assert scores[0] == scores[1]
    logs = "".join(path.read_text() for path in (tmp_path / "two" / "sweeps" / "tiny" / "slurm").glob("*.out"))
    assert logs.count("sweep tiny: 2 finished, 0 failed of 2 trials") == 2, "both jobs wait for all trials"


def test_a_job_that_is_stopped_ends_its_command_and_is_queued_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lit_gen.sweeps.launchers import slurm

    program = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)); time.sleep(60)"
    monkeypatch.chdir(tmp_path)
    share = slurm.Share(["sweep", "a.yaml"])
    share._process = slurm.subprocess.Popen([sys.executable, "-c", program])
    again = share.checkpoint()
    assert share._process.returncode in (143, -signal.SIGTERM)
    (other,) = (again.function,)
    assert (other.words, other.folder, other._process) == (["sweep", "a.yaml"], str(tmp_path), None)


def test_a_signal_in_the_middle_of_the_command_stops_it_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Submitit calls `checkpoint` in a signal handler, while the job waits for its command."""
    from lit_gen.sweeps.launchers import slurm

    program, start = (
        "import sys, time; sys.stdout.write('x'); sys.stdout.flush(); time.sleep(60)",
        slurm.subprocess.Popen,
    )
    share = slurm.Share([])

    def begin(*_: object, **__: object) -> object:
        process = start([sys.executable, "-S", "-c", program], stdout=slurm.subprocess.PIPE)
        assert process.stdout is not None and process.stdout.read(1) == b"x"
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        return process

    monkeypatch.setattr(slurm.subprocess, "Popen", begin)
    monkeypatch.setattr(slurm, "SECONDS_TO_SAVE", 5.0)
    statuses = []

    def stop(*_: object) -> None:
        share.checkpoint()
        assert share._process is not None
        statuses.append(share._process.returncode)

    before = signal.signal(signal.SIGALRM, stop)
    try:
        assert share() == 128 + signal.SIGTERM, "as in a shell, and above the 0 of another job"
    finally:
        signal.signal(signal.SIGALRM, before)
    assert statuses == [-signal.SIGTERM], "it has ended by itself, and was not killed"


def test_what_is_wrong_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(sweep_file(tmp_path))
    cases = {
        "--nodes: 0 is not a positive number": ["--launcher", "slurm", "--nodes", "0"],
        "--nodes: needs a launcher": ["--nodes", "2"],
        "--slurm: a parameter is not KEY=VALUE": ["--launcher", "slurm", "--slurm", "partition"],
        "--ray: has no effect on --launcher slurm": ["--launcher", "slurm", "--ray", "num_cpus=1"],
        "--slurm: submitit refuses the jobs": ["--launcher", "slurm", "--slurm", "cluster=local", "--slurm", "cpu=2"],
    }
    for message, words in cases.items():
        assert main(["sweep", file, "--root", str(tmp_path / "runs"), *words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"lit-gen: error: {message}")
    with pytest.raises(UserError, match="--launcher: k8s is not a launcher"):
        make_launcher("k8s", {})


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'lit_gen\[ray\]'"):
        make_launcher("ray", {})


def test_the_task_of_a_node_is_the_command_with_its_output_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And with its exit status, or 128 and more for a signal; when the task is cancelled, the command stops first."""
    from lit_gen.sweeps.launchers import ray

    program = tmp_path / "command"
    monkeypatch.setattr(ray.sys, "executable", str(program))
    log = tmp_path / "ray" / "0.log"
    program.write_text('#!/bin/sh\npwd\nshift 3\necho "$@"\nexit 3\n')
    program.chmod(0o755)
    assert ray.run_share(["sweep", "a.yaml"], str(tmp_path), str(log)) == 3
    assert log.read_text() == f"{tmp_path}\nlit_gen sweep a.yaml\n"
    program.write_text("#!/bin/sh\nkill -9 $$\n")
    assert ray.run_share(["sweep"], str(tmp_path), str(log)) == 128 + 9
    program.write_text("#!/bin/sh\ntrap 'echo saved; exit 0' TERM\necho waiting\nwhile :; do sleep 0.01; done\n")

    def cancelled(_: float) -> None:
        if "waiting" in log.read_text():
            monkeypatch.undo()
            raise KeyboardInterrupt

    monkeypatch.setattr(ray.time, "sleep", cancelled)
    with pytest.raises(KeyboardInterrupt):
        ray.run_share(["sweep"], str(tmp_path), str(log))
    assert log.read_text().endswith("waiting\nsaved\n")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_a_command_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    program = "import os, sys, time; print(os.getpid(), *sys.argv[1:], flush=True); time.sleep(60)"
    (tmp_path / "lasting.py").write_text(program)
    words = "[sys.executable, '-m', 'lit_gen.sweeps.lifeline', str(os.getpid()), 'lasting', 'a', 'b']"
    parent = f"import os, subprocess, sys; subprocess.Popen({words}); sys.stdin.read()"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", parent], env=environment, **pipes)  # type: ignore[call-overload]
    pid, *rest = process.stdout.readline().split()
    assert rest == [b"a", b"b"] and start_of(int(pid)) is not None
    process.kill()
    process.communicate()  # which waits until nobody has its output, a moment before its end
    until = time.monotonic() + 10
    while start_of(int(pid)) is not None:
        assert time.monotonic() < until
    gone = [sys.executable, "-m", "lit_gen.sweeps.lifeline", "1", "lasting"]
    done = subprocess.run(gone, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "is gone" in done.stderr and not done.stdout


def test_without_submitit_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match=r"pip install 'lit_gen\[slurm\]'"):
        make_launcher("slurm", {})
