"""What W&B and the CSV file hold, read back."""

import csv
import json
import math
import statistics
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from wandb.util import get_core_path

from lit_gen import __version__
from lit_gen.cli import commands
from lit_gen.core.errors import DivergedError
from lit_gen.runs.directory import Run
from lit_gen.runs.tracking import Curves, LoggedEvaluation, MetricsFile, Tracking, WandbSettings, evaluation_name
from tests.conftest import arguments
from tests.interrupt import KILL_AT, CrashError

pytestmark = pytest.mark.slow
"""End-to-end runs; the gate runs them."""

OFFLINE = "W&B: offline, files stay in the run directory (wandb login, or --wandb.mode online, to upload)"


def read_back(folder: Path, *options: str) -> str:
    """What `wandb leet inspect` prints of an offline run; its reader is called without the command that imports W&B."""
    (file,) = folder.glob("run-*.wandb")
    words = [get_core_path(), "leet", "inspect", "--no-observability", "--json", *options]
    words += ["--run-file", str(file), str(folder.parent)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def records_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in read_back(folder).splitlines()]


def inspect(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The summary and the records of an offline run."""
    return json.loads(read_back(folder, "--summary")), records_of(folder)


def history(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record["history"]["item"] for record in records if record["type"] == "history"]


def place(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Where W&B puts a run."""
    (run,) = (record["run"] for record in records if record["type"] == "run")
    return {key: run.get(key) for key in ("run_id", "project", "entity", "run_group", "job_type", "sweep_id")}


def offline(tmp_path: Path, *more: str) -> list[str]:
    words = [word for word in arguments("WGAN", tmp_path, 640) if not word.startswith("--wandb")]
    return [*words, "--wandb.mode=offline", "--trainer.log_every_n_steps=2", "--grid.num_samples=4", *more]


def wandb_runs(tmp_path: Path) -> list[Path]:
    return sorted(tmp_path.glob("*/wandb/offline-run-*"))


def wandb_id(folder: Path) -> str:
    """The id in `offline-run-TIME-ID`; W&B adds `-1` to a second folder of the same second."""
    return folder.name.split("-")[3]


def what_it_is(records: list[dict[str, Any]]) -> tuple[str, str, list[str]]:
    """Job type, group and tags of a run."""
    (run,) = (record["run"] for record in records if record["type"] == "run")
    return run["job_type"], run["run_group"], run["tags"]


def test_an_offline_run_holds_config_curves_and_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LIT_GEN_SWEEP", "my_sweep")
    result = json.loads(
        commands.run(offline(tmp_path, "--wandb.tags=[mine]", "--wandb.artifacts=[checkpoint]")).read_text()
    )
    assert [line for line in capsys.readouterr().out.splitlines() if "W&B" in line] == [OFFLINE]
    train, evaluate = wandb_runs(tmp_path)
    summary, records = inspect(train)
    assert what_it_is(records) == ("train", "my_sweep", ["mine", "sweep"]) and summary["tags"] == ["mine", "sweep"]
    assert summary["config"]["model"]["class_path"].endswith("WGAN")
    assert summary["config"]["budget"]["num_images"] == 640
    assert summary["config"]["code"]["packages"]["lit_gen"] == __version__
    assert {"git_commit", "git_dirty"} <= summary["config"]["code"].keys()
    assert summary["name"] == f"WGAN seed 0, {train.parents[1].name}"
    assert "sampler" not in summary["config"], "a training has none"
    logged = [row for row in history(records) if "train/loss" in row]
    assert [row["images"] for row in logged] == [128, 256, 384, 512, 640]
    names = ["loss", "critic_gap", "generator_loss", "lr", "grad_norm_0", "grad_norm_1", "images_per_second"]
    for name in (f"train/{name}" for name in names):
        values = [row[name] for row in logged if name in row]
        assert len(values) == (4 if name.endswith("second") else 5), "the first speed is known at the second time"
        assert all(math.isfinite(value) for value in values) and summary["summary"][name] == values[-1]
    assert list(train.glob("files/media/images/samples*.png"))
    summary, records = inspect(evaluate)
    assert what_it_is(records) == ("evaluate", "my_sweep", ["mine", "sweep"]) and summary["tags"] == ["mine", "sweep"]
    assert {"fd_digits", "inception_score"} <= result["metrics"].keys()
    for name, value in {**result["metrics"], **result["timing"], "nfe": 1}.items():
        assert summary["summary"][name] == value, name
    assert summary["config"]["run"]["directory"] == train.parents[1].name
    assert summary["config"]["run"]["wandb_id"] == wandb_id(train)
    assert summary["name"] == f"WGAN one pass nfe 1 seed 0, {train.parents[1].name}"
    assert artifacts(train)["model", train.parents[1].name] == ["config.yaml", "last.ckpt", "run.json"]
    assert list(evaluate.glob("files/media/images/samples*.png"))


def test_one_line_says_where_runs_go(capsys: pytest.CaptureFixture[str]) -> None:
    for mode, line in {"offline": OFFLINE, "online": "W&B: online, project mine", "disabled": None}.items():
        Tracking(WandbSettings(mode=mode, project="mine")).announce(Path())  # type: ignore[arg-type]
        assert capsys.readouterr().out == ("" if line is None else line + "\n")


def test_a_resumed_training_continues_its_wandb_run_and_its_csv(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = offline(tmp_path, "--trainer.callbacks=tests.interrupt.Interrupt", "--checkpoint.every=256")
    words.append("--grid.num_samples=0")  # what is logged beside a grid has a row of its own
    monkeypatch.setenv(KILL_AT, "raise:7")
    with pytest.raises(CrashError):
        commands.fit(words)
    monkeypatch.delenv(KILL_AT)
    run = commands.fit(words)
    assert len({wandb_id(path) for path in wandb_runs(tmp_path)}) == 1
    with (run.directory / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    images = [int(row["images"]) for row in rows]
    assert images == sorted(set(images)), "every step once"
    assert images[0] == 128 and images[-1] >= 640 - 128
    assert all(float(row["train/loss"]) == float(row["train/loss"]) for row in rows if row["train/loss"])


def test_the_evaluation_has_the_agents_run_and_the_training_has_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "agentsrun")
    commands.run(offline(tmp_path))
    train, evaluate = wandb_runs(tmp_path)
    ids = {wandb_id(path): inspect(path)[0] for path in (train, evaluate)}
    assert set(ids) - {"agentsrun"} != set() and "agentsrun" in ids
    assert "protocol" in ids["agentsrun"]["config"]


def under_an_agent(monkeypatch: pytest.MonkeyPatch, folder: Path, run_id: str, **parameters: object) -> None:
    """Set the environment as `wandb agent` does for a trial; test_wandb_agent.py has the agent itself."""
    path = folder / f"config-{run_id}.yaml"
    values = {key: {"value": value} for key, value in parameters.items()}
    path.write_text(yaml.safe_dump({"wandb_version": 1, **values}))
    environment = {"SWEEP_ID": "sweep7", "PROJECT": "theirs", "ENTITY": "team", "RUN_ID": run_id}
    for name, value in (environment | {"SWEEP_PARAM_PATH": str(path)}).items():
        monkeypatch.setenv(f"WANDB_{name}", value)


EDM, HEUN = {"class_path": "lit_gen.families.diffusion.EDM"}, {"name": "Heun", "steps": 18, "grid": {"name": "Karras"}}


def train(folder: Path, settings: WandbSettings) -> Run:
    """A training as W&B sees it."""
    run = Run(folder / "digits_edm-1")
    run.create({}, identity="1", recipe="2", seed=0)
    curves = Curves(settings, run, {"model": EDM, "seed_everything": 0})
    curves.log_metrics({"train/loss": 1.0}, 64)
    curves.finish(failed=False)
    return run


def result_of(seed: int, seconds: float, **metrics: float) -> dict[str, Any]:
    """A result of one sampling seed."""
    facts = {"model": "EDM", "sampler": HEUN, "nfe": 35.0, "weights": "ema", "seed": seed}
    facts |= {"run": {"name": "digits_edm-1"}, "protocol": {"num_samples": 24}}
    return facts | {"metrics": metrics, "timing": {"sampling_seconds": seconds, "device": "cpu"}}


def score(run: Run, settings: WandbSettings, seed: int, **changes: Any) -> dict[str, Any]:
    """An evaluation as W&B sees it; its result."""
    result = result_of(seed, 0.5, fd_digits=5.5 + seed, fd_digits_stderr=float("nan")) | changes
    folder = run.evaluations / f"Heun-{seed}"
    folder.mkdir(parents=True)
    config = {"model": EDM, "sampler": None, "evaluation": {"seed": seed}}
    Tracking(settings).log(LoggedEvaluation(run, [result], [folder], config))
    return result


def test_the_runs_of_an_agents_trials_are_in_its_project_and_its_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two trials that share a training, and then an evaluation with no agent, in one process."""
    settings = WandbSettings(mode="offline", project="ours", entity="us")
    with monkeypatch.context() as patch:
        under_an_agent(patch, tmp_path, "trial3", sampler="Heun", **{"evaluation.seed": 3})
        run = train(tmp_path, settings)
        score(run, settings, seed=3)
        under_an_agent(patch, tmp_path, "trial4", sampler="Heun", **{"evaluation.seed": 4})
        score(run, settings, seed=4)
    score(run, settings, seed=5)
    paths = {wandb_id(path): path for path in wandb_runs(tmp_path)}
    read = {run_id: records_of(path) for run_id, path in paths.items()}
    places = {run_id: place(records) for run_id, records in read.items()}
    agents = {"project": "theirs", "entity": "team", "run_group": "sweep7"}
    training = run.metadata["wandb_id"]
    assert places.pop(training) == {"run_id": training, **agents, "job_type": "train", "sweep_id": None}
    for seed in (3, 4):
        run_id = f"trial{seed}"
        assert places.pop(run_id) == {"run_id": run_id, **agents, "job_type": "evaluate", "sweep_id": "sweep7"}
        summary, records = json.loads(read_back(paths[run_id], "--summary")), read[run_id]
        config = summary["config"]
        assert (config["sampler"], config["evaluation.seed"]) == ("Heun", seed), (
            "the sweep's parameters, by their names"
        )
        assert config["settings"] == {"sampler": HEUN} and config["model"] == EDM
        for name, value in {"fd_digits": 5.5 + seed, "nfe": 35, "sampling_seconds": 0.5}.items():
            assert [row[name] for row in history(records) if name in row] == [value] == [summary["summary"][name]]
    ((_, alone),) = places.items()
    assert (alone["project"], alone["entity"]) == ("ours", "us")
    assert (alone["run_group"], alone["sweep_id"]) == (None, None)


def test_an_agents_run_holds_the_repeats_of_its_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, run = WandbSettings(mode="offline"), Run(tmp_path / "digits_edm-1")
    evaluated = []
    for seed, value in enumerate((5.0, 6.0, 8.5)):
        folder = run.evaluations / f"Heun-{seed}"
        folder.mkdir(parents=True)
        result = result_of(seed, float(seed), fd_digits=value) | {"standard_errors": {"fd_digits": 0.3}}
        evaluated.append((result, folder))
    under_an_agent(monkeypatch, tmp_path, "trial9", **{"evaluation.num_repeats": 3})
    results, folders = zip(*evaluated, strict=True)
    for _ in range(2):
        Tracking(settings).log(LoggedEvaluation(run, results, folders, {"model": EDM}))
    (path,) = wandb_runs(tmp_path)
    read = json.loads(read_back(path, "--summary"))
    assert read["name"] == "EDM Heun nfe 35 seeds 0 to 2, digits_edm-1"
    found = {name: value for name, value in read["summary"].items() if not name.startswith("_")}
    assert found["fd_digits"] == 6.5
    assert found["fd_digits_std_over_seeds"] == pytest.approx(statistics.stdev([5.0, 6.0, 8.5]))
    assert [found[f"fd_digits_seed_{seed}"] for seed in range(3)] == [5.0, 6.0, 8.5]
    assert found["fd_digits_standard_error"] == pytest.approx(0.3 / 3**0.5)
    assert (found["nfe"], found["sampling_seconds"], found["device"]) == (35.0, 1.0, "cpu")
    assert [(folder / "wandb_runs").read_text() for _, folder in evaluated] == ["trial9\n"] * 3


def test_where_an_agents_runs_go_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    under_an_agent(monkeypatch, tmp_path, "trial")
    Tracking(WandbSettings(mode="online", project="ours")).announce(tmp_path)
    assert capsys.readouterr().out == "W&B: online, project theirs\n"


def test_an_evaluation_is_logged_with_the_sampler_it_used(tmp_path: Path) -> None:
    """Of a configuration that names none: the model's own, with its settings."""
    settings = WandbSettings(mode="offline")
    run = Run(tmp_path / "digits_edm-1")
    floors = {"train": {"num_images": 24, "scores": {"fd_digits": 0.25}, "standard_errors": {}}}
    score(run, settings, seed=2, standard_errors={"fd_digits": 0.5}, floors=floors)
    (path,) = wandb_runs(tmp_path)
    summary = json.loads(read_back(path, "--summary"))
    assert summary["summary"]["fd_digits_standard_error"] == 0.5
    assert summary["summary"]["fd_digits_of_train_images"] == 0.25
    assert summary["config"]["sampler"] == HEUN and "settings" not in summary["config"]
    assert summary["name"] == "EDM Heun nfe 35 seed 2, digits_edm-1"


@pytest.mark.parametrize(
    ("result", "name"),
    [
        ({"sampler": {"name": "RK45"}, "nfe": 61.25, "weights": "ema", "seed": 7}, "EDM RK45 nfe 61.25 seed 7, r"),
        ({"sampler": HEUN, "nfe": 35, "weights": "ema:0.1", "seed": 0}, "EDM Heun nfe 35 ema:0.1 weights seed 0, r"),
        ({"sampler": None, "nfe": 1.0, "weights": "raw", "seed": 3}, "EDM one pass nfe 1 raw weights seed 3, r"),
    ],
)
def test_the_name_of_an_evaluation(result: dict[str, Any], name: str) -> None:
    assert evaluation_name("r", result | {"model": "EDM"}) == name


def tables(folder: Path) -> dict[str, dict[str, Any]]:
    """The tables of an offline run by key, as W&B shows them."""
    return {
        path.name.rpartition("_")[0].rpartition("_")[0]: json.loads(path.read_text())
        for path in folder.glob("files/media/table/*.json")
    }


def artifacts(folder: Path) -> dict[tuple[str, str], list[str]]:
    """The files of each artifact of an offline run, by type and name; all of them are kept in the run directory."""
    found = [record["artifact"] for record in records_of(folder) if record["type"] == "artifact"]
    entries = [entry for each in found for entry in each["manifest"]["contents"]]
    assert all(Path(entry["local_path"]).is_relative_to(folder.parent) for entry in entries)
    assert all(Path(entry["local_path"]).is_file() for entry in entries)
    return {(each["type"], each["name"]): [entry["path"] for entry in each["manifest"]["contents"]] for each in found}


def test_tables_of_samples_and_a_chart_of_distance_against_nfe(tmp_path: Path) -> None:
    """Of three evaluations: two of one sampler, and one of another protocol that is no point of their curve."""
    settings, run = WandbSettings(mode="offline", artifacts=["reference"]), Run(tmp_path / "digits_edm-1")
    statistics = tmp_path / "digits-train-net-0123.npz"
    statistics.write_bytes(b"moments")
    for seed, (nfe, num_samples) in enumerate([(35.0, 24), (17.0, 24), (9.0, 48)]):
        result = {
            **{"model": "EDM", "sampler": HEUN, "nfe": nfe, "weights": "ema", "seed": seed, "run": {"name": "r"}},
            **{"protocol": {"num_samples": num_samples}, "metrics": {"fd_digits": nfe / 2}, "timing": {}},
        }
        folder = run.evaluations / f"Heun-{seed}"
        folder.mkdir(parents=True)
        Image.new("L", (8, 8)).save(folder / "samples.png")
        (folder / "result.json").write_text(json.dumps(result))
        Tracking(settings).log(LoggedEvaluation(run, [result], [folder], {"model": EDM}), [statistics])
        damaged = {
            "protocol": {"num_samples": num_samples},
            "weights": "ema",
            "nfe": 1.0,
            "metrics": {"fd_digits": 1.0},
        }
        (run.evaluations / "damaged").mkdir(exist_ok=True)
        (run.evaluations / "damaged" / "result.json").write_text(json.dumps(damaged))
    found = {json.loads(read_back(path, "--summary"))["summary"]["nfe"]: path for path in wandb_runs(tmp_path)}
    second = tables(found[17.0])
    assert second["distance_vs_nfe_table"] == {
        "columns": ["sampler", "nfe", "fd_digits"],
        "data": [["EDM Heun Karras", 17.0, 8.5], ["EDM Heun Karras", 35.0, 17.5]],
    }
    (row,) = second["samples_by_sampler"]["data"]
    named = dict(zip(second["samples_by_sampler"]["columns"], row, strict=True))
    assert {key: named[key] for key in ("model", "sampler", "nfe", "seed", "fd_digits", "run")} == {
        **{"model": "EDM", "sampler": "Heun", "nfe": 17.0, "seed": 1, "fd_digits": 8.5, "run": "digits_edm-1"}
    }
    assert tables(found[9.0])["distance_vs_nfe_table"]["data"] == [["EDM Heun Karras", 9.0, 4.5]]
    kept = artifacts(found[17.0])
    assert kept["reference", "digits-train-net-0123"] == ["digits-train-net-0123.npz"]
    (pictured,) = (paths for (_, name), paths in kept.items() if name.endswith("samples_by_sampler"))
    assert any(path.endswith("samples.png") for path in pictured)
    axes = [record["metric"] for record in records_of(found[9.0]) if record["type"] == "metric"]
    assert ("*", "nfe") in [(axis.get("glob_name"), axis.get("step_metric")) for axis in axes]


def test_wandb_hears_of_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    words = offline(tmp_path, "--model.optimizer.lr=1e30", "--wandb.artifacts=[checkpoint]")
    with pytest.raises(DivergedError):
        commands.fit(words)
    (path,) = wandb_runs(tmp_path)
    (alert,) = (record["alert"] for record in records_of(path) if record["type"] == "alert")
    assert (alert["level"], alert["title"]) == ("ERROR", "training diverged")
    assert alert["text"].startswith(path.parents[1].name) and "lower the learning rate" in alert["text"]
    assert exit_codes(tmp_path) == [1]
    assert not artifacts(path), "those of a finished run alone"


def exit_codes(tmp_path: Path) -> list[int]:
    """Of each session of a W&B run, as it is shown there: 0 finished, anything else crashed."""
    sessions = (inspect(path)[1] for path in wandb_runs(tmp_path))
    return [record["exit"].get("exit_code", 0) for records in sessions for record in records if "exit" in record]


def test_wandb_shows_a_training_that_failed_as_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = offline(tmp_path, "--trainer.callbacks=tests.interrupt.Interrupt", "--checkpoint.every=256")
    monkeypatch.setenv(KILL_AT, "raise:7")
    with pytest.raises(CrashError):
        commands.fit(words)
    assert exit_codes(tmp_path) == [1]
    monkeypatch.delenv(KILL_AT)
    commands.fit(words)
    assert exit_codes(tmp_path) == [1, 0]


def test_an_evaluation_that_was_killed_before_wandb_had_it_is_logged_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise CrashError

    with monkeypatch.context() as patch:
        patch.setattr("lit_gen.runs.tracking.Tracking.log", killed)
        with pytest.raises(CrashError):
            commands.run(offline(tmp_path))
    assert len(wandb_runs(tmp_path)) == 1, "the training"
    for _ in range(2):  # logged, and then not again
        result = commands.run(offline(tmp_path))
        assert len(wandb_runs(tmp_path)) == 2
    (logged,) = (result.parent / "wandb_runs").read_text().split()
    summary, _ = inspect(wandb_runs(tmp_path)[1])
    assert wandb_runs(tmp_path)[1].name.endswith(logged) and "fd_digits" in json.dumps(summary)
    # the run that an agent began for its trial would stay empty otherwise
    monkeypatch.setenv("WANDB_RUN_ID", "agentsrun")
    for _ in range(2):
        commands.run(offline(tmp_path))
        assert len(wandb_runs(tmp_path)) == 3
    assert (result.parent / "wandb_runs").read_text().split() == [logged, "agentsrun"]


def test_mode_is_offline_without_an_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert WandbSettings().resolved_mode() == "offline"
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password 0123456789\n")
    assert WandbSettings().resolved_mode() == "online"
    (tmp_path / "netrc").unlink()
    monkeypatch.setenv("WANDB_API_KEY", "0123456789")
    assert WandbSettings().resolved_mode() == "online"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert WandbSettings().resolved_mode() == "offline"
    assert WandbSettings(mode="disabled").resolved_mode() == "disabled"


def test_csv_grows_columns_and_forgets_what_is_trained_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    log = MetricsFile(path)
    log.log_metrics({"a": 1.0}, 64)
    log.log_metrics({"a": 2.0, "b": 5.0}, 128)
    log.log_metrics({"b": 6.0}, 192)
    with path.open() as file:
        assert list(csv.DictReader(file)) == [
            {"images": "64", "a": "1.0", "b": ""},
            {"images": "128", "a": "2.0", "b": "5.0"},
            {"images": "192", "a": "", "b": "6.0"},
        ]
    again = MetricsFile(path)
    again.resume(128)
    again.log_metrics({"a": 9.0}, 192)
    with path.open() as file:
        assert [(row["images"], row["a"]) for row in csv.DictReader(file)] == [
            ("64", "1.0"),
            ("128", "2.0"),
            ("192", "9.0"),
        ]
