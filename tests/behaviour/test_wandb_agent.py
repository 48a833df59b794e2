"""Two trials under `wandb agent`: W&B's own command and agent, against a server of ours that knows only sweeps."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, arguments
from tests.runs.test_tracking import WANDB, history, inspect, place, wandb_id, wandb_runs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="W&B's agent passes no environment through on Windows"),
]

SWEEP, PROJECT, ENTITY = "sweep123", "agents_project", "agents_team"
TRIALS: dict[str, dict[str, Any]] = {
    "trial1": {"sampler": "DDIM", "sampler.nfe": 2, "model.network.channels": 16},
    "trial2": {"sampler": "Heun", "sampler.nfe": 3, "model.network.channels": 16},
}


class SweepServer(BaseHTTPRequestHandler):
    """What `wandb agent` asks of W&B's server: who am I, which sweep, register me, and what is there to do."""

    config: dict[str, Any] = {}
    waiting: list[str] = []

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
        if not self.waiting:
            return [{"type": "exit"}]
        run_id = self.waiting.pop(0)
        values = {key: {"value": value} for key, value in TRIALS[run_id].items()}
        return [{"type": "run", "run_id": run_id, "program": "lit-gen", "args": values}]

    def log_message(self, *_: object) -> None:
        """Say nothing of requests."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    words = [word for word in arguments("EDM", tmp_path, 256, "--grid.num_samples=0") if "wandb" not in word]
    words += ["--wandb.mode=offline", "--wandb.project=ignored", "--wandb.entity=ignored"]
    command = ["${env}", sys.executable, "-m", "lit_gen", "run", *words, "${args}"]
    SweepServer.config = {"method": "grid", "metric": {"name": "fd_digits"}, "command": command}
    SweepServer.waiting = list(TRIALS)
    with ThreadingHTTPServer(("127.0.0.1", 0), SweepServer) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_a_training_and_two_evaluations_are_in_the_agents_sweep(server: str, tmp_path: Path) -> None:
    """The first trial trains and evaluates, the second finds the training and only evaluates."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment |= {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "WANDB_CONFIG_DIR": str(tmp_path / "settings")}
    environment |= {"WANDB_BASE_URL": server, "WANDB_API_KEY": "0" * 40}
    words = [str(WANDB), "agent", f"{ENTITY}/{PROJECT}/{SWEEP}", "--count", "2"]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and not SweepServer.waiting, done.stdout + done.stderr
    (run,) = (path.parent for path in tmp_path.glob("*/run.json"))
    read = {wandb_id(path): inspect(path) for path in wandb_runs(tmp_path)}
    training = json.loads((run / "run.json").read_text())["wandb_id"]
    assert read.keys() == {training, *TRIALS}
    agents = {"project": PROJECT, "entity": ENTITY, "run_group": SWEEP}
    _, records = read.pop(training)
    assert place(records) == {"run_id": training, **agents, "job_type": "train", "sweep_id": None}
    assert any("train/loss" in row for row in history(records))
    for run_id, (summary, records) in read.items():
        assert place(records) == {"run_id": run_id, **agents, "job_type": "evaluate", "sweep_id": SWEEP}
        config, parameters = summary["config"], TRIALS[run_id]
        assert {key: config[key] for key in parameters} == parameters
        sampler = config["settings"]["sampler"]
        assert sampler["name"] == parameters["sampler"] and sampler["grid"]["name"] == "Karras"
        assert summary["name"] == f"EDM {sampler['name']} nfe {parameters['sampler.nfe']} seed 0, {run.name}"
        (result,) = run.glob(f"evaluations/{sampler['name']}-*/result.json")
        metric = json.loads(result.read_text())["metrics"]["fd_digits"]
        assert [row["fd_digits"] for row in history(records) if "fd_digits" in row] == [metric]
        assert summary["summary"]["fd_digits"] == metric
