"""The main job, shrunk: killed in the middle of a training, started again, and read by every report."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from lit_gen.cli.main import main
from tests.conftest import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent"),
]

SMALL: dict[str, list[Any]] = {
    "evaluation.num_samples": [24],
    "data.batch_size": [64],
    "checkpoint.every": [320],
    "grid.num_samples": [0],
}
SMALL_DIFFUSION: dict[str, list[Any]] = {
    "sampler": ["DDIM", "Euler"],
    "sampler.nfe": [2, 4],
    "model.network.channels": [8],
    "model.network.channel_mult": [[1]],
    "model.warmup": [0],
    "budget.num_images": [960],
}
# long enough to be killed in
SMALL_VAE: dict[str, list[Any]] = {
    "model.encoder": ["ConvEncoder"],
    "model.encoder.channels": [8],
    "model.decoder": ["ConvDecoder"],
    "model.decoder.channels": [8],
    "budget.num_images": [6400],
}


def shrunk(name: str, folder: Path, experiments: list[str], **values: list[Any]) -> Path:
    """A copy of a sweep file with these experiments and these values of parameters, the file's own or new ones."""
    sweep = yaml.safe_load((ROOT / "sweeps" / f"{name}.yaml").read_text())
    given = sweep["parameters"]["config"]["values"]
    configs = [f"conf/experiment/{experiment}.yaml" for experiment in experiments]
    assert set(configs) <= set(given)
    changes = {"config": [str(ROOT / config) for config in configs]} | values | SMALL
    sweep["parameters"] |= {key: {"values": chosen} for key, chosen in changes.items()}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(sweep, sort_keys=False))
    return path


def results(runs: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in runs.glob("*/evaluations/*/result.json")}


def in_training(runs: Path) -> list[Path]:
    """The runs that have a checkpoint and are not finished."""
    return [
        path.parent
        for path in runs.glob("*/run.json")
        if json.loads(path.read_text())["status"] == "training" and (path.parent / "checkpoints/last.ckpt").is_file()
    ]


@dataclass
class Job:
    """A finished sweep, and what was there when it was killed."""

    files: list[str]
    runs: Path
    killed: list[Path]
    before: dict[Path, int]
    output: str

    @property
    def folder(self) -> Path:
        return self.runs / "sweeps" / "quickstart"


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    folder = tmp_path_factory.mktemp("job")
    files = [
        str(shrunk("quickstart", folder, ["digits_ddpm", "digits_rectified_flow"], **SMALL_DIFFUSION)),
        str(shrunk("quickstart_one_pass", folder, ["digits_vae"], **SMALL_VAE)),
    ]

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "lit_gen", "sweep", *files, "--jobs", "2"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    runs = folder / "runs"
    process = start()
    while not (results(runs) and in_training(runs)) and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    output, _ = process.communicate(timeout=60)  # ends when the last worker, which holds the pipe too, is dead
    assert process.returncode == -signal.SIGKILL, output
    killed, before = in_training(runs), results(runs)
    process = start()
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return Job(files, runs, killed, before, output)


def test_a_killed_job_goes_on_where_it_stopped(job: Job) -> None:
    assert job.killed and job.before, "it was killed between the first result and the last training"
    runs = [path for path in job.runs.iterdir() if path.name != "sweeps" and not path.name.startswith(".")]
    metadata = [json.loads((run / "run.json").read_text()) for run in runs]
    assert sorted(facts["title"] for facts in metadata) == ["DDPM", "RectifiedFlow", "VAE"], "one run for each model"
    assert all(facts["status"] == "finished" for facts in metadata)
    logs = "".join(path.read_text() for path in job.folder.glob("logs/*.log"))
    for run in job.killed:
        assert f"{run.name}: resuming after" in logs
    after = results(job.runs)
    assert len(after) == 9
    assert job.before.items() <= after.items(), "no result is computed twice"


def test_a_job_ends_with_its_reports(job: Job) -> None:
    table = (job.folder / "leaderboard.md").read_text()
    assert sum(line.startswith("| ") and line[2].isdigit() for line in table.splitlines()) == 9
    for name in ("leaderboard.md", "distance_vs_nfe.png", "samples.png"):
        assert f"runs/sweeps/quickstart/{name}" in job.output
    for name in ("distance_vs_nfe.png", "samples.png"):
        with Image.open(job.folder / name) as picture:
            assert min(picture.size) > 100


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(words) == 0
    return capsys.readouterr().out


def test_ddim_and_euler_are_one_sampler(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    rows = json.loads(printed(capsys, "leaderboard", str(job.runs), "--json"))["rows"]
    distances = {(row["model"], row["sampler"], row["nfe"]): row["fd_digits"] for row in rows}
    assert len(distances) == 9
    for model in ("DDPM", "RectifiedFlow"):
        for nfe in (2, 4):
            assert distances[model, "DDIM", nfe] == pytest.approx(distances[model, "Euler", nfe], rel=1e-6)
        assert distances[model, "DDIM", 2] != pytest.approx(distances[model, "DDIM", 4], rel=1e-4)


def test_the_forms_of_the_leaderboard_say_the_same(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    board = json.loads(printed(capsys, "leaderboard", str(job.runs), "--json"))
    assert (board["by"], board["better"], board["protocol"]["num_samples"]) == ("fd_digits_held_out", "lower", 24)
    rows = board["rows"]
    scores = [row["fd_digits_held_out"] for row in rows]
    assert len(rows) == 9 and scores == sorted(scores)
    for place, row in enumerate(rows):
        assert 1 <= row["rank"] <= 1 + sum(other < scores[place] for other in scores)

    lines = list(csv.DictReader(io.StringIO(printed(capsys, "leaderboard", str(job.runs), "--csv"))))
    assert [float(line["fd_digits"]) for line in lines] == [row["fd_digits"] for row in rows]
    assert {line["protocol.num_samples"] for line in lines} == {"24"}

    table = printed(capsys, "leaderboard", str(job.folder), "--markdown")
    assert table == (job.folder / "leaderboard.md").read_text()
    assert "24 generated" in table.splitlines()[0]


def test_a_table_of_budgets_has_a_row_for_each_model_and_sampler(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    rows = json.loads(printed(capsys, "leaderboard", str(job.runs), "--json"))["rows"]
    table = printed(capsys, "leaderboard", str(job.runs), "--budgets", "2,4").splitlines()
    cells = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in table if line.startswith("|")]
    assert cells[0] == ["model", "sampler", "2", "4"]
    shown = {(model, sampler): values for model, sampler, *values in cells[2:]}
    floors = [key for key in shown if "images, drawn again" in key[0]]
    assert shown.keys() - floors == {(row["model"], row["sampler"] or "-") for row in rows} and len(floors) == 1
    for row in rows:
        value = shown[row["model"], row["sampler"] or "-"][0 if row["nfe"] <= 2 else 1]
        assert float(value.split(" ± ")[0]) == pytest.approx(row["fd_digits_held_out"], rel=0.01)
    assert shown["VAE", "-"][1] == "-", "one evaluation is within the first budget"


def test_a_dry_run_knows_what_is_finished(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    before = results(job.runs)
    output = printed(capsys, "sweep", *job.files, "--root", str(job.runs), "--dry-run")
    assert "sweep quickstart: 9 trials, 9 of them finished" in output
    assert results(job.runs) == before
    output = printed(capsys, "sweep", job.files[1], "--root", str(job.runs / "elsewhere"), "--dry-run")
    assert "sweep quickstart_one_pass: 1 trials, 0 of them finished" in output
    assert not (job.runs / "elsewhere").exists()
