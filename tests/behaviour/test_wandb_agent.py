"""Every shipped sweep file under `wandb agent`: W&B's own agent, against a server of ours that knows only sweeps."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_gen.sweeps import Trial
from tests.behaviour import warm
from tests.conftest import ROOT
from tests.experiment.test_configs import data_root, experiment, files, shrunk
from tests.runs.test_tracking import history, inspect, place, wandb_id
from tests.sweeps.example_trials import example_trials

__all__ = ["data_root"]  # a fixture
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="W&B's agent passes no environment through on Windows"),
]

Agent = Callable[[dict[str, list[str]]], str]
SWEEP, PROJECT, ENTITY = "sweep123", "agents_project", "agents_team"
IN_THE_GATE = ("quickstart", "points")
"""Sweeps that differ in data, families, kinds of parameters and repeats."""
CHEAP = {"families": "digits_edm", "diffusion_digits": "digits_edm"}
"""Experiments whose own samplers take few steps."""


class SweepServer(BaseHTTPRequestHandler):
    """What `wandb agent` asks of W&B's server: who am I, which sweep, register me, and what is there to do."""

    config: dict[str, Any] = {}
    trials: dict[str, dict[str, Any]] = {}
    """Parameters of the trials that wait, by the id of their run."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if not self.path.endswith("graphql"):  # what W&B counts for itself
            self.send_error(404)
            return
        request = json.loads(body)
        answer = json.dumps({"data": self.answer(request["query"], request.get("variables") or {})}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        if "createAgent" in query:
            return {"createAgent": {"agent": {"id": "agent1"}}}
        if "agentHeartbeat" in query:
            return {"agentHeartbeat": {"agent": {"id": "agent1"}, "commands": json.dumps(self.commands(variables))}}
        if "sweep(" in query:
            sweep = {"id": "1", "name": SWEEP, "config": json.dumps(self.config), "runs": {"edges": []}}
            return {"project": {"sweep": sweep}}
        return {"viewer": {"id": "1", "entity": ENTITY, "username": "someone", "flags": "{}", "teams": {"edges": []}}}

    def commands(self, variables: dict[str, Any]) -> list[dict[str, Any]]:
        if json.loads(variables["runState"]):  # one is running
            return []
        if not self.trials:
            return [{"type": "exit"}]
        run_id = next(iter(self.trials))
        values = {key: {"value": value} for key, value in self.trials.pop(run_id).items()}
        return [{"type": "run", "run_id": run_id, "program": "lit-gen", "args": values}]

    def log_message(self, *_: object) -> None:
        """Say nothing of requests."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("agent")


@pytest.fixture(scope="module")
def commands(folder: Path) -> Iterator[Path]:
    """The address of a process that has imported `lit-gen` and `wandb`."""
    address = folder / "warm"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, "-m", "tests.behaviour.warm", str(address)], env=environment) as process:
        while not address.exists() and process.poll() is None:
            time.sleep(0.05)
        yield address
        process.terminate()


@pytest.fixture(scope="module")
def agent(folder: Path, commands: Path) -> Iterator[Agent]:
    """Runs W&B's agent until no trial waits, with more arguments of `lit-gen`; the sweep file's own command is run."""
    (folder / "bin").mkdir()
    warm.command(commands, folder / "bin" / "wandb", "wandb")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "LIT_GEN_"))}
    environment |= {"HOME": str(folder), "WANDB_CONFIG_DIR": str(folder / "settings"), "WANDB_API_KEY": "0" * 40}
    environment |= {"WANDB_DIR": str(folder), "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    with ThreadingHTTPServer(("127.0.0.1", 0), SweepServer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment["WANDB_BASE_URL"] = f"http://127.0.0.1:{server.server_port}"

        def run(more: dict[str, list[str]]) -> str:
            warm.command(commands, folder / "bin" / "lit-gen", "lit-gen", more)
            words = [str(folder / "bin" / "wandb"), "agent", f"{ENTITY}/{PROJECT}/{SWEEP}"]
            done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout + done.stderr

        yield run
        server.shutdown()


def small(trial: Trial, root: Path, data: Path) -> list[str]:
    """The arguments that make a trial short, and that it logs offline to a place which the agent's has to replace."""
    path = ROOT / trial.parameters["config"]
    words = shrunk(path, root, data)
    words = [word for word in words if not word.startswith("--wandb")]
    words += ["--wandb.mode=offline", "--wandb.project=ignored", "--wandb.entity=ignored"]
    words += ["--evaluation.num_samples=16", "--evaluation.inception_splits=1", "--evaluation.num_kept=4"]
    asked = trial.parameters.get("evaluation.likelihood", experiment(path).config.evaluation.likelihood)
    return [*words, "--evaluation.likelihood=2"] if asked else words


@pytest.mark.parametrize(
    "name",
    [name if name in IN_THE_GATE else pytest.param(name, marks=pytest.mark.exhaustive) for name in files("sweeps")],
)
def test_two_trials_are_in_the_agents_sweep(name: str, agent: Agent, folder: Path, data_root: Path) -> None:
    """The first trial trains unless another sweep has trained the same model, and both are evaluations."""
    path = ROOT / "sweeps" / f"{name}.yaml"
    config = yaml.safe_load(path.read_text())
    listed = example_trials(path)
    first = next(i for i, trial in enumerate(listed) if CHEAP.get(name, "") in trial.parameters["config"])
    trials = listed[first : first + 2]
    parameters = {f"{name.replace('_', '')}{number}": trial.parameters for number, trial in enumerate(trials)}
    SweepServer.config, SweepServer.trials = config, dict(parameters)
    root = folder / "runs"
    before = set(root.glob("*/wandb/offline-run-*"))
    said = agent({f"--config={trial.parameters['config']}": small(trial, root, data_root) for trial in trials})
    assert not SweepServer.trials, said
    read = {wandb_id(path): (path, *inspect(path)) for path in set(root.glob("*/wandb/offline-run-*")) - before}
    agents = {"project": PROJECT, "entity": ENTITY, "run_group": SWEEP}
    assert parameters.keys() <= read.keys(), said
    for run_id, given in parameters.items():
        logged, summary, records = read.pop(run_id)
        assert place(records) == {"run_id": run_id, **agents, "job_type": "evaluate", "sweep_id": SWEEP}
        assert {key: summary["config"][key] for key in given} == given, "the sweep's parameters, by their names"
        metric = config["metric"]["name"]
        (value,) = (row[metric] for row in history(records) if metric in row)
        run = logged.parents[1]
        training = json.loads((run / "run.json").read_text())
        of_run = summary["config"]["settings"]["run"] if "run" in given else summary["config"]["run"]
        assert of_run["wandb_id"] == training["wandb_id"] and of_run["directory"] == run.name
        marked = [marker.parent for marker in run.glob("evaluations/*/wandb_runs") if run_id in marker.read_text()]
        results = [json.loads((found / "result.json").read_text()) for found in marked]
        assert len(results) == given.get("evaluation.num_repeats", 1)
        assert value == pytest.approx(sum(result["metrics"][metric] for result in results) / len(results), rel=1e-12)
        assert summary["summary"][metric] == value
        assert summary["name"].startswith(f"{training['title'].partition(',')[0]} ") and run.name in summary["name"]
    for run_id, (logged, _, records) in read.items():
        assert place(records) == {"run_id": run_id, **agents, "job_type": "train", "sweep_id": None}
        assert json.loads((logged.parents[1] / "run.json").read_text())["wandb_id"] == run_id
        assert any("train/loss" in row for row in history(records))
