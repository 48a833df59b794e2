"""The length of a training."""

import json
import re
import time
from pathlib import Path

import pytest
import torch
import yaml

from lit_gen.cli import commands
from lit_gen.core.errors import UserError
from lit_gen.runs.directory import Run
from lit_gen.training.callbacks import BudgetSettings
from tests.conftest import DIGITS, TINY, TINY_FIRST_STAGE


def words(tmp_path: Path, *more: str) -> list[str]:
    return [*TINY["VAE"], *DIGITS, f"--run.root={tmp_path}", *more]


@pytest.mark.parametrize(("settings", "key"), [({"num_images": 0}, "num_images"), ({"seconds": 0.0}, "seconds")])
def test_there_is_no_empty_budget(settings: dict[str, float], key: str) -> None:
    with pytest.raises(UserError, match=rf"budget\.{key}: 0 is not a positive"):
        BudgetSettings(**settings)  # type: ignore[arg-type]


def test_images_end_a_training(tmp_path: Path) -> None:
    run = commands.fit(words(tmp_path, "--data.batch_size=48", "--budget.num_images=100"))
    assert run.metadata["images_seen"] == 144  # the first multiple of a batch from there on


def test_seconds_end_a_training(tmp_path: Path) -> None:
    begin = time.perf_counter()
    run = commands.fit(words(tmp_path, "--budget.seconds=1.5", "--budget.num_images=1000000000"))
    assert run.finished
    assert 1.5 <= run.metadata["training_seconds"] <= time.perf_counter() - begin
    state = torch.load(run.checkpoint, weights_only=True)["callbacks"]["Budget"]
    assert 1.5 <= state["elapsed"] <= run.metadata["training_seconds"]
    assert 0 < run.metadata["images_seen"] < 1_000_000_000


def test_seconds_before_an_interruption_count(tmp_path: Path) -> None:
    given = words(tmp_path, "--budget.seconds=1.5", "--budget.num_images=1000000000")
    run = commands.fit(given)
    images = run.metadata["images_seen"]
    run.update(status="running")  # as one that was stopped just before its end
    assert commands.fit(given).metadata["images_seen"] - images in range(0, 100)  # one more batch at the most


@pytest.mark.slow
def test_the_time_of_the_first_stage_counts(tmp_path: Path) -> None:
    """Two stages have what a family of one has: all of its seconds, together."""
    tiny = [*TINY["TokenPrior"], *DIGITS, *TINY_FIRST_STAGE, f"--run.root={tmp_path}"]
    run = commands.fit([*tiny, "--budget.num_images=64"])
    first = next(Run.open(path.parent) for path in tmp_path.glob("*/config.yaml") if path.parent != run.directory)
    spent = first.metadata["training_seconds"]
    assert run.metadata["earlier_seconds"] == spent
    assert run.metadata["earlier_flops"] == first.metadata["training_flops"] > run.metadata["training_flops"] > 0
    with pytest.raises(UserError, match=rf"budget\.seconds: {re.escape(f'{spent / 2:g}')} s are less than the"):
        commands.fit([*tiny, f"--budget.seconds={spent / 2}"])
    assert len([*tmp_path.glob("*/run.json")]) == 2, "no run is left of it"
    run = commands.fit([*tiny, f"--budget.seconds={spent + 1}", "--budget.num_images=1000000000"])
    elapsed = torch.load(run.checkpoint, weights_only=True)["callbacks"]["Budget"]["elapsed"]
    assert 1 <= elapsed < spent + 1 or spent < 1  # its own share, not all of it


@pytest.mark.slow
def test_seeds_of_one_time_are_one_row(tmp_path: Path) -> None:
    """Though they saw unlike numbers of images."""
    from lit_gen.report import leaderboard, results

    for seed in (0, 1):
        path = commands.run(
            words(tmp_path, "--budget.seconds=0.5", f"--seed_everything={seed}", "--evaluation.num_samples=8")
        )
        result = json.loads(path.read_text())
        result["images_seen"] += seed * 64
        path.write_text(json.dumps(result))
    [row] = leaderboard.rank(results.load_results(tmp_path)).rows
    assert len(row.results) == 2
    config = yaml.safe_load((tmp_path / row.first.get("run.name") / "config.yaml").read_text())
    assert config["budget"] == {"num_images": 1_000_000, "seconds": 0.5}
