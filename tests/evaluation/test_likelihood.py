"""The likelihood as the commands compute it: what it is of, when it is computed, and where it is kept."""

import json
import math
from pathlib import Path

import pytest
import torch

from lit_gen.cli import commands
from lit_gen.cli.main import main
from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.distributions.dequantisation import bits_per_dim
from lit_gen.experiment.loading import load_model
from lit_gen.experiment.parser import ExperimentCLI
from lit_gen.families.base import GenerativeModel
from lit_gen.families.diffusion import ProbabilityFlow
from lit_gen.runs.directory import Run
from tests.conftest import arguments
from tests.processes import lit_gen_in_two_processes

pytestmark = pytest.mark.slow
"""End-to-end runs; the gate runs them."""

FLOW = ["--evaluation.likelihood_method=ProbabilityFlow", "--evaluation.likelihood_method.steps=3"]


@pytest.fixture(scope="module")
def edm(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return commands.fit(arguments("EDM", tmp_path_factory.mktemp("runs"), 128))


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return commands.fit(arguments("VAE", tmp_path_factory.mktemp("runs"), 128))


def evaluate(run: Run, *words: str) -> dict:
    sampler = [] if "VAE" in run.config.read_text() else ["--sampler=DDIM", "--sampler.steps=2"]
    return json.loads(commands.evaluate([str(run.directory), *sampler, *words]).read_text())


def load(run: Run) -> tuple[GenerativeModel, torch.Tensor, torch.Tensor]:
    """The model, and its test images with their labels."""
    objects = ExperimentCLI(["--config", str(run.config)]).objects()
    images = torch.from_numpy(objects.data.images("test")).float() / 127.5 - 1
    return load_model(run, objects.model, "ema"), images, torch.from_numpy(objects.data.labels("test"))


def test_bits_per_dim_of_evenly_spaced_test_images(edm: Run) -> None:
    result = evaluate(edm, "--evaluation.likelihood=20", *FLOW, "--evaluation.seed=7", "--evaluation.batch_size=6")
    model, images, _ = load(edm)
    index = [number * len(images) // 20 for number in range(20)]
    log_p = model.log_likelihood(images[index], Noise(7, index), method=ProbabilityFlow(steps=3))
    bits = bits_per_dim(log_p, 64)
    assert result["metrics"]["bits_per_dim"] == pytest.approx(float(bits.mean()), abs=1e-5)
    assert result["metrics"]["bits_per_dim_stderr"] == pytest.approx(float(bits.std()) / math.sqrt(20), abs=1e-5)
    record = result["likelihood"]
    assert record["nfe"] == model.nfe == 12 and record["seed"] == 7
    protocol = record["protocol"]
    assert (protocol["kind"], protocol["split"], protocol["num_images"]) == ("estimate", "test", 20)
    assert (protocol["dequantisation"], protocol["conditional"]) == ("uniform", False)
    assert protocol["method"]["name"] == "ProbabilityFlow" and protocol["method"]["steps"] == 3
    assert protocol["method"]["grid"]["name"] == "UniformLogSNR"
    assert len(protocol["data_fingerprint"]) == 64
    assert "likelihood" not in result["protocol"]


def test_it_is_off_unless_asked_for_and_added_to_what_stands_there(edm: Run) -> None:
    words = ["--evaluation.num_samples=9"]
    without = evaluate(edm, *words)
    assert "likelihood" not in without and "bits_per_dim" not in without["metrics"]
    path = commands.evaluate([str(edm.directory), "--sampler=DDIM", "--sampler.steps=2", *words])
    path.with_name("wandb_runs").write_text("abc\n")
    added = evaluate(edm, *words, "--evaluation.likelihood=4", *FLOW)
    assert not path.with_name("wandb_runs").exists(), "what W&B holds lacks the likelihood"
    bits = {key: added["metrics"].pop(key) for key in ("bits_per_dim", "bits_per_dim_stderr")}
    assert added.pop("likelihood")["protocol"]["num_images"] == 4
    known = [added["floors"].pop(row) for row in ("equal_values", "histogram")]
    assert [row["num_images"] for row in known] == [4, 4] and known[0]["scores"]["bits_per_dim"] == pytest.approx(8)
    assert added == without and all(math.isfinite(value) for value in bits.values())
    assert "likelihood" in evaluate(edm, *words), "not asked for again, and kept"


def test_it_is_computed_once_for_all_samplers(edm: Run) -> None:
    one = evaluate(edm, "--evaluation.likelihood=5", *FLOW)
    (file,) = (
        path
        for path in edm.evaluations.glob("likelihood-*.json")
        if json.loads(path.read_text())["likelihood"]["protocol"]["num_images"] == 5
    )
    stamp = file.stat().st_mtime_ns
    words = [str(edm.directory), "--sampler=Heun", "--sampler.steps=2", "--evaluation.likelihood=5", *FLOW]
    other = json.loads(commands.evaluate(words).read_text())
    assert other["likelihood"] == one["likelihood"] and other["sampler"] != one["sampler"]
    assert file.stat().st_mtime_ns == stamp
    for change in ("--evaluation.seed=1", "--evaluation.weights=raw"):
        changed = evaluate(edm, "--evaluation.likelihood=5", *FLOW, change)
        assert changed["metrics"]["bits_per_dim"] != one["metrics"]["bits_per_dim"]


def test_the_bound_by_name(edm: Run, capsys: pytest.CaptureFixture[str]) -> None:
    bound = ["--evaluation.likelihood_method=VariationalBound", "--evaluation.likelihood_method.num_terms=2"]
    other = evaluate(edm, "--evaluation.likelihood=3", *FLOW)
    assert "of 3 test images: estimate by ProbabilityFlow, dequantisation uniform\n" in capsys.readouterr().out
    result = evaluate(edm, "--evaluation.likelihood=3", *bound)
    assert "of 3 test images: bound by VariationalBound, dequantisation none\n" in capsys.readouterr().out
    held = [json.loads(path.read_text()) for path in edm.evaluations.glob("likelihood-*.json")]
    for one in (other, result):
        metrics = {name: one["metrics"][name] for name in ("bits_per_dim", "bits_per_dim_stderr")}
        assert {"metrics": metrics, "likelihood": one["likelihood"]} in held
    protocol = result["likelihood"]["protocol"]
    assert (protocol["kind"], protocol["dequantisation"]) == ("bound", "none")
    assert result["likelihood"]["nfe"] == 3


def test_the_vaes_bound_of_all_test_images(vae: Run) -> None:
    result = evaluate(vae, "--evaluation.likelihood=all")
    model, images, _ = load(vae)
    assert result["likelihood"]["protocol"]["num_images"] == len(images)
    assert result["likelihood"]["protocol"]["kind"] == "bound"
    assert result["likelihood"]["protocol"]["method"] == {"name": "ELBO", "num_draws": 1}
    log_p = model.log_likelihood(images, Noise(0, range(len(images))))
    assert result["metrics"]["bits_per_dim"] == pytest.approx(float(bits_per_dim(log_p, 64).mean()), abs=1e-5)
    assert result["likelihood"]["nfe"] == 1


def test_binary_images_have_nats_too(tmp_path: Path) -> None:
    source = ["--data.source=Binarised", "--data.source.source=Digits"]
    run = commands.fit([*arguments("VAE", tmp_path, 128), *source])
    metrics = evaluate(run, "--evaluation.likelihood=30")["metrics"]
    for suffix in ("", "_stderr"):
        assert metrics[f"nll_nats{suffix}"] == pytest.approx(metrics[f"bits_per_dim{suffix}"] * 64 * math.log(2))
        assert metrics[f"nll_nats{suffix}"] > 0


def test_a_conditional_model_is_given_the_classes(tmp_path: Path) -> None:
    run = commands.fit(arguments("RectifiedFlow", tmp_path, 128, "--model.class_conditional=true"))
    result = evaluate(run, "--evaluation.likelihood=6", *FLOW)
    assert result["likelihood"]["protocol"]["conditional"]
    model, images, labels = load(run)
    with torch.no_grad():  # the embeddings of a fresh network are alike
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    method = ProbabilityFlow(steps=3)
    given = model.log_likelihood(images[:4], Noise(0, range(4)), labels[:4], method)
    others = model.log_likelihood(images[:4], Noise(0, range(4)), (labels[:4] + 1) % 10, method)
    assert (given - others).abs().min() > 1e-3
    with pytest.raises(UserError, match="labels: .* class-conditional"):
        model.log_likelihood(images[:4], Noise(0, range(4)), method=method)


def test_the_likelihood_leaves_the_model_as_it_was(edm: Run) -> None:
    model, images, _ = load(edm)
    model.train()
    state = torch.get_rng_state()
    log_p = model.log_likelihood(images[:2], Noise(0, range(2)), method=ProbabilityFlow(steps=2))
    assert model.training and log_p.dtype == torch.float64 and not log_p.requires_grad
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("model", "words", "named"),
    [
        ("WGAN", ["--evaluation.likelihood=4"], "WGAN has no likelihood"),
        ("VAE", ["--evaluation.likelihood=4", *FLOW], "choose one of ELBO, ImportanceWeighted"),
        ("VAE", ["--evaluation.likelihood=999"], "digits has 355 test images"),
        ("VAE", ["--evaluation.likelihood=1"], "evaluation.likelihood: 1 is too few"),
        ("VAE", ["--evaluation.likelihood=-3"], "evaluation.likelihood: -3 is too few"),
        ("EDM", ["--evaluation.likelihood=4", "--evaluation.likelihood_method=Simpson"], "VariationalBound"),
        (
            "RectifiedFlow",
            ["--evaluation.likelihood=4", *FLOW, "--evaluation.likelihood_method.grid=Uniform"],
            "starts at pure noise",
        ),
    ],
)
def test_what_does_not_suit_is_said_before_the_training(
    model: str, words: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", *arguments(model, tmp_path, 64, *words)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("lit-gen: error: ") and named in error
    assert not list(tmp_path.glob("*/run.json"))


@pytest.mark.slow
def test_two_processes_give_the_number_of_one(edm: Run, tmp_path: Path) -> None:
    words = ["evaluate", str(edm.directory), "--sampler=DDIM", "--sampler.steps=2", "--evaluation.likelihood=21", *FLOW]
    two = ["--trainer.strategy=ddp", "--trainer.devices=2"]
    found = []
    for number in (1, 2):
        for file in edm.evaluations.rglob("*.json"):
            file.unlink()
        if number == 1:
            assert main(words) == 0
        else:
            done = lit_gen_in_two_processes(tmp_path, *words, *two)
            assert done.returncode == 0, done.stderr
        (result,) = edm.evaluations.rglob("result.json")
        found.append(json.loads(result.read_text()))
    one, other = found
    for name in ("bits_per_dim", "bits_per_dim_stderr"):
        assert other["metrics"][name] == pytest.approx(one["metrics"][name], rel=1e-9)
    assert one["likelihood"]["protocol"] == other["likelihood"]["protocol"]
    assert "2 x" in other["likelihood"]["device"]
