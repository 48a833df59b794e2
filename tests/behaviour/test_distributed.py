"""Two processes do what one does: the same images, the same distance, one run directory."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from lit_gen.cli.main import main
from lit_gen.runs.directory import Run
from tests.conftest import ROOT, arguments
from tests.processes import lit_gen_in_two_processes
from tests.runs.test_tracking import wandb_runs

pytestmark = pytest.mark.slow
TWO = ["--trainer.strategy=ddp", "--trainer.devices=2"]


@pytest.mark.parametrize("model", ["RectifiedFlow", pytest.param("WGAN", marks=pytest.mark.exhaustive)])
def test_training_and_evaluation_in_two_processes(
    model: str, tmp_path: Path, lit_gen, capsys: pytest.CaptureFixture[str]
) -> None:
    """As torchrun starts them; one evaluation starts its second process itself."""
    both = partial(lit_gen_in_two_processes, tmp_path)
    words = [word for word in arguments(model, tmp_path / "runs", 640) if not word.startswith("--wandb")]
    words += ["--wandb.mode=offline", "--evaluation.num_samples=21"]
    sampler = ["--sampler=Heun", "--sampler.steps=4"] if model == "RectifiedFlow" else []
    done = both("run", *words, *sampler, *TWO)
    assert done.returncode == 0, done.stderr
    (run,) = (path for path in (tmp_path / "runs").iterdir() if not path.name.startswith("."))
    metadata = json.loads((run / "run.json").read_text())
    assert metadata["images_seen"] == 640 and metadata["status"] == "finished"
    assert len(wandb_runs(tmp_path / "runs")) == 2, "one for the training and one for the evaluation"
    (evaluation,) = (run / "evaluations").iterdir()
    two = json.loads((evaluation / "result.json").read_text())
    images = np.load(evaluation / "samples.npz")["images"]
    assert len(images) == 21
    (evaluation / "result.json").unlink()
    one_process = ["--trainer.strategy=auto", "--trainer.devices=1"]
    assert main(["evaluate", str(run), *sampler, *one_process]) == 0, capsys.readouterr().err
    one = json.loads((evaluation / "result.json").read_text())
    assert np.array_equal(images, np.load(evaluation / "samples.npz")["images"])
    for name, value in one["metrics"].items():
        assert two["metrics"][name] == pytest.approx(value, rel=1e-6), name
    (evaluation / "result.json").unlink()
    alone = lit_gen if model == "RectifiedFlow" else both
    done = alone("evaluate", str(run), *sampler, *TWO)
    assert done.returncode == 0, done.stderr
    again = json.loads((evaluation / "result.json").read_text())
    assert again["metrics"] == pytest.approx(one["metrics"], rel=1e-6)
    assert "2 x" in again["timing"]["device"]


@pytest.fixture
def torchrun(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts two processes by torchrun itself; what they print goes to a file `log`."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "lit_gen"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    started = []

    def start(*words: str) -> subprocess.Popen[str]:
        with (tmp_path / "log").open("w") as log:
            process = subprocess.Popen(
                [*command, *words], cwd=tmp_path, env=environment, stdout=log, stderr=log, text=True
            )
        started.append(process)
        return process

    yield start
    for process in started:
        process.terminate()
        process.wait(60)


def test_processes_that_are_started_alike_agree_what_is_done(tmp_path: Path, torchrun) -> None:
    words = [*arguments("VAE", tmp_path / "runs", 640), *TWO]
    log = tmp_path / "log"
    both = lit_gen_in_two_processes(tmp_path, "run", *words)
    assert both.returncode == 0, both.stderr
    (directory,) = (path for path in (tmp_path / "runs").iterdir() if not path.name.startswith("."))
    run = Run(directory)
    (result,) = run.evaluations.glob("*/result.json")
    assert run.finished and run.metadata["images_seen"] == 640
    assert "2 x" in json.loads(result.read_text())["timing"]["device"]

    # another command trains while they wait, and is done when they get their turn: neither may begin
    run.update(status="training")
    with run.lock():
        waiting = torchrun("run", *words)
        deadline = time.monotonic() + 120
        while "waiting: another process" not in log.read_text() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert "waiting: another process" in log.read_text()
        time.sleep(2)  # the second one would train by now
        run.update(status="finished")
    assert waiting.wait(60) == 0, log.read_text()
    assert "this run is finished" in log.read_text() and "trained on" not in log.read_text()
    assert "computed before" in log.read_text()

    result.unlink()
    alone = lit_gen_in_two_processes(tmp_path, "evaluate", str(directory), "--trainer.devices=1")
    assert alone.returncode != 0 and "devices" in alone.stderr
    both = lit_gen_in_two_processes(tmp_path, "evaluate", str(directory))
    assert both.returncode == 0, both.stderr
    assert "2 x" in json.loads(result.read_text())["timing"]["device"]
