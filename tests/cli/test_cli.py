"""The verbs as a user meets them: what they print, what they write, and what they say of bad input."""

import json
import pickle
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from lit_gen.cli import commands
from lit_gen.cli.main import main
from lit_gen.runs.directory import Run
from tests.conftest import arguments
from tests.interrupt import KILL_AT

pytestmark = pytest.mark.slow
"""End-to-end runs; the gate runs them."""

FIT = ["fit", "--model=DDPM", "--data.source=Digits"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return commands.fit(arguments("EDM", tmp_path_factory.mktemp("runs"), 128))


@pytest.fixture(scope="module")
def trained_vae(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return commands.fit(arguments("VAE", tmp_path_factory.mktemp("runs"), 128))


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a failing command says: one line, exit code 2, no traceback."""
    capsys.readouterr()
    assert main(words) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("lit-gen: error: ")
    print(error)
    return error


def test_a_run_holds_everything(trained: Run) -> None:
    assert trained.finished
    metadata = trained.metadata
    assert metadata["images_seen"] == 128
    assert len(metadata["data"]["fingerprint"]) == 64
    assert metadata["packages"]["torch"] == torch.__version__.split("+")[0] or "+" in metadata["packages"]["torch"]
    assert {"git_commit", "git_dirty", "device", "python", "platform", "training_seconds"} <= metadata.keys()
    assert (trained.directory / "metrics.csv").is_file()
    checkpoint = torch.load(trained.checkpoint, weights_only=True)
    assert checkpoint["ema"]["weights"].keys() == dict(checkpoint_network(checkpoint)).keys()
    assert not any("feature" in key for key in checkpoint["state_dict"])


def checkpoint_network(checkpoint: dict) -> list[tuple[str, torch.Tensor]]:
    return [(key.removeprefix("network."), value) for key, value in checkpoint["state_dict"].items()]


def test_a_finished_training_is_not_repeated(trained: Run, capsys: pytest.CaptureFixture[str]) -> None:
    before = trained.checkpoint.stat().st_mtime_ns
    assert commands.fit(arguments("EDM", trained.directory.parent, 128)) == trained
    assert "finished" in capsys.readouterr().out
    assert trained.checkpoint.stat().st_mtime_ns == before


@pytest.mark.slow
def test_the_sampler_of_the_command_line_wins(trained: Run) -> None:
    paths = [
        commands.evaluate([str(trained.directory), "--sampler", sampler, "--sampler.steps", "5"])
        for sampler in ("DDPM", "DDIM", "Heun")
    ]
    assert len(set(paths)) == 3
    results = [json.loads(path.read_text()) for path in paths]
    assert [result["sampler"]["name"] for result in results] == ["DDPM", "DDIM", "Heun"]
    assert [result["nfe"] for result in results] == [5, 5, 9]
    images = [np.load(path.with_name("samples.npz"))["images"] for path in paths]
    for one, other in ((0, 1), (1, 2), (0, 2)):
        assert not np.array_equal(images[one], images[other])


def test_an_evaluation_is_computed_once_and_is_exactly_n(trained: Run, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(trained.directory), "--sampler=DDIM", "--sampler.steps=2", "--evaluation.num_samples=21"]
    path = commands.evaluate(words)
    stamp = path.stat().st_mtime_ns
    assert commands.evaluate(words) == path
    assert "computed before" in capsys.readouterr().out
    assert path.stat().st_mtime_ns == stamp
    result = json.loads(path.read_text())
    assert result["protocol"]["num_samples"] == 21
    assert np.load(path.with_name("samples.npz"))["images"].shape == (21, 1, 8, 8)
    assert {"data_fingerprint", "split", "num_real", "feature_net_version", "resize"} <= result["protocol"].keys()
    raw = commands.evaluate([*words, "--evaluation.weights=raw"])
    assert raw != path


def test_batch_size_changes_no_image(trained: Run) -> None:
    words = [str(trained.directory), "--sampler=Heun", "--sampler.steps=4", "--evaluation.num_samples=24"]
    one = commands.evaluate([*words, "--evaluation.batch_size=5"])
    images = np.load(one.with_name("samples.npz"))["images"]
    first = json.loads(one.read_text())["metrics"]["fd_digits"]
    one.unlink()
    other = commands.evaluate([*words, "--evaluation.batch_size=24"])
    assert np.abs(np.load(other.with_name("samples.npz"))["images"].astype(int) - images).max() <= 1
    assert json.loads(other.read_text())["metrics"]["fd_digits"] == pytest.approx(first, rel=1e-3)


@pytest.mark.parametrize("words", [["evaluate"], ["sample", "-n", "4"], ["reflow"], ["ema", "--std=0.1"]], ids=" ".join)
def test_a_pattern_that_matches_several_runs_is_refused_in_one_line(words: list[str], capsys) -> None:
    """As the shell fills in runs/*: the first two are named, and how to do them all."""
    verb, runs = words[0], ["runs/a", "runs/b", "runs/c"]
    loop = f'for run in runs/a runs/b; do lit-gen {verb} "$run" ...; done'
    for given, more in ((runs[:2], ""), (runs, " and 1 more")):
        assert said(capsys, *words, *given) == (
            f"lit-gen: error: RUN: lit-gen {verb} takes one run at a time, not runs/a and runs/b{more}; "
            f"do several one after another: {loop}"
        )
    assert "runs/a: not a run directory" in said(capsys, *words, "runs/a")


def test_sample_writes_grid_archive_and_folder(trained: Run, tmp_path: Path) -> None:
    run = str(trained.directory)
    more = ["--seed", "3", "--sampler=DDIM", "--sampler.steps=3"]
    assert main(["sample", run, "-n", "9", "--out", str(tmp_path / "grid.png"), *more]) == 0
    assert main(["sample", run, "-n", "9", "--out", str(tmp_path / "all.npz"), *more, "--batch-size", "4"]) == 0
    assert main(["sample", run, "-n", "4", "--first", "5", "--out", str(tmp_path / "folder"), *more]) == 0
    images = np.load(tmp_path / "all.npz")["images"]
    assert images.shape == (9, 1, 8, 8) and images.dtype == np.uint8
    files = sorted((tmp_path / "folder").iterdir())
    assert [path.name for path in files] == ["00005.png", "00006.png", "00007.png", "00008.png"]
    singles = [np.asarray(Image.open(path)) for path in files]
    assert np.abs(np.stack(singles).astype(int) - images[5:, 0]).max() <= 1
    assert Image.open(tmp_path / "grid.png").size[0] > 3 * 32


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "columns"), [(["--sampler=DDIM", "--sampler.steps=3"], 4), (["--sampler=RK45", "--sampler.rtol=1"], 10)]
)
def test_sample_draws_trajectories(trained: Run, tmp_path: Path, capsys, sampler: list[str], columns: int) -> None:
    """A row for each image, from noise to the image that was drawn beside; the images are the same with it."""
    run, path = str(trained.directory), tmp_path / "figures" / "trajectory.png"
    words = ["sample", run, "-n", "5", "--batch-size", "3", *sampler]
    assert main([*words, "--out", str(tmp_path / "plain.npz")]) == 0
    assert main([*words, "--out", str(tmp_path / "all.npz"), "--trajectory", str(path)]) == 0
    assert f"-> {path}" in capsys.readouterr().out
    images = np.load(tmp_path / "all.npz")["images"]
    assert np.array_equal(images, np.load(tmp_path / "plain.npz")["images"])
    tiles = np.asarray(Image.open(path))[..., 0]
    assert tiles.shape == (3 * 34 + 2, columns * 34 + 2)  # of the first batch
    ends = np.stack([tiles[2 + 34 * row :, 2 + 34 * (columns - 1) :][:32:4, :32:4] for row in range(3)])
    assert np.array_equal(ends, images[:3, 0])
    starts = np.stack([tiles[2 + 34 * row :, 2:][:32:4, :32:4] for row in range(3)])
    assert np.abs(starts.astype(int) - ends).mean() > 30
    assert main([*words, "--trajectory", str(tmp_path / "trajectory.gif")]) == 2


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([*FIT, "--sampler=DDIM", "--sampler.steps=2", "--sampler.nfe=3"], "not both"),
        (["evaluate", "nowhere"], "nowhere: not a run directory"),
        (["sample"], "RUN: missing; give a run directory"),
        (["leaderboard", "nowhere"], "nowhere"),
        (["sweep", "nowhere.yaml"], "nowhere.yaml"),
        ([*FIT, "--budget.num_images=0"], "budget.num_images"),
        (
            ["run", "--model=WGAN", "--data.source=Digits", "--sampler=DDIM"],
            "WGAN does not support DDIM; choose one of Truncation",
        ),
        (["run", "--model=VAE", "--data.source=Digits", "--sampler=DDIM"], "of GaussianMixturePrior, Temperature"),
        ([*FIT, "--evaluation.num_samples=1"], "evaluation.num_samples"),
        ([*FIT, "--data.batch_size=9999"], "data.batch_size"),
        (["fit", "--model=DDPM", "--data.source=FashionMNIST", "--data.source.root=nowhere"], "dataset-fashion-mnist"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    if words[0] in ("fit", "run") and "--model=DDPM" in words:
        words = [*words, "--model.network=UNet", "--model.network.channel_mult=[1]", "--wandb.mode=disabled"]
        words += [] if "--data.source=FashionMNIST" not in words else ["--data.source.download=false"]
    assert named in said(capsys, *words)


def test_settings_of_the_training_cannot_be_changed_afterwards(
    trained: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model.sigma_data=1", "--model.network.channels=32", "--ema.decay=0.5", "--data.batch_size=32"]
    error = said(capsys, "evaluate", str(trained.directory), *words)
    keys = error.removeprefix("lit-gen: error: ").partition(": ")[0].split(", ")
    network = "model.init_args.network.init_args.channels"
    assert set(keys) == {"model.init_args.sigma_data", network, "ema.decay", "data.batch_size"}


def test_a_sampler_for_a_vae_is_refused(trained_vae: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert "VAE" in said(capsys, "evaluate", str(trained_vae.directory), "--sampler=DDIM", "--sampler.steps=3")


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named(trained_vae: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = tmp_path / "run"
    (damaged / "checkpoints").mkdir(parents=True)
    for name in ("config.yaml", "run.json"):
        (damaged / name).write_bytes((trained_vae.directory / name).read_bytes())
    whole = trained_vae.checkpoint.read_bytes()
    for content in (whole[:5000], b"not a checkpoint", pickle.dumps(damaged), b""):
        (damaged / "checkpoints/last.ckpt").write_bytes(content)
        assert said(capsys, "evaluate", str(damaged)) == (
            f"lit-gen: error: {damaged}/checkpoints/last.ckpt: not a readable checkpoint (damaged, or not of lit-gen); "
            "delete it and train again"
        )


def test_a_checkpoint_of_another_network_is_named(
    trained_vae: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "run"
    (other / "checkpoints").mkdir(parents=True)
    (other / "run.json").write_bytes((trained_vae.directory / "run.json").read_bytes())
    (other / "checkpoints/last.ckpt").write_bytes(trained_vae.checkpoint.read_bytes())
    config = (trained_vae.directory / "config.yaml").read_text()
    (other / "config.yaml").write_text(config.replace("latent_dim: 4", "latent_dim: 6"))
    assert "does not fit the model" in said(capsys, "evaluate", str(other))


def test_weights_that_are_no_numbers_end_the_run_and_keep_the_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = arguments("EDM", tmp_path, 64 * 30, "--model.optimizer=SGD", "--checkpoint.every=64")
    error = said(capsys, "fit", *words, "--model.optimizer.lr=1e30", "--trainer.log_every_n_steps=3")
    assert "keeps the last good weights" in error
    assert "lower the learning rate, set --trainer.gradient_clip_val" in error
    (checkpoint,) = tmp_path.glob("*/checkpoints/last.ckpt")
    weights = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert all(torch.isfinite(value).all() for value in weights.values())


def test_inception_without_its_weights_says_where_to_get_them(
    trained: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    missing = tmp_path / "inception.pth"
    error = said(
        capsys,
        *("evaluate", str(trained.directory), "--evaluation.feature_net=Inception"),
        f"--evaluation.feature_net.weights={missing}",
    )
    assert str(missing) in error and "https://" in error


@pytest.mark.slow
def test_images_of_one_class(trained: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those of the indices that would have had the class anyway stay as they are."""
    steep = ["--model.class_conditional=true", "--model.warmup=0", "--model.optimizer.lr=0.01"]
    run = commands.fit(arguments("DDPM", tmp_path / "runs", 64 * 5, *steep))
    assert run.metadata["title"] == "DDPM, class-conditional" and trained.metadata["title"] == "EDM"
    words = ["sample", str(run.directory), "-n", "15", "--first", "2", "--weights", "raw", "--sampler=DDIM"]
    words.append("--sampler.steps=2")
    assert main([*words, "--out", str(tmp_path / "all.npz")]) == 0
    assert main([*words, "--out", str(tmp_path / "one.npz"), "--label", "3", "--batch-size", "6"]) == 0
    each, one = np.load(tmp_path / "all.npz"), np.load(tmp_path / "one.npz")
    assert each["labels"].tolist() == [index % 10 for index in range(2, 17)] and one["labels"].tolist() == [3] * 15
    same = [np.abs(x.astype(int) - y).max() <= 1 for x, y in zip(each["images"], one["images"], strict=True)]
    assert same == [index % 10 == 3 for index in range(2, 17)]
    assert "--label: 10 is not a class" in said(capsys, *words, "--label", "10")
    assert "--label: " in said(capsys, "sample", str(trained.directory), "--label", "3")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["interrupt", "terminate"])
def test_interrupted_training_is_resumable(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal before any checkpoint was due: exit code 130, and the same command goes on from the batch it came at."""
    words = arguments("EDM", tmp_path, 64 * 30, "--trainer.callbacks=tests.interrupt.Interrupt")
    own = signal.getsignal(signal.SIGTERM)
    monkeypatch.setenv(KILL_AT, f"{how}:7")
    assert main(["fit", *words]) == 130
    (checkpoint,) = tmp_path.glob("*/checkpoints/last.ckpt")
    assert torch.load(checkpoint, weights_only=True)["images_seen"] == 64 * 8
    assert signal.getsignal(signal.SIGTERM) == own, "it ends the process again"
    monkeypatch.delenv(KILL_AT)
    run = commands.fit(words)
    assert run.finished and run.metadata["images_seen"] == 64 * 30


@pytest.mark.slow
def test_the_readmes_evaluation_works_whatever_sampler_the_run_began_with(tmp_path: Path) -> None:
    words = arguments("EDM", tmp_path, 64, "--sampler=DDPM", "--sampler.nfe=3", "--sampler.grid=Uniform")
    first = commands.run(words)
    run = str(first.parents[2])
    result = json.loads(commands.evaluate([run, "--sampler", "Heun", "--sampler.steps", "3"]).read_text())
    assert result["sampler"]["grid"]["name"] == "Karras" and result["nfe"] == 5
    result = json.loads(commands.evaluate([run, "--sampler=DDIM"]).read_text())
    assert result["sampler"]["steps"] == 50
    own = json.loads(commands.evaluate([run]).read_text())
    assert own["sampler"]["name"] == "Heun" and own["sampler"]["steps"] == 18


def test_what_is_missing_is_said_before_the_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An evaluation that cannot be made leaves no training behind."""
    words = arguments("RectifiedFlow", tmp_path, 64)
    missing = f"--evaluation.feature_net.weights={tmp_path / 'none.safetensors'}"
    assert "none.safetensors" in said(capsys, "run", *words, "--evaluation.feature_net=DigitsFeatures", missing)
    unsuitable = ["--sampler=Heun", "--sampler.steps=3", "--sampler.grid=Uniform"]
    assert "grid" in said(capsys, "run", *words, *unsuitable)
    assert not list(tmp_path.glob("*/run.json"))


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("--trainer.strategy=foo", "foo"),
        ("--trainer.accelerator=tpu", "trainer"),
        ("--evaluation.num_kept=0", "evaluation.num_kept"),
        ("--evaluation.inception_splits=0", "evaluation.inception_splits"),
        ("--model.warmup=-1", "model.warmup"),
        ("--model.optimizer.lr=-1", "model.optimizer: Invalid learning rate: -1.0; choose another value"),
        ("--ema.decay=1.5", "ema.decay"),
    ],
)
def test_values_that_cannot_be_are_refused(
    word: str, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert named in said(capsys, "run", *arguments("EDM", tmp_path, 64, word))
    assert not list(tmp_path.glob("*/run.json"))


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["sample", "run", "--first", "-5"], "--first: -5 is not an index"),
        (["sample", "run", "--out", ""], "--out: no file or folder is named"),
        (["leaderboard", "--figure", "plot.jpg"], "--figure: plot.jpg does not end in .png"),
    ],
)
def test_options_that_cannot_be_are_refused_before_a_run_is_looked_for(
    words: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert named in said(capsys, *words)


SPLINE = "--model.coupling=Spline"


@pytest.mark.parametrize(
    ("family", "words"),
    [
        ("MADE", ["--model.network.dropout=2"]),
        ("VAE", ["--model.latent_dim=0"]),
        ("VQVAE", ["--model.latent_dim=-3"]),
        ("RealNVP", [SPLINE, "--model.coupling.num_bins=0"]),
        ("Glow", [SPLINE, "--model.coupling.num_bins=1000"]),
        ("RealNVP", [SPLINE, "--model.coupling.reach=-1"]),
        ("Glow", ["--model.coupling=Affine", "--model.coupling.bound=0"]),
    ],
    ids=lambda words: words if isinstance(words, str) else words[-1],
)
def test_settings_of_a_likelihood_are_named_in_one_line(
    family: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key, value = words[-1].removeprefix("--").split("=")
    error = said(capsys, "fit", *arguments(family, tmp_path, 64, *words))
    assert re.match(rf"lit-gen: error: {key}: {value}(\.0)? is not ", error)
    assert not list(tmp_path.iterdir())


def test_a_trial_batch_is_not_taken_for_the_training(tmp_path: Path) -> None:
    tried = commands.fit(arguments("EDM", tmp_path, 128, "--trainer.fast_dev_run=true"))
    run = commands.fit(arguments("EDM", tmp_path, 128))
    assert run != tried and run.metadata["images_seen"] == 128


@pytest.mark.slow
def test_run_and_evaluate_score_the_same_model(tmp_path: Path) -> None:
    """A training in one data type leaves its object in that type; what is scored is built anew from the checkpoint."""
    sampler = ["--sampler=DDIM", "--sampler.steps=3"]
    words = arguments("RectifiedFlow", tmp_path, 640, "--trainer.precision=bf16-true")
    path = commands.run([*words, *sampler])
    metrics, images = json.loads(path.read_text())["metrics"], np.load(path.with_name("samples.npz"))["images"]
    path.unlink()
    assert commands.evaluate([str(path.parents[2]), *sampler]) == path
    assert json.loads(path.read_text())["metrics"] == metrics
    assert np.array_equal(np.load(path.with_name("samples.npz"))["images"], images)


def test_a_step_of_no_parts_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = said(capsys, "fit", *arguments("VAE", tmp_path, 64, "--trainer.accumulate_grad_batches=0"))
    assert "trainer.accumulate_grad_batches: 0 is not a number of micro-batches; give 1 or more" in error
    assert not list(tmp_path.glob("*/run.json"))


@pytest.mark.parametrize("word", ["--optimizer=SGD", "--optimizer.lr=1", "--lr_scheduler=ConstantLR"])
def test_the_optimizers_of_a_gan_cannot_be_overridden(
    word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"{word}: no such key" in said(capsys, "fit", *arguments("WGAN", tmp_path, 64, word))


def test_a_configuration_is_saved_in_its_run_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = commands.fit(arguments("VAE", Path("runs"), 64))
    saved, stamp = first.config.read_bytes(), first.config.stat().st_mtime_ns
    second = commands.fit(arguments("VAE", Path("runs"), 64, "--seed_everything=1"))
    first.update(status="training")  # as if it had been killed
    commands.run(arguments("VAE", Path("runs"), 64, "--wandb.project=other", "--evaluation.num_samples=20"))
    assert (first.config.read_bytes(), first.config.stat().st_mtime_ns) == (saved, stamp)
    assert [yaml.safe_load(run.config.read_text())["seed_everything"] for run in (first, second)] == [0, 1]
    assert set(Path().rglob("*.yaml")) == {first.config, second.config}


def test_settings_that_wandb_refuses_are_named(tmp_path: Path, lit_gen) -> None:
    """In a process of its own, since W&B reads its environment once."""
    words = [word for word in arguments("VAE", tmp_path, 64) if "wandb" not in word]
    done = lit_gen("fit", *words, "--wandb.mode=offline", WANDB_SILENT="")
    assert done.returncode == 2
    assert "wandb: 1 validation error for Settings silent" in done.stderr.splitlines()[-1]


def test_budgets_are_whole_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    error = said(capsys, "leaderboard", "--budgets", "5,ten")
    assert "--budgets: 5,ten is not a list of whole numbers such as 5,10,20; lit-gen leaderboard --help" in error


def test_an_option_of_sample_that_lacks_its_end_is_refused(
    trained: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "samples.png"
    advice = "--weight=raw: no such key; did you mean --weights?"
    assert advice in said(capsys, "sample", str(trained.directory), f"--out={out}", "--weight=raw")
    assert not out.exists()
