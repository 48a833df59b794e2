"""Evaluations during training: the scores of an evaluation, the best checkpoint, kills, processes and families."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_gen.cli import commands
from lit_gen.families.diffusion import UNet
from lit_gen.runs.directory import Run
from tests.behaviour.test_kills import fit
from tests.conftest import arguments
from tests.processes import in_one_process, lit_gen_in_two_processes

pytestmark = pytest.mark.slow
"""End-to-end runs; the gate runs them."""

MONITOR = ["--monitor.every=128", "--monitor.num_samples=24", "--monitor.seed=7"]


def words_of(model: str, root: Path, *more: str, num_batches: int = 6) -> list[str]:
    """A grid and a checkpoint after every third batch, an evaluation after every second."""
    intervals = ["--checkpoint.every=192", "--grid.num_samples=4", "--trainer.log_every_n_steps=1"]
    return arguments(model, root, 64 * num_batches, *intervals, *more)


def run_in(root: Path) -> Run:
    (path,) = (path for path in root.iterdir() if not path.name.startswith("."))
    return Run(path)


def rows(run: Run) -> list[dict[str, str]]:
    with (run.directory / "metrics.csv").open() as file:
        found = list(csv.DictReader(file))
    return [{key: value for key, value in row.items() if key != "train/images_per_second" and value} for row in found]


def scored(run: Run, name: str) -> dict[int, float]:
    """The values of a score against images seen."""
    return {int(row["images"]): float(row[name]) for row in rows(run) if name in row}


def tensors(path: Path) -> dict[str, torch.Tensor]:
    checkpoint: dict[str, Any] = torch.load(path, weights_only=True)
    return checkpoint["state_dict"] | {f"ema.{name}": each for name, each in checkpoint["ema"]["weights"].items()}


def equal(one: Path, other: Path) -> bool:
    ours, theirs = tensors(one), tensors(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def monitored(tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = tmp_path_factory.mktemp("monitored")
    return commands.fit(words_of("RectifiedFlow", root, *MONITOR))


def evaluate(run: Run, *more: str) -> dict[str, Any]:
    settings = ["--evaluation.num_samples=24", "--evaluation.seed=7", "--evaluation.weights=best"]
    result: dict[str, Any] = json.loads(commands.evaluate([str(run.directory), *settings, *more]).read_text())
    return result


def test_the_scores_are_those_of_an_evaluation(monitored: Run) -> None:
    name = "fd_digits_held_out"
    curve = scored(monitored, name)
    assert list(curve) == [128, 256, 384] == list(scored(monitored, "fd_digits"))
    best = min(curve, key=lambda images: curve[images])
    result = evaluate(monitored)
    assert result["images_seen"] == best and result["weights"] == "best"
    facts = {"score": name, "value": curve[best], "images_seen": best, "num_samples": 24, "seed": 7}
    assert result["best"] == facts == monitored.metadata["best"]
    assert result["metrics"][name] == curve[best]
    assert result["metrics"]["fd_digits"] == scored(monitored, "fd_digits")[best]
    last = evaluate(monitored, "--evaluation.weights=ema")
    assert last["images_seen"] == 384 and "best" not in last
    assert last["metrics"][name] == curve[384]


def test_training_is_the_same_without_them(monitored: Run, tmp_path: Path) -> None:
    plain = commands.fit(words_of("RectifiedFlow", tmp_path))
    assert plain.directory.name == monitored.directory.name, "the identity does not depend on them"
    assert equal(plain.checkpoint, monitored.checkpoint)
    assert not plain.best_checkpoint.exists() and "best" not in plain.metadata
    assert "monitor" not in torch.load(plain.checkpoint, weights_only=True)
    ours = [row for row in rows(monitored) if "fd_digits" not in row]
    assert rows(plain) == ours


@pytest.mark.parametrize(
    "moment",
    [("best.ckpt", 1, "after"), pytest.param(("best.ckpt", 2, "before"), marks=pytest.mark.exhaustive), ("row", 5, "")],
    ids=lambda moment: "-".join(map(str, moment)),
)
def test_a_kill_loses_and_repeats_nothing(monitored: Run, moment: tuple[str, int, str], tmp_path: Path) -> None:
    words = words_of("RectifiedFlow", tmp_path, *MONITOR)
    assert in_one_process(fit, words, moment) < 0
    run = commands.fit(words)
    assert rows(run) == rows(monitored)
    assert equal(run.best_checkpoint, monitored.best_checkpoint) and equal(run.checkpoint, monitored.checkpoint)
    assert run.metadata["best"] == monitored.metadata["best"]


def test_other_settings_start_a_new_best(monitored: Run, tmp_path: Path) -> None:
    words = words_of("RectifiedFlow", tmp_path, "--monitor.every=128", "--monitor.num_samples=24", "--monitor.seed=8")
    assert in_one_process(fit, words, ("last.ckpt", 1, "after")) < 0
    run = commands.fit(words_of("RectifiedFlow", tmp_path, *MONITOR))
    value = run.metadata["best"]["value"]
    late = {images: value for images, value in scored(monitored, "fd_digits_held_out").items() if images > 192}
    assert value == min(late.values()) and run.metadata["best"]["seed"] == 7


class Normed(UNet):
    """A network of a user whose batch norm has other statistics in each process."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.statistics = nn.BatchNorm2d(1, affine=False)

    def forward(self, x: Tensor, *more: Any) -> Tensor:
        out: Tensor = super().forward(x, *more)
        return out + self.statistics(x)


