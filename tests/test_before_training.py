"""Mistakes that can be known before a training leave no run directory behind, and train nothing else first."""

import re
from pathlib import Path

import pytest

from lit_gen.cli import main
from tests.conftest import ROOT, arguments

STAGE = f"--first_stage.run={ROOT / 'tests' / 'tiny_vqvae.yaml'}"
TEACHER = ["--reflow.teacher={teacher}"]


@pytest.mark.parametrize(
    ("model", "words", "says"),
    [
        ("VAE", ["--data.batch_size=1443"], "data.batch_size is 1443, but digits has 1442 .*; choose at most 1442"),
        ("VAE", ["--data.num_val=1379"], "data.batch_size is 64, but digits has 63 training images"),
        ("VAE", ["--data.num_val=1442"], "data.num_val is 1442, but digits has only 1442 training images"),
        ("VAE", ["--data.batch_size=62", "--trainer.devices=4"], "62 .* 4 processes cannot share equally"),
        ("VAE", ["--trainer.accumulate_grad_batches=5"], "accumulate_grad_batches = 5 cannot split equally"),
        ("VAE", ["--trainer.devices=4", "--trainer.accumulate_grad_batches=32"], "choose a multiple of 128"),
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
        ("TokenPrior", [STAGE, "--trainer.limit_train_batches=0.01"], "trainer.limit_train_batches: 0.01"),
        ("TokenPrior", [STAGE, "--data.batch_size=2000"], "data.batch_size is 2000"),
        ("RectifiedFlow", [*TEACHER, "--reflow.num_pairs=63"], "data.batch_size is 64, but digits has 63"),
        ("RectifiedFlow", [*TEACHER, "--data.num_val=9", "--reflow.num_pairs=9"], "only 9 pairs"),
        ("RectifiedFlow", [*TEACHER, "--data.flip=true"], "data.flip: a flipped image"),
    ],
    ids=lambda value: " ".join(value).removeprefix("--")[-60:] if isinstance(value, list) else "",
)
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
