"""Launchers: jobs of a cluster share a sweep, and are queued again when they are stopped."""

import json
import signal
import sys
from pathlib import Path

import pytest
import yaml

from lit_gen.cli.main import main
from lit_gen.core.errors import UserError
from lit_gen.sweeps.journal import read_journal
from lit_gen.sweeps.launchers import make_launcher
from tests.conftest import DIGITS, TINY

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
        "--slurm: submitit refuses the jobs": ["--launcher", "slurm", "--slurm", "cluster=local", "--slurm", "cpu=2"],
    }
    for message, words in cases.items():
        assert main(["sweep", file, "--root", str(tmp_path / "runs"), *words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"lit-gen: error: {message}")
    with pytest.raises(UserError, match="--launcher: k8s is not a launcher"):
        make_launcher("k8s", {})


def test_without_submitit_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match=r"pip install 'lit_gen\[slurm\]'"):
        make_launcher("slurm", {})
