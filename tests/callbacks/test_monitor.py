"""Which steps of a training are logged, and with which values."""

import csv
from pathlib import Path
from typing import Any

import pytest

from lit_gen import commands
from lit_gen.models.base import GenerativeModel
from tests.conftest import arguments


def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int) -> tuple[list[float], list[dict[str, str]]]:
    """The losses of 8 steps, and the rows of the CSV file."""
    losses: list[float] = []
    original = GenerativeModel.log_training

    def record(self: GenerativeModel, **values: Any) -> None:
        losses.extend(float(value) for name, value in values.items() if name == "loss")
        original(self, **values)

    monkeypatch.setattr(GenerativeModel, "log_training", record)
    run = commands.fit(arguments("WGAN", tmp_path, 64 * 8, f"--trainer.log_every_n_steps={every}"))
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
