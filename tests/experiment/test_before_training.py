"""Mistakes that can be known before a training leave no run directory behind, and train nothing else first."""

import json
import re
from pathlib import Path

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_gen.cli.main import main
from lit_gen.core.errors import UserError
from lit_gen.experiment.parser import ExperimentCLI
from lit_gen.runs.directory import Run
from lit_gen.runs.tracking import WandbSettings, check_account
from tests.conftest import ROOT, arguments

STAGE = f"--first_stage.run={ROOT / 'tests' / 'tiny_vqvae.yaml'}"
TEACHER = ["--reflow.teacher={teacher}"]


class Deadline(Callback):
    """Stops before the first batch, which no setting of the trainer shows."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.should_stop = True


class Broken(Callback):
    """Raises an error of its own in the first batch."""

    def on_train_batch_start(self, *_: object) -> None:
        raise RuntimeError("a metric of mine is not available")


@pytest.fixture
def without_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb"))


@pytest.mark.parametrize(
    ("model", "words", "says"),
    [
        ("VAE", ["--data.batch_size=1443"], "data.batch_size: 1443 .* digits; give at most 1442"),
        ("VAE", ["--data.num_val=1379"], "data.batch_size: 64 exceeds the 63 training images"),
        ("VAE", ["--data.num_val=1442"], "data.num_val: 1442 leaves none of the 1442 .* digits"),
        ("VAE", ["--data.batch_size=62", "--trainer.devices=4"], "data.batch_size: 62 .* give a multiple of 4"),
        ("VAE", ["--trainer.accumulate_grad_batches=5"], "data.batch_size: .* = 5; give a multiple"),
        ("VAE", ["--trainer.devices=4", "--trainer.accumulate_grad_batches=32"], "give a multiple of 128"),
        ("VAE", ["--trainer.val_check_interval=23"], "trainer.val_check_interval: 23 is more than the 22 batches"),
        (
            "VAE",
            ["--trainer.limit_train_batches=5", "--trainer.val_check_interval=6"],
            "trainer.val_check_interval: 6 is more than the 5 batches",
        ),
        ("VAE", ["--trainer.limit_train_batches=0.04"], "trainer.limit_train_batches: 0.04 of 22 .* least 0.045455"),
        ("VAE", ["--data.num_val=90", "--trainer.limit_val_batches=0.4"], "trainer.limit_val_batches: 0.4 of 2"),
        ("VAE", ["--grid.num_samples=-1"], "grid.num_samples: -1"),
        ("VAE", ["--grid.every=-64"], "grid.every: -64"),
        ("VAE", ["--grid.seed=-2"], "grid.seed: -2"),
        ("VAE", ["--checkpoint.every=-1"], "checkpoint.every: -1"),
        ("VAE", ["--trainer.devices=0"], "trainer.devices: 0 leaves no process"),
        ("VAE", ["--trainer.devices=[]"], r"trainer.devices: \[\] leaves no process"),
        ("VAE", ["--trainer.devices=-2"], "trainer.devices: -2 leaves no process"),
        ("VAE", ["--trainer.num_nodes=0"], "trainer.num_nodes: 0 leaves no process"),
        ("VAE", ["--trainer.check_val_every_n_epoch=0"], "trainer.check_val_every_n_epoch: 0"),
        ("VAE", ["--trainer.max_time=00:00:00:00"], "trainer.max_time: 00:00:00:00 trains on nothing"),
        ("VAE", ["--trainer.max_time={{minutes: 0}}"], "trainer.max_time: .* trains on nothing"),
        ("VAE", ["--trainer.max_time=soon"], "trainer.max_time: .*DD:HH:MM:SS"),
        ("VAE", ["--trainer.precision=16-true"], "trainer.precision: 16-true .* bf16-true"),
        (
            "VAE",
            ["--wandb.mode=online"],
            "wandb.mode: online needs a key .*wandb login, or set --wandb.mode offline",
        ),
        ("TokenPrior", [STAGE, "--trainer.max_time=00:00:00:00"], "trainer.max_time"),
        ("TokenPrior", [STAGE, "--trainer.limit_train_batches=0.01"], "trainer.limit_train_batches: 0.01"),
        ("TokenPrior", [STAGE, "--data.batch_size=2000"], "data.batch_size: 2000"),
        ("RectifiedFlow", [*TEACHER, "--reflow.num_pairs=63"], "data.batch_size: 64 exceeds the 63 "),
        ("RectifiedFlow", [*TEACHER, "--data.num_val=9", "--reflow.num_pairs=9"], "data.num_val: 9 pairs .* none of 9"),
        ("RectifiedFlow", [*TEACHER, "--data.flip=true"], "data.flip: a flipped image"),
    ],
    ids=lambda value: " ".join(value).removeprefix("--")[-60:] if isinstance(value, list) else "",
)
@pytest.mark.usefixtures("without_account")
def test_a_mistake_leaves_nothing_behind(
    model: str, words: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = tmp_path / "teacher.yaml"
    teacher.write_text("model: RectifiedFlow\ndata:\n  source: Digits\n")
    root = tmp_path / "runs"
    assert main(["fit", *arguments(model, root, 128, *(word.format(teacher=teacher) for word in words))]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(rf"lit-gen: error: .*{says}", error), error
    assert not root.exists() or not list(root.rglob("*")), "not even a lock"


@pytest.mark.parametrize(
    ("callback", "says"),
    [
        ({"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "nope"}}, "`nope`"),
        (
            {"class_path": "tests.experiment.test_before_training.Deadline"},
            "trainer: the run ended before its first step",
        ),
    ],
    ids=["no such metric", "no time"],
)
def test_what_a_callback_ends_is_said_in_one_line_and_not_finished(
    callback: dict[str, object], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = arguments(
        "VAE", tmp_path, 512, "--data.num_val=90", "--grid.num_samples=0", "--trainer.limit_train_batches=2"
    )
    assert main(["fit", *words, f"--trainer.callbacks={json.dumps([callback])}"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("lit-gen: error: trainer") and says in error, error
    [run] = tmp_path.glob("*/run.json")
    assert not Run(run.parent).finished


@pytest.mark.slow
@pytest.mark.usefixtures("without_account")
def test_an_evaluation_asks_for_the_account_before_it_computes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *arguments("VAE", tmp_path, 128, "--grid.num_samples=0")]) == 0
    [run] = (path.parent for path in tmp_path.glob("*/run.json"))
    assert main(["evaluate", str(run), "--wandb.mode=online"]) == 2
    assert "lit-gen: error: wandb.mode: online needs a key" in capsys.readouterr().err
    assert not list(tmp_path.rglob("result*.json"))
    assert main(["evaluate", str(run)]) == 0
    assert list(tmp_path.rglob("result*.json"))


def test_an_error_in_code_of_your_own_keeps_its_traceback(tmp_path: Path) -> None:
    callback = json.dumps([{"class_path": "tests.experiment.test_before_training.Broken"}])
    with pytest.raises(RuntimeError, match="a metric of mine"):
        main(["fit", *arguments("VAE", tmp_path, 128, f"--trainer.callbacks={callback}")])


@pytest.mark.usefixtures("without_account")
def test_a_key_for_the_server_is_an_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    online = WandbSettings(mode="online")
    (tmp_path / "netrc").write_text("machine wandb.example.org login user password 0123456789\n")
    with pytest.raises(UserError, match="a key for https://api.wandb.ai"):
        check_account(online)
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "settings").write_text("[default]\nbase_url = https://wandb.example.org\n")
    check_account(online)
    monkeypatch.setenv("WANDB_BASE_URL", "https://other.example.org")
    with pytest.raises(UserError, match="a key for https://other.example.org"):
        check_account(online)
    check_account(WandbSettings(mode="offline"))
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    check_account(online)


def test_a_callback_whose_default_is_a_member_of_an_enumeration_is_saved_and_read_back(tmp_path: Path) -> None:
    timer = {"class_path": "lightning.pytorch.callbacks.Timer", "init_args": {"duration": "00:00:10:00"}}
    words = arguments("VAE", tmp_path, 128, "--grid.num_samples=0", f"--trainer.callbacks={json.dumps([timer])}")
    assert main(["fit", *words]) == 0
    [run] = (path.parent for path in tmp_path.glob("*/run.json"))
    saved = ExperimentCLI(["--config", str(run / "config.yaml")]).resolved()["trainer"]["callbacks"]
    assert saved == [{**timer, "init_args": {"duration": "00:00:10:00", "interval": "step", "verbose": True}}]
