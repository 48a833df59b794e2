"""What TensorBoard and MLflow hold, read back by their own readers."""

import csv
import io
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lit_gen.cli import commands
from lit_gen.cli.main import main
from lit_gen.core.errors import UserError
from lit_gen.experiment.parser import ExperimentCLI
from lit_gen.runs.directory import Run
from lit_gen.runs.tracking import TrackerName, Tracking, WandbSettings
from tests.conftest import arguments
from tests.interrupt import KILL_AT, CrashError

RESUMED = ["--checkpoint.every=128", "--trainer.callbacks=tests.interrupt.Interrupt"]
needs_tensorboard = pytest.mark.skipif(find_spec("tensorboard") is None, reason="needs the extra trackers")
needs_mlflow = pytest.mark.skipif(find_spec("mlflow") is None, reason="needs the extra trackers")


def words_of(tmp_path: Path, tracker: TrackerName) -> list[str]:
    more = ["--trainer.log_every_n_steps=1", "--grid.num_samples=4", "--sampler=Heun", "--evaluation.num_samples=24"]
    return [*arguments("EDM", tmp_path, 320, f"--tracker={tracker}", *more), *RESUMED]


def evaluated(tmp_path: Path, tracker: TrackerName, monkeypatch: pytest.MonkeyPatch) -> tuple[Run, dict[float, Any]]:
    """A training that was killed and resumed, and its results by NFE."""
    words = words_of(tmp_path, tracker)
    with monkeypatch.context() as patch:
        patch.setenv(KILL_AT, "raise:4")
        with pytest.raises(CrashError):
            commands.fit(words)
    paths = [commands.run([*words, f"--sampler.nfe={nfe}"]) for nfe in (5, 3)]
    results = {result["nfe"]: result for result in (json.loads(path.read_text()) for path in paths)}
    assert results.keys() == {3.0, 5.0}
    return Run(paths[0].parents[2]), results


def curve(run: Run) -> list[tuple[int, float]]:
    """The loss against images in metrics.csv."""
    with (run.directory / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    assert [int(row["images"]) for row in rows] == [64, 128, 192, 256, 320]
    return [(int(row["images"]), float(row["train/loss"])) for row in rows]


def pixels(picture: Path | io.BytesIO) -> np.ndarray:
    return np.asarray(Image.open(picture).convert("RGB"))


@pytest.mark.slow
@needs_tensorboard
def test_tensorboard_has_curves_pictures_and_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def read(folder: Path) -> EventAccumulator:
        return EventAccumulator(str(folder)).Reload()

    def picture(events: EventAccumulator, name: str) -> dict[int, np.ndarray]:
        return {each.step: pixels(io.BytesIO(each.encoded_image_string)) for each in events.Images(name)}

    run, results = evaluated(tmp_path, "tensorboard", monkeypatch)
    events = read(run.directory / "tensorboard")
    loss = [(each.step, each.value) for each in events.Scalars("train/loss")]
    assert loss == [(images, pytest.approx(value)) for images, value in curve(run)], "each once, also after a resume"
    (drawn,) = run.samples.glob("images-*.png")
    (shown,) = picture(events, "samples").items()
    assert shown[0] == 320 and np.array_equal(shown[1], pixels(drawn))
    assert any("configuration" in tag for tag in events.Tags()["tensors"]), events.Tags()
    scored = read(run.directory / "tensorboard" / "EDM_Heun_Karras")
    values = {each.step: each.value for each in scored.Scalars("evaluation/fd_digits")}
    assert values == {nfe: pytest.approx(result["metrics"]["fd_digits"]) for nfe, result in results.items()}
    of_nfe = picture(scored, "evaluation/samples")
    for path in run.evaluations.glob("*/result.json"):
        assert np.array_equal(of_nfe[json.loads(path.read_text())["nfe"]], pixels(path.with_name("samples.png")))
    assert not (run.directory / "wandb").exists()


@pytest.mark.slow
@needs_mlflow
def test_mlflow_has_curves_pictures_and_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.tracking import MlflowClient

    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    run, results = evaluated(tmp_path, "mlflow", monkeypatch)
    client = MlflowClient((tmp_path / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("lit_gen")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    (training,) = (each for each in found if each.data.tags["job_type"] == "train")
    assert training.info.run_name == run.directory.name and training.info.status == "FINISHED"
    assert training.data.params["model/init_args/network/init_args/channels"] == "16"
    logged = {each.step: each.value for each in client.get_metric_history(training.info.run_id, "train/loss")}
    assert sorted(logged.items()) == curve(run)
    (shown,) = (
        each.path
        for each in client.list_artifacts(training.info.run_id, "images")
        if "320" in each.path and each.path.endswith("png")
    )
    (drawn,) = run.samples.glob("images-*.png")
    local = client.download_artifacts(training.info.run_id, shown, str(tmp_path))
    assert np.array_equal(pixels(Path(local)), pixels(drawn))
    scored = {each.data.metrics["nfe"]: each for each in found if each.data.tags["job_type"] == "evaluate"}
    assert scored.keys() == results.keys() and len(found) == 3
    for nfe, each in scored.items():
        assert each.data.tags["mlflow.parentRunId"] == training.info.run_id
        assert each.info.run_name == f"EDM Heun nfe {nfe:g} seed 0, {run.directory.name}"
        assert each.data.metrics["fd_digits"] == results[nfe]["metrics"]["fd_digits"]
        assert client.list_artifacts(each.info.run_id, "images")


@pytest.mark.parametrize(
    ("given", "names"), [("tensorboard", ("tensorboard",)), ("[mlflow,wandb]", ("mlflow", "wandb")), ("[]", ())]
)
def test_one_tracker_or_a_list(given: str, names: tuple[str, ...], tmp_path: Path) -> None:
    config = ExperimentCLI([*arguments("VAE", tmp_path), "--tracker", given]).config
    assert Tracking.of(config.tracker, WandbSettings()).names == names


def test_an_unknown_tracker_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^tracker: .*wandb, tensorboard, mlflow"):
        ExperimentCLI([*arguments("VAE", tmp_path), "--tracker", "comet"])


@pytest.mark.parametrize("tracker", ["tensorboard", "mlflow"])
def test_a_tracker_that_is_not_installed_is_named(
    tracker: TrackerName, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if find_spec(tracker) is not None:
        pytest.skip(f"{tracker} is installed")
    assert main(["fit", *words_of(tmp_path, tracker)]) == 2
    said = capsys.readouterr().err.strip()
    assert said == f"lit-gen: error: tracker: {tracker} is not installed; pip install 'lit_gen[trackers]'"
    assert not list(tmp_path.iterdir())