@pytest.mark.parametrize(
    ("model", "more"),
    [
        ("RectifiedFlow", ["--model.network=tests.behaviour.test_monitor.Normed"]),
        pytest.param("GAN", [], marks=pytest.mark.exhaustive),
    ],
)
def test_two_processes_score_the_weights_of_the_first(model: str, more: list[str], tmp_path: Path) -> None:
    words = words_of(model, tmp_path / "runs", *more, *MONITOR, "--evaluation.batch_size=8", num_batches=4)
    two = ["--trainer.strategy=ddp", "--trainer.devices=2"]
    done = lit_gen_in_two_processes(tmp_path, "fit", *words, *two)
    assert done.returncode == 0, done.stderr
    run = run_in(tmp_path / "runs")
    curve = scored(run, "fd_digits_held_out")
    assert list(curve) == [128, 256]
    result = evaluate(run, "--trainer.strategy=auto", "--trainer.devices=1")
    assert result["metrics"]["fd_digits_held_out"] == pytest.approx(min(curve.values()), rel=1e-6)


@pytest.mark.parametrize(
    ("model", "score"),
    [
        ("GAN", "fd_digits_held_out"),
        ("VQGAN", "rfd_digits"),
        ("TokenPrior", "fd_digits_held_out"),
        pytest.param("LatentEDM", "fd_digits_held_out", marks=pytest.mark.exhaustive),
        ("PointFlow", "w2_points"),
        pytest.param("MADE", "fd_digits_held_out", marks=pytest.mark.exhaustive),
        pytest.param("Glow", "fd_digits_held_out", marks=pytest.mark.exhaustive),
    ],
)
def test_every_family(model: str, score: str, tmp_path: Path) -> None:
    run = commands.fit(words_of(model, tmp_path, *MONITOR, num_batches=3))
    curve = scored(run, score)
    assert list(curve) == [128, 192] and all(map(math.isfinite, curve.values()))
    best = run.metadata["best"]
    assert best["score"] == score and best["value"] == min(curve.values())
    held_out = "{class_path: FrechetDistance, init_args: {against: held out}}"
    metrics = "[WassersteinDistance]" if model == "PointFlow" else f"[{held_out}]"
    assert evaluate(run, f"--evaluation.metrics={metrics}")["metrics"][score] == best["value"]
