"""A sweep of 40 real trials, killed at 20 random moments, ends with the undisturbed table and each trial once."""

import contextlib
import csv
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from lit_gen.sweeps import load_sweep
from lit_gen.sweeps.journal import read_journal
from tests.conftest import DIGITS, ROOT, TINY

pytestmark = [
    pytest.mark.slow,
    pytest.mark.exhaustive,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent"),
]

NUM_TRIALS, NUM_MOMENTS = 40, 20
TRAINING_SEEDS, LATENT_DIMS, SEEDS = list(range(10)), [2, 4], [0, 1]
"""Twenty training runs, each of which two trials share."""
MEASURED = ("images_per_second",)
"""Columns of the table that no two runs share."""


def sweep_file(folder: Path) -> Path:
    words = [word for word in (*TINY["VAE"], *DIGITS) if not word.startswith(("--model.latent_dim", "--wandb"))]
    parameters: dict[str, dict] = {}
    for word in words:
        key, _, value = word.removeprefix("--").partition("=")
        parameters[key] = {"value": yaml.safe_load(value)}
    parameters |= {
        "budget.num_images": {"value": 640},
        "evaluation.metrics": {"value": "[FrechetDistance]"},
        "wandb.mode": {"value": "disabled"},
        "seed_everything": {"values": TRAINING_SEEDS},
        "model.latent_dim": {"values": LATENT_DIMS},
        "evaluation.seed": {"values": SEEDS},
    }
    path = folder / "killed.yaml"
    path.write_text(yaml.safe_dump({"name": "killed", "method": "grid", "parameters": parameters}))
    return path


@dataclass
class Sweep:
    """A sweep that several processes run."""

    file: Path
    root: Path
    parents: list[subprocess.Popen] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return self.root / "sweeps" / "killed"

    @property
    def events(self) -> list[dict]:
        path = self.folder / "journal.jsonl"
        return read_journal(path) if path.exists() else []

    @property
    def num_finished(self) -> int:
        return len({event["trial"] for event in self.events if event["event"] == "finished"})

    def start(self) -> None:
        command = ["sweep", str(self.file), "--root", str(self.root), "--jobs", "2"]
        with (self.root.parent / f"{self.root.name}-output.txt").open("a") as output:
            process = subprocess.Popen(
                ["nice", "-n", "5", sys.executable, "-m", "lit_gen", *command],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.parents.append(process)

    def workers(self) -> list[int]:
        return [child for parent in self.running() for child in _children(parent.pid)]

    def running(self) -> list[subprocess.Popen]:
        self.parents = [parent for parent in self.parents if parent.poll() is None]
        return self.parents

    def table(self) -> list[dict[str, str]]:
        words = [sys.executable, "-m", "lit_gen", "leaderboard", str(self.folder), "--csv"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        text = subprocess.run(words, env=environment, check=True, capture_output=True, text=True).stdout
        rows = list(csv.DictReader(io.StringIO(text)))
        return [{key: value for key, value in row.items() if key not in MEASURED} for row in rows]

    def scores(self) -> dict[str, dict]:
        """Return the scores of each trial."""
        finished = {event["trial"]: event["result"] for event in self.events if event["event"] == "finished"}
        return {trial: json.loads((self.root / path).read_text())["metrics"] for trial, path in finished.items()}


def _children(pid: int) -> Iterator[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return
    for child in map(int, children):
        try:
            if b"lit_gen.sweeps.workers" in Path(f"/proc/{child}/cmdline").read_bytes():
                yield child
        except OSError:
            pass


def kill(processes: list[int]) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def wait_for_a_random_moment(sweep: Sweep, rng: random.Random) -> None:
    """Wait until up to two more trials have finished, and for a moment in which the next ones are anywhere."""
    until = sweep.num_finished + rng.choice([0, 0, 1, 1, 2])
    while sweep.num_finished < until and sweep.running():
        time.sleep(0.05)
    time.sleep(rng.uniform(0.0, 3.0))


def kill_at_a_random_moment(sweep: Sweep, rng: random.Random) -> str:
    """Kill a parent, all of them, a worker, all of them, or a parent with its workers; return which."""
    wait_for_a_random_moment(sweep, rng)
    parents, workers = [parent.pid for parent in sweep.running()], sweep.workers()
    assert parents, "the sweep is over before the last kill: nothing would be tested"
    chosen = rng.choice(parents)
    choices = {
        "a parent": [chosen],
        "all parents": parents,
        "a worker": [rng.choice(workers)] if workers else parents,
        "all workers": workers or parents,
        "a parent and its workers": [chosen, *_children(chosen)],
        "all": [*parents, *workers],
    }
    what = rng.choice(list(choices))
    kill(choices[what])
    for parent in sweep.parents:
        if parent.pid in choices[what]:
            parent.wait(30)
    return what


def test_forty_trials_survive_twenty_kills(tmp_path: Path) -> None:
    file = sweep_file(tmp_path)
    trials = {trial.id for trial in load_sweep([file]).trials}
    assert len(trials) == NUM_TRIALS
    undisturbed, killed = Sweep(file, tmp_path / "undisturbed"), Sweep(file, tmp_path / "killed")
    undisturbed.start()
    assert undisturbed.parents[0].wait(1200) == 0
    rng, kills = random.Random(19), []
    for _ in range(NUM_MOMENTS):
        for _ in range(rng.randint(1, 3) - len(killed.running())):
            killed.start()
        kills.append(kill_at_a_random_moment(killed, rng))
        assert killed.num_finished < NUM_TRIALS
    print(Counter(kills), killed.num_finished, "finished at the last kill")
    for parent in list(killed.running()):
        parent.wait(1200)  # with the trials of its killed workers as failed ones
    killed.start()
    assert killed.parents[-1].wait(1200) == 0

    finished = [event["trial"] for event in killed.events if event["event"] == "finished"]
    assert set(finished) == trials and len(finished) == NUM_TRIALS, "each trial once"
    assert _started_after_their_end(killed.events) == set()
    assert killed.scores() == undisturbed.scores()
    assert killed.table() == undisturbed.table() and len(killed.table()) == len(LATENT_DIMS)
    assert _files(killed.root) == _files(undisturbed.root), "nothing is left of what was killed"
    assert list((killed.folder / "locks").iterdir()) == []


def _started_after_their_end(events: list[dict]) -> set[str]:
    ended: set[str] = set()
    again = set()
    for event in events:
        if event["event"] == "finished":
            ended.add(event["trial"])
        elif event["event"] == "started" and event["trial"] in ended:
            again.add(event["trial"])
    return again


def _files(root: Path) -> set[str]:
    """Return the files of the runs: result files, checkpoints, curves and pictures."""
    return {str(path.relative_to(root)) for run in root.glob("digits_*") for path in run.rglob("*") if path.is_file()}
