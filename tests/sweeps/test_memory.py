"""The memory limit of trials: what is counted, and what happens beyond it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lit_gen.cli.main import main
from lit_gen.core.errors import UserError
from lit_gen.sweeps import memory, run_sweep
from lit_gen.sweeps.memory import MemoryWatch
from lit_gen.sweeps.runner import command_of
from tests.sweeps.fake_sweeps import executions, sweep, worker_pids, write

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows the memory of processes")


@pytest.mark.parametrize("limit", ["4GB", "1500MB", "2GiB", "123B"])
def test_a_memory_limit_is_repeated_as_the_command_reads_it(limit: str) -> None:
    from lit_gen.cli.sweep import _bytes

    words = command_of([Path("s.yaml")], None, _bytes(limit))
    assert words == ["lit-gen", "sweep", "s.yaml", "--memory-limit", limit]
    assert _bytes("1.5GB") == _bytes("1500mb") == 15 * 10**8


@pytest.mark.parametrize("limit", ["4", "0GB", "4 GB", "GB", "4XB", "-4GB"])
def test_what_is_not_a_memory_limit_is_refused(limit: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "s.yaml", f"--memory-limit={limit}"]) == 2
    assert "is not a size such as 4GB, 512MB or 1.5GiB" in capsys.readouterr().err


def test_memory_counts_a_group_and_its_descendants_and_shared_pages_once() -> None:
    """A process with 100 MB, and a child that shares them and leaves the group."""
    program = """
import os, time
held = bytearray(os.urandom(1)) * 100_000_000
if os.fork() == 0:
    os.setsid()
    own = bytearray(os.urandom(1)) * 50_000_000
    print("ready", flush=True)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, process_group=0)
    try:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        watch = MemoryWatch()
        family = watch._family(process.pid) if watch.of(process.pid) else set()
        assert len(family) == 2 and 150e6 < watch.of(process.pid) < 190e6
    finally:
        for pid in family:
            os.kill(pid, signal.SIGKILL)
        process.communicate()
    assert MemoryWatch().of(process.pid) == 0


def test_a_system_that_hides_memory_refuses_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_PROC", tmp_path / "proc")
    with pytest.raises(UserError, match="--memory-limit: needs the /proc of Linux; remove"):
        run_sweep([tmp_path / "s.yaml"], tmp_path, memory_limit=10**9)


def test_a_process_whose_shared_pages_are_hidden_counts_with_its_resident_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "status").write_text("Name:\tpython\nVmHWM:\t 300 kB\nVmRSS:\t 200 kB\n")
    monkeypatch.setattr(memory, "_PROC", tmp_path)
    assert memory._size(7) == 200 * 1024 and memory._size(8) == 0


@pytest.mark.slow
def test_a_trial_that_uses_too_much_memory_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its process; the sweep goes on, and the trial runs again as often as after any failure."""
    monkeypatch.setattr(memory, "SECONDS_BETWEEN_LOOKS", 0.05)
    path, root = write(tmp_path, megabytes=[300, 1], held=0.5), tmp_path / "runs"
    result, output = sweep(path, root, memory_limit=200 * 10**6, retries=1)
    ((error, _),) = result.failures.values()
    assert error == "the trial used more than --memory-limit, 200MB" and len(result.results) == 1
    assert executions(root) == {"held=0.5_megabytes=300": 2, "held=0.5_megabytes=1": 1}
    assert f"failed and runs again (1 of 1): {error}" in output and " --memory-limit 200MB; finished" in output


@pytest.mark.slow
def test_memory_that_a_trial_leaves_does_not_fail_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second trial is ended for what the first one left, and runs again in a process of its own."""
    monkeypatch.setattr(memory, "SECONDS_BETWEEN_LOOKS", 0.05)
    path, root = write(tmp_path, x=[1, 2], megabytes=150, held=0.5), tmp_path / "runs"
    result, output = sweep(path, root, memory_limit=250 * 10**6)
    assert len(result.results) == 2 and len(set(worker_pids(root))) == 2
    assert "x=2  failed and runs again (1 of 1): the trial used more than --memory-limit, 250MB" in output
