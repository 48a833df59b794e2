"""Points of the plane from training to leaderboard: never quantised, scored by the exact Wasserstein distance."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lit_gen.cli import commands
from lit_gen.cli.main import main
from lit_gen.core.noise import Noise
from lit_gen.data import TwoMoons
from lit_gen.experiment.loading import load_model
from lit_gen.experiment.parser import ExperimentCLI
from lit_gen.families.diffusion import Diffusion, ProbabilityFlow
from lit_gen.metrics import wasserstein
from lit_gen.report import leaderboard, plots
from lit_gen.report.results import load_results
from lit_gen.runs.directory import Run
from tests.cli.test_cli import said
from tests.conftest import ROOT
from tests.processes import lit_gen_in_two_processes

pytestmark = pytest.mark.slow
"""End-to-end runs; the gate runs them."""

EDM = f"--config={ROOT}/conf/experiment/points_edm.yaml"
MOONS = ["--data.source=TwoMoons", "--wandb.mode=disabled"]
STEPS = ["--sampler=Heun", "--sampler.steps=20", "--evaluation.num_samples=500", "--evaluation.num_kept=300"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A few hundred steps."""
    root = tmp_path_factory.mktemp("runs")
    small = ["--model.network.width=64", "--model.network.depth=2", "--budget.num_images=120000", "--model.warmup=5000"]
    return commands.fit([EDM, *MOONS, *small, f"--run.root={root}"])


@pytest.fixture(scope="module")
def result(trained: Run) -> dict:
    path = commands.evaluate([str(trained.directory), *STEPS, "--wandb.mode=disabled"])
    return json.loads(path.read_text()) | {"path": path}


def test_training_brings_samples_near_the_data(trained: Run, result: dict) -> None:
    model = ExperimentCLI(["--config", str(trained.config)]).objects().model
    real = torch.from_numpy(TwoMoons().load("test").images[:500]).flatten(1)
    untrained = wasserstein(model.sample(Noise(0, range(500))).flatten(1), real)
    assert untrained > 0.3
    assert result["metrics"]["w2_points"] < 0.4 * untrained
    assert result["metrics"]["w2_points"] < 0.12


def test_the_result_is_the_distance_of_what_was_kept(trained: Run, tmp_path: Path) -> None:
    words = [*STEPS, "--evaluation.num_samples=100", "--evaluation.num_kept=100", "--evaluation.batch_size=32"]
    path = commands.evaluate([str(trained.directory), *words, "--wandb.mode=disabled"])
    metrics = json.loads(path.read_text())["metrics"]
    samples = torch.from_numpy(np.load(path.with_name("samples.npz"))["images"]).flatten(1)
    real, others = (torch.from_numpy(TwoMoons().load(part).images).flatten(1) for part in ("test", "train"))
    floors = [wasserstein(real[:100], others[first : first + 100]) for first in (0, 100, 200, 300)]
    assert metrics == {
        "w2_points": pytest.approx(wasserstein(samples, real[:100]), rel=1e-12),
        "w2_points_floor": pytest.approx(sum(floors) / 4, rel=1e-12),
    }


def test_points_are_never_quantised(trained: Run, result: dict) -> None:
    samples = np.load(result["path"].with_name("samples.npz"))["images"]
    assert samples.dtype == np.float32 and samples.shape == (300, 2, 1, 1)
    model = load_model(trained, ExperimentCLI(["--config", str(trained.config)]).objects().model, "ema")
    sampler = ExperimentCLI([EDM, *STEPS]).objects().sampler
    drawn = model.sample(Noise(0, range(300)), sampler=sampler).numpy()
    np.testing.assert_allclose(samples, drawn, atol=1e-5)
    levels = samples * 127.5 + 127.5
    assert np.abs(levels - np.rint(levels)).mean() == pytest.approx(0.25, abs=0.02)


def test_points_are_not_clamped(trained: Run) -> None:
    """A sampler that diverges is not flattered: one step from noise of a model that has learned nothing."""
    model = ExperimentCLI(["--config", str(trained.config)]).objects().model
    sampler = ExperimentCLI([EDM, "--sampler=AnnealedLangevin", "--sampler.steps=1", "--sampler.denoise=false"])
    assert model.sample(Noise(0, range(10)), sampler=sampler.objects().sampler).abs().max() > 1


def test_the_protocol(result: dict) -> None:
    protocol = result["protocol"]
    assert protocol["feature_net"] == "points" and protocol["feature_width"] == 2
    assert protocol["quantisation"] == "none" and protocol["split"] == "test"
    assert protocol["num_real"] == protocol["num_samples"] == 500
    assert "inception_splits" not in protocol
    assert "not quantised" in leaderboard.describe_protocol(protocol)


def test_the_leaderboard_ranks_by_the_distance(trained: Run, result: dict) -> None:
    commands.evaluate([str(trained.directory), *STEPS, "--sampler.steps=2", "--wandb.mode=disabled"])
    board = leaderboard.rank(load_results(trained.directory), where=["protocol.num_samples=500"])
    assert board.by == "w2_points" and board.metrics == ["w2_points"]
    assert [row.first.get("sampler.steps") for row in board.rows] == [20, 2]


