"""Two processes do what one does: the same images, the same distance, one run directory."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import arguments
from tests.test_tracking import wandb_runs

pytestmark = pytest.mark.slow
TWO = ["--trainer.strategy=ddp", "--trainer.devices=2"]


@pytest.mark.parametrize("model", ["RectifiedFlow", "WGAN", "VAE"])
def test_training_and_evaluation_in_two_processes(model: str, tmp_path: Path, lit_gen) -> None:
    words = [word for word in arguments(model, tmp_path / "runs", 640) if not word.startswith("--wandb")]
    words += ["--wandb.mode=offline", "--evaluation.num_samples=21"]
    sampler = ["--sampler=Heun", "--sampler.steps=4"] if model == "RectifiedFlow" else []
    done = lit_gen("run", *words, *sampler, *TWO)
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
    done = lit_gen("evaluate", str(run), *sampler, *one_process)
    assert done.returncode == 0, done.stderr
    one = json.loads((evaluation / "result.json").read_text())
    assert np.array_equal(images, np.load(evaluation / "samples.npz")["images"])
    for name, value in one["metrics"].items():
        assert two["metrics"][name] == pytest.approx(value, rel=1e-6), name
    (evaluation / "result.json").unlink()
    done = lit_gen("evaluate", str(run), *sampler, *TWO)
    assert done.returncode == 0, done.stderr
    again = json.loads((evaluation / "result.json").read_text())
    assert again["metrics"] == pytest.approx(one["metrics"], rel=1e-6)
    assert "2 x" in again["timing"]["device"]
