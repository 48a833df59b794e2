"""Which steps of a training are logged, and with which values; where a training stops."""

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lit_gen.cli import commands
from lit_gen.core.errors import UserError
from lit_gen.data import Batch, Digits, ImageDataModule
from lit_gen.families.base import GenerativeModel
from lit_gen.families.diffusion import RectifiedFlow
from lit_gen.training.callbacks import Checkpoint, CheckpointSettings, Monitor
from tests.conftest import arguments
from tests.processes import in_two_processes
from tests.training.test_validation import trainer, two_processes, unet


def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int) -> tuple[list[float], list[dict[str, str]]]:
    """The losses of 8 steps, and the rows of the CSV file."""
    losses: list[float] = []
    original = GenerativeModel.log_training

    def record(self: GenerativeModel, **values: Any) -> None:
        if isinstance(self.trainer, Trainer):  # not the copy that counts operations
            losses.extend(float(value) for name, value in values.items() if name == "loss")
        original(self, **values)

    monkeypatch.setattr(GenerativeModel, "log_training", record)
    words = [f"--trainer.log_every_n_steps={every}", "--grid.num_samples=0"]
    run = commands.fit(arguments("WGAN", tmp_path, 64 * 8, *words))
    path = run.directory / "metrics.csv"
    return losses, list(csv.DictReader(path.open())) if path.is_file() else []


def test_logging_steps_and_the_last_have_the_values_of_their_own_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses, rows = train(tmp_path, monkeypatch, 3)
    assert len(losses) == 8
    assert [int(row["images"]) for row in rows] == [64 * 3, 64 * 6, 64 * 8]
    assert [float(row["train/loss"]) for row in rows] == [losses[2], losses[5], losses[7]]
    # of the generator's step before, where this batch was for the critic alone
    assert all(row["train/generator_loss"] for row in rows)
    assert all(float(row["train/grad_norm_1"]) > 0 for row in rows[:2])


def test_no_step_need_be_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses, rows = train(tmp_path, monkeypatch, 0)
    assert len(losses) == 8
    assert rows == []


class Broken(RectifiedFlow):
    """Its loss is no number in the second process at the third batch."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        if self.global_rank == 1 and self.clock.batches_seen == 3:
            self.log_training(loss=torch.tensor(math.nan))
        return loss


def fail_in_the_second(rank: int, folder: Path) -> None:
    checkpoint = Checkpoint(CheckpointSettings(every=16), folder / "last.ckpt")
    model = Broken(image_shape=(1, 8, 8), network=unet)
    fit = trainer(callbacks=[Monitor(), checkpoint], log_every_n_steps=1, max_steps=6, **two_processes())
    with pytest.raises(UserError) as caught:
        fit.fit(model, datamodule=ImageDataModule(Digits(), batch_size=16))
    (folder / f"{rank}.txt").write_text(str(caught.value))


@pytest.mark.slow
def test_all_processes_stop_where_the_loss_of_one_is_no_number(tmp_path: Path) -> None:
    in_two_processes(fail_in_the_second, tmp_path)
    for rank in range(2):
        said = (tmp_path / f"{rank}.txt").read_text()
        assert said.startswith(
            f"the loss is nan after 48 images; {tmp_path / 'last.ckpt'} keeps the last good weights: lower"
        )
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert checkpoint["images_seen"] == 32
    assert all(torch.isfinite(weight).all() for weight in checkpoint["state_dict"].values())
