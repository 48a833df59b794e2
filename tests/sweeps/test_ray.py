"""Tasks on a local Ray cluster share a sweep and, if a node is lost, end with the table of one process."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_gen.cli.main import main
from lit_gen.core.errors import UserError
from lit_gen.sweeps.journal import read_journal
from lit_gen.sweeps.launchers import make_launcher
from tests.conftest import ROOT
from tests.sweeps.test_launchers import sweep_file

ray = pytest.importorskip("ray", reason="needs Ray: pip install 'lit_gen[ray]'")
pytestmark = [pytest.mark.slow, pytest.mark.exhaustive]

SEEDS = list(range(6))


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head without processors, on which no trial runs, and two nodes with one each."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 80_000_000})
    yield made
    made.shutdown()


def six_trials(folder: Path) -> Path:
    """Six training runs of a second or more."""
    path = sweep_file(folder)
    config = yaml.safe_load(path.read_text())
    del config["parameters"]["evaluation.seed"]
    config["parameters"] |= {"seed_everything": {"values": SEEDS}, "budget.num_images": {"value": 3200}}
    path.write_text(yaml.safe_dump(config))
    return path


def events(root: Path) -> list[dict]:
    path = root / "sweeps" / "tiny" / "journal.jsonl"
    return read_journal(path) if path.exists() else []


def scores(root: Path) -> dict[str, dict]:
    finished = {event["trial"]: event["result"] for event in events(root) if event["event"] == "finished"}
    return {trial: json.loads((root / path).read_text())["metrics"] for trial, path in finished.items()}


def running(root: Path) -> dict[str, str]:
    """Return the trial of each process that has one."""
    last = {event["by"]: event for event in events(root)}
    return {by: event["trial"] for by, event in last.items() if event["event"] == "started"}


def start(file: Path, root: Path, address: str) -> subprocess.Popen:
    words = ["sweep", str(file), "--root", str(root), "--launcher", "ray", "--nodes", "2"]
    words += ["--ray", "num_cpus=1", "--ray", f"address={address}"]
    return subprocess.Popen([sys.executable, "-m", "lit_gen", *words], stdout=subprocess.PIPE, text=True)


def wait_for(condition: Any, process: subprocess.Popen) -> None:
    until = time.monotonic() + 300
    while not condition():
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_the_trials_of_a_lost_node_are_done_again_once(tmp_path: Path, cluster: Any) -> None:
    file, root = six_trials(tmp_path), tmp_path / "ray"
    lost, _ = cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1)
    assert main(["sweep", str(file), "--root", str(tmp_path / "local")]) == 0
    process = start(file, root, cluster.address)
    wait_for(lambda: len(running(root)) == 2 and len(scores(root)) >= 1, process)
    cluster.remove_node(lost, allow_graceful=False)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    finished = Counter(event["trial"] for event in events(root) if event["event"] == "finished")
    started = Counter(event["trial"] for event in events(root) if event["event"] == "started")
    assert len(finished) == len(SEEDS) and set(finished.values()) == {1}
    assert sorted(started.values()) == [1] * (len(SEEDS) - 1) + [2]
    assert scores(root) == scores(tmp_path / "local")
    assert "VAE" in output, "the table"
    assert list((root / "sweeps" / "tiny" / "locks").iterdir()) == []
    logs = [path.read_text() for path in sorted((root / "sweeps" / "tiny" / "ray").iterdir())]
    assert len(logs) == 2 and all("sweep tiny: 6 finished, 0 failed of 6 trials" in log for log in logs)


def test_ctrl_c_stops_the_tasks(tmp_path: Path, cluster: Any) -> None:
    cluster.add_node(num_cpus=2)
    root = tmp_path / "runs"
    process = start(six_trials(tmp_path), root, cluster.address)
    wait_for(lambda: len(running(root)) == 2, process)
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=90)
    assert process.returncode not in (0, None)
    logs = [path.read_text() for path in (root / "sweeps" / "tiny" / "ray").iterdir()]
    assert all("run the rest with the same command" in log for log in logs)
    assert list((root / "sweeps" / "tiny" / "locks").iterdir()) == []


def test_what_is_wrong_is_one_line(tmp_path: Path, cluster: Any) -> None:
    for settings, message in (
        ({"num_gpus": "two"}, "--ray: num_gpus=two is not a number; give one such as num_gpus=1"),
        ({"num_cpus": "-1", "address": cluster.address}, "--ray: Ray refuses the tasks"),
        ({"address": "nowhere"}, "--launcher: no Ray cluster at nowhere"),
    ):
        with pytest.raises(UserError) as caught:
            make_launcher("ray", settings).launch(["sweep"], 1, tmp_path)
        assert str(caught.value).startswith(message) and "\n" not in str(caught.value)