def test_pictures(trained: Run, result: dict, tmp_path: Path) -> None:
    assert Image.open(result["path"].with_name("samples.png")).size == (600, 600)
    (grid,) = trained.samples.glob("*.png")
    assert Image.open(grid).size == (600, 600)
    results = load_results(trained.directory)
    same = [result for result in results if result.protocol["num_samples"] == 500]
    assert Image.open(plots.side_by_side(same, tmp_path / "side.png")).width > 200
    assert Image.open(plots.distance_vs_cost(same, tmp_path / "nfe.png")).width > 200


def test_sample_draws_points_and_their_paths(trained: Run, tmp_path: Path, capsys) -> None:
    words = ["sample", str(trained.directory), "-n", "50", *STEPS[:2]]
    assert main([*words, "--out", str(tmp_path / "p.png"), "--trajectory", str(tmp_path / "t.png")]) == 0
    assert "sigma / alpha = 80, 0 ->" in capsys.readouterr().out
    scatter, paths = (np.asarray(Image.open(tmp_path / name).convert("RGB")) for name in ("p.png", "t.png"))
    red = (scatter[..., 0] > 150) & (scatter[..., 1] < 100)
    assert 50 < red.sum() < 0.1 * red.size and (paths < 110).all(2).sum() > 500
    assert main([*words, "--out", str(tmp_path / "p.npz")]) == 0
    archive = np.load(tmp_path / "p.npz")
    assert archive["images"].dtype == np.float32 and archive["images"].shape == (50, 2, 1, 1)
    assert "--out" in said(capsys, *words, "--out", str(tmp_path / "folder"))


def test_what_does_not_suit_points_is_said_before_training(tmp_path: Path, capsys) -> None:
    run = ["run", EDM, *MOONS, f"--run.root={tmp_path}"]
    assert "two_moons holds points" in said(capsys, *run, "--evaluation.feature_net=DigitsFeatures")
    assert "--evaluation.feature_net Points" in said(capsys, *run, "--evaluation.feature_net=DigitsFeatures")
    assert "digits holds images" in said(capsys, *run, "--data.source=Digits")
    assert "evaluation.num_samples" in said(capsys, *run, "--data.source.num_points=1000")
    assert "evaluation.likelihood" in said(capsys, *run, "--evaluation.likelihood=10")
    assert not list(tmp_path.iterdir())


def test_a_class_of_its_own_for_each_moon(tmp_path: Path) -> None:
    """A conditional model takes the labels of points; guidance needs them dropped now and then."""
    small = ["--model.network.width=16", "--model.network.depth=1", "--budget.num_images=1024"]
    words = [EDM, *MOONS, *small, "--model.class_conditional=true", "--model.label_drop=0.2"]
    guided = ["--sampler=Heun", "--sampler.steps=2", "--sampler.guidance.weight=2", "--evaluation.num_samples=20"]
    path = commands.run([*words, *guided, f"--run.root={tmp_path}"])
    assert json.loads(path.read_text())["nfe"] == 6


@pytest.mark.slow
def test_two_processes_score_as_one(trained: Run, result: dict, tmp_path: Path) -> None:
    copy = tmp_path / trained.directory.name
    shutil.copytree(trained.directory, copy)
    shutil.rmtree(copy / "evaluations")
    two = ["--trainer.strategy=ddp", "--trainer.devices=2", "--evaluation.batch_size=128", "--wandb.mode=disabled"]
    done = lit_gen_in_two_processes(tmp_path, "evaluate", str(copy), *STEPS, *two)
    assert done.returncode == 0, done.stderr
    (path,) = (copy / "evaluations").glob("*/result.json")
    metrics = json.loads(path.read_text())["metrics"]
    assert "2 x" in json.loads(path.read_text())["timing"]["device"]
    assert metrics == {name: pytest.approx(value, rel=1e-5) for name, value in result["metrics"].items()}


@pytest.mark.slow
def test_a_trained_model_has_learned_the_density(tmp_path: Path) -> None:
    """Its likelihood of held-out points is near their exact density: it cannot be greater but by chance."""
    run = commands.fit([EDM, *MOONS, f"--run.root={tmp_path}"])
    model = load_model(run, ExperimentCLI(["--config", str(run.config)]).objects().model, "ema")
    assert isinstance(model, Diffusion)
    source, num = TwoMoons(), 1000
    x = torch.from_numpy(source.load("test").images[:num])
    exact = source.exact.log_density(x, torch.ones(()).double(), torch.zeros(()).double())
    flow = ProbabilityFlow(steps=32, solver="rk4", divergence="exact")
    learned = flow.log_density(model.denoiser, model.schedule, x, Noise(0, range(num)))
    gap = exact - learned
    assert -3 * float(gap.std()) / math.sqrt(num) < float(gap.mean()) < 0.25
