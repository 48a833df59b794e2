"""The package in Python: what importing it costs, and that its functions do what the commands do."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lit_gen
from lit_gen.cli import commands
from lit_gen.cli.main import main
from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.data import Digits
from lit_gen.families.diffusion import ProbabilityFlow
from lit_gen.families.diffusion.samplers import DDIM, Heun
from lit_gen.metrics import FrechetDistance, SlicedWasserstein
from lit_gen.metrics.feature_nets import DigitsFeatures
from lit_gen.runs.directory import Run
from tests.conftest import ROOT, arguments

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    words = ["--model.class_conditional=true", "--model.label_drop=0.1", "--evaluation.num_kept=24"]
    return commands.fit(arguments("EDM", tmp_path_factory.mktemp("runs"), 64, *words))


@pytest.fixture(scope="module")
def model(trained: Run) -> lit_gen.TrainedModel:
    return lit_gen.load(trained.directory)


def imported(code: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_import_costs_nothing() -> None:
    imported(
        "import sys, lit_gen; assert not {'torch', 'lightning', 'numpy', 'rich'} & sys.modules.keys(); "
        "assert {'load', 'evaluate', 'leaderboard', '__version__'} <= set(dir(lit_gen)); assert lit_gen.__version__"
    )


@pytest.mark.slow
def test_loading_imports_no_more_than_it_needs() -> None:
    imported("import sys, lit_gen; lit_gen.load; assert not {'wandb', 'sklearn', 'pandas'} & sys.modules.keys()")


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'lead'"):
        lit_gen.lead  # type: ignore[attr-defined]  # noqa: B018
    assert all(getattr(lit_gen, name) is not None for name in lit_gen.__all__)


def test_samples_are_those_of_the_command(trained: Run, model: lit_gen.TrainedModel, tmp_path: Path) -> None:
    words = [str(trained.directory), "-n", "7", "--seed", "5", "--first", "3", "--batch-size", "4"]
    assert main(["sample", *words, "--sampler=Heun", "--sampler.steps=3", "--out", str(tmp_path / "a.npz")]) == 0
    images = model.sample(7, seed=5, first=3, sampler=Heun(steps=3))
    with np.load(tmp_path / "a.npz") as file:
        np.testing.assert_array_equal(images.numpy(), file["images"])
    assert images.dtype == torch.uint8 and model.nfe == 5
    assert torch.equal(model.sample(3, 5, Heun(steps=3), first=6, batch_size=2), images[3:6])
    raw = model.sample(7, seed=5, first=3, sampler=Heun(steps=3), dtype="float")
    assert raw.dtype == torch.float32 and torch.equal(Digits().stored(raw), images)
    module = model.module.sample(Noise(5, range(3, 10)), sampler=Heun(steps=3))
    assert torch.equal(Digits().stored(module), images)


def test_one_class_is_named_or_numbered(trained: Run, model: lit_gen.TrainedModel) -> None:
    assert model.classes == tuple("0123456789") and model.image_shape == (1, 8, 8)
    threes = model.sample(2, sampler=DDIM(steps=2), label=3)
    assert torch.equal(threes, model.sample(2, sampler=DDIM(steps=2), label="3"))
    noise = Noise(0, range(2))
    assert torch.equal(threes, Digits().stored(model.module.sample(noise, torch.tensor([3, 3]), DDIM(steps=2))))
    assert repr(model) == f"<EDM, class-conditional of {trained.directory}: 1x8x8 images, ema weights, cpu>"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"n": 0}, r"^n: 0 is not a positive number of images; "),
        ({"n": 1, "batch_size": 0}, r"^batch_size: 0 is not a positive"),
        ({"n": 1, "first": -1}, r"^first: -1 is not an index; "),
        ({"n": 1, "seed": -1}, r"^seed: -1 is not a seed; "),
        ({"n": 1, "label": 10}, r"^label: 10 is not a class; choose one of 0, 1"),
        ({"n": 1, "label": "ten"}, r"^label: ten is not a class; "),
        ({"n": 1, "dtype": "uint16"}, r"^dtype: 'uint16' is not a form of images; choose uint8 or float"),
    ],
)
def test_an_error_names_the_argument(model: lit_gen.TrainedModel, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        model.sample(**settings)


def test_mps_is_refused(model: lit_gen.TrainedModel) -> None:
    with pytest.raises(UserError, match="^device: mps has no float64"):
        model.to("mps")
    assert model.to("cpu") is model and model.device == torch.device("cpu")


def test_likelihoods_are_those_of_the_module(model: lit_gen.TrainedModel) -> None:
    test, method = Digits().load("test"), ProbabilityFlow(steps=1)
    images, labels = torch.from_numpy(test.images[:4]), torch.tensor([1, 2, 3, 4])
    log_p = model.log_likelihood(images, labels, seed=1, method=method, batch_size=3)
    assert log_p.shape == (4,) and log_p.dtype == torch.float64
    direct = model.module.log_likelihood(images / 127.5 - 1, Noise(1, range(4)), labels, method)
    torch.testing.assert_close(log_p, direct, rtol=1e-4, atol=0)
    torch.testing.assert_close(
        model.log_likelihood(images.numpy() / 127.5 - 1, labels, 1, method), log_p, rtol=1e-4, atol=0
    )
    assert (model.log_likelihood(images, labels, 2, method) - log_p).abs().min() > 1e-3
    with pytest.raises(UserError, match=r"^images: their shape is \(4, 8, 8\); give images \(N, 1, 8, 8\)"):
        model.log_likelihood(images[:, 0], labels)
    with pytest.raises(UserError, match="^labels: 3 labels for 4 images; "):
        model.log_likelihood(images, labels[:3])


def test_an_evaluation_is_that_of_the_command(trained: Run, model: lit_gen.TrainedModel) -> None:
    """The file that the command writes is found, and the other way round."""
    ours = lit_gen.evaluate(model, Heun(steps=2), num_samples=30, seed=3)
    assert ours.metrics["fd_digits"] > 0 and ours.get("sampler.steps") == 2
    before = ours.path.stat().st_mtime_ns
    words = ["--sampler=Heun", "--sampler.steps=2", "--evaluation.num_samples=30", "--evaluation.seed=3"]
    theirs = commands.evaluate([str(trained.directory), *words])
    assert theirs == ours.path and theirs.stat().st_mtime_ns == before
    assert json.loads(theirs.read_text()) == ours.record.to_dict()
    ours.path.unlink()
    again = json.loads(commands.evaluate([str(trained.directory), *words]).read_text())
    untimed = {"timing", "created"}
    assert {k: v for k, v in again.items() if k not in untimed} == {
        k: v for k, v in ours.record.to_dict().items() if k not in untimed
    }
    with np.load(ours.path.with_name("samples.npz")) as file:
        np.testing.assert_array_equal(file["images"], model.sample(24, seed=3, sampler=Heun(steps=2), batch_size=8))


def test_metrics_and_features_are_objects(trained: Run) -> None:
    metrics = [FrechetDistance(), SlicedWasserstein(num_projections=8)]
    result = lit_gen.evaluate(
        trained.directory, DDIM(steps=1), num_samples=20, metrics=metrics, feature_net=DigitsFeatures(), weights="raw"
    )
    assert result.metrics.keys() == {"fd_digits", "sw_digits"} and result.get("weights") == "raw"


def test_errors_of_an_evaluation_name_the_argument(trained: Run, model: lit_gen.TrainedModel) -> None:
    with pytest.raises(UserError, match="^num_samples: 1 is too few; "):
        lit_gen.evaluate(model, num_samples=1)
    with pytest.raises(UserError, match="^weights: raw are not those of the loaded model; "):
        lit_gen.evaluate(model, weights="raw")
    with pytest.raises(UserError, match="not a run directory"):
        lit_gen.load(trained.directory.parent)


def test_a_leaderboard_is_that_of_the_command(
    trained: Run, model: lit_gen.TrainedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    for steps in (1, 2):
        lit_gen.evaluate(model, DDIM(steps=steps), num_samples=24)
    folder = trained.directory.parent
    capsys.readouterr()
    assert main(["leaderboard", str(folder), "--where", "sampler.name=DDIM", "--where", "protocol.num_samples=24"]) == 0
    printed = capsys.readouterr().out
    table = lit_gen.leaderboard(folder, where={"sampler.name": "DDIM", "protocol.num_samples": 24})
    assert [line.rstrip() for line in printed.splitlines()] == str(table).splitlines() == repr(table).splitlines()
    assert len(table) == 2 and table[0]["rank"] == 1 and {row["nfe"] for row in table} == {1.0, 2.0}
    assert "fd_digits" in table.paired("nfe=1", "nfe=2")
    assert json.loads(table.to_json())["by"] == table.board.by == "fd_digits_held_out"
    with pytest.raises(UserError, match="^by: nothing is not a metric of these results; "):
        lit_gen.leaderboard(folder, by="nothing", where={"protocol.num_samples": 24})
    with pytest.raises(UserError, match=r"^where protocol\.num_samples=7: no result fits; "):
        lit_gen.leaderboard(folder, where={"protocol.num_samples": 7})
    html = table._repr_html_()
    assert html.count("<tr>") == 3 + len(table.board.floors) and "<th>sampler</th>" in html


def test_a_notebook_shows_names_as_text(trained: Run, model: lit_gen.TrainedModel) -> None:
    result = lit_gen.evaluate(model, DDIM(steps=3), num_samples=24)
    result.path.write_text(json.dumps(result.record.to_dict() | {"model": "<script>alert(1)</script>"}))
    html = lit_gen.leaderboard(result.path.parents[2], where={"sampler.steps": 3})._repr_html_()
    assert "<script>" not in html and "&lt;script&gt;" in html
