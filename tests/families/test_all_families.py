"""Tests of every family: train, resume, sample, evaluate, load, run in two processes, refuse wrong settings."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lit_gen.cli import commands
from lit_gen.cli.main import main
from lit_gen.core.data_facts import DataFacts
from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.core.processes import gather
from lit_gen.experiment.experiment import Experiment
from lit_gen.experiment.loading import load_model
from lit_gen.experiment.parser import ExperimentCLI
from lit_gen.families import list_models
from lit_gen.families.base import GenerativeModel
from lit_gen.families.diffusion import Diffusion, ProbabilityFlow
from lit_gen.runs.directory import Run
from tests.behaviour.test_resume import assert_equal_bits, contents
from tests.conftest import TINY, arguments
from tests.interrupt import KILL_AT, CrashError
from tests.processes import in_two_processes

NUM_BATCHES, EVERY = 7, 3
BY_DEFAULT = ("EDM",)
"""The slow tests have all families."""


def training(model: str, root: Path) -> list[str]:
    words = [
        "--trainer.callbacks=tests.interrupt.Interrupt",
        f"--checkpoint.every={64 * EVERY}",
        "--grid.num_samples=4",
    ]
    return arguments(model, root, 64 * NUM_BATCHES, "--data.batch_size=64", *words)


@pytest.fixture(
    scope="module",
    params=[name if name in BY_DEFAULT else pytest.param(name, marks=pytest.mark.slow) for name in TINY],
)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of each family."""
    return commands.fit(training(request.param, tmp_path_factory.mktemp(request.param) / "whole"))


ALL = pytest.mark.parametrize(
    "run",
    [
        name if name in BY_DEFAULT else pytest.param(name, marks=[pytest.mark.slow, pytest.mark.exhaustive])
        for name in TINY
    ],
    indirect=True,
)
"""For a test of commands that tests of older runs try with all families as well."""


def family(run: Run) -> str:
    """Return the key of the run's family in TINY."""
    return run.directory.parent.parent.name.rstrip("0123456789")


def load(run: Run, weights: str = "ema") -> tuple[GenerativeModel, torch.Tensor, torch.Tensor | None]:
    """Return the model, and some test images with their labels."""
    objects = ExperimentCLI(["--config", str(run.config)]).objects()
    batch = objects.data.examples("test", 12)
    return load_model(run, objects.model, weights), batch.images, batch.labels


def test_every_family_is_here() -> None:
    """Every class that can be trained by name has an entry in TINY."""
    assert list_models().keys() == {words[0].removeprefix("--model=") for words in TINY.values()}


def test_a_training_that_was_killed_ends_with_the_same_bits(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    words = training(family(run), run.directory.parent.parent / "parts")
    monkeypatch.setenv(KILL_AT, "raise:5")
    with pytest.raises(CrashError):
        commands.fit(words)
    monkeypatch.delenv(KILL_AT)
    assert_equal_bits(contents(run.directory), contents(commands.fit(words).directory))


def test_the_cost_of_training_is_counted(run: Run) -> None:
    assert run.metadata["training_flops"] > 0 or run.metadata["title"] == "PlanarFlow", "which multiplies no matrices"


def test_weights_learn_and_are_finite(run: Run) -> None:
    trained, _, _ = load(run, "raw")
    fresh: GenerativeModel = ExperimentCLI(["--config", str(run.config)]).objects().model
    before, after = dict(fresh.generator.named_parameters()), dict(trained.generator.named_parameters())
    assert all(bool(torch.isfinite(weight).all()) for weight in after.values())
    assert any(not torch.equal(weight, before[name]) for name, weight in after.items() if weight.requires_grad)


def test_an_image_is_of_its_index_alone(run: Run) -> None:
    model, images, _ = load(run)
    state = torch.get_rng_state()
    together = model.sample(Noise(3, range(9)))
    assert together.dtype == torch.float32 and together.shape == (9, *images.shape[1:])
    assert bool(torch.isfinite(together).all()) and together.std(0).mean() > 1e-3
    assert model.nfe >= 1 and model.nfe == int(model.nfe)
    few = model.sample(Noise(3, [7, 2]))
    torch.testing.assert_close(few, together[[7, 2]], rtol=1e-5, atol=1e-4)
    assert (model.sample(Noise(4, range(9))) - together).abs().max() > 1e-3
    assert torch.equal(state, torch.get_rng_state()) and not model.training


def test_a_likelihood_is_of_its_image_alone(run: Run) -> None:
    model, images, labels = load(run)
    if model.capabilities.likelihood_kind is None:
        with pytest.raises(UserError, match="has no likelihood"):
            model.log_likelihood(images, Noise(0, range(len(images))), labels)
        return
    method = ProbabilityFlow(steps=2) if isinstance(model, Diffusion) else None
    state = torch.get_rng_state()
    log_p = model.log_likelihood(images, Noise(0, range(len(images))), labels, method)
    assert log_p.shape == (len(images),) and log_p.dtype == torch.float64
    assert bool(torch.isfinite(log_p).all()) and log_p.std() > 0
    some = [5, 2]
    few = model.log_likelihood(images[some], Noise(0, some), None if labels is None else labels[some], method)
    torch.testing.assert_close(few, log_p[some], rtol=1e-5, atol=1e-3)
    assert torch.equal(state, torch.get_rng_state())


@ALL
def test_it_is_scored_once_and_says_how(run: Run) -> None:
    model, _, _ = load(run)
    points = not ExperimentCLI(["--config", str(run.config)]).objects().data.source.quantised
    words = [] if model.capabilities.likelihood_kind is None or points else ["--evaluation.likelihood=6"]
    if words and isinstance(model, Diffusion):
        words += ["--evaluation.likelihood_method=ProbabilityFlow", "--evaluation.likelihood_method.steps=2"]
    path = commands.evaluate([str(run.directory), *words])
    result = json.loads(path.read_text())
    assert result["model"] == model.title and result["nfe"] >= 1
    assert result["protocol"]["num_samples"] == 24
    assert all(np.isfinite(value) for value in result["metrics"].values())
    if words:
        assert result["metrics"]["bits_per_dim_stderr"] > 0
        assert result["likelihood"]["protocol"]["kind"] in ("exact", "estimate", "bound")
    images = np.load(path.with_name("samples.npz"))["images"]
    assert len(images) == 24 and (path.parent / "samples.png").is_file()
    stamp = path.stat().st_mtime_ns
    assert commands.evaluate([str(run.directory), *words]) == path and path.stat().st_mtime_ns == stamp


@ALL
def test_samples_and_pictures_are_drawn_by_the_command(run: Run, tmp_path: Path) -> None:
    model, _, _ = load(run)
    for out in ("one.npz", "two.npz"):
        assert main(["sample", str(run.directory), "-n", "5", "--seed", "3", "--out", str(tmp_path / out)]) == 0
    one, two = (np.load(tmp_path / name)["images"] for name in ("one.npz", "two.npz"))
    assert len(one) == 5 and np.array_equal(one, two)
    for name in model.capabilities.pictures:
        assert list(run.samples.glob(f"{name}-*.png")), "drawn in training"
        picture = tmp_path / f"{name}.png"
        assert main(["sample", str(run.directory), "--picture", name, "-n", "4", "--out", str(picture)]) == 0
        assert picture.is_file()


@ALL
def test_what_is_wrong_is_one_line(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory, name = str(run.directory), family(run)
    model, _, _ = load(run)
    other = "Temperature" if isinstance(model, Diffusion) else "Heun"
    cases = {
        "--picture": ["sample", directory, "--picture", "nothing", "--out", str(tmp_path / "x.png")],
        "sampler": ["evaluate", directory, f"--sampler={other}"],
        "num_samples": ["evaluate", directory, "--evaluation.num_samples=1"],
        "no_such_key": ["fit", *arguments(name, tmp_path), "--model.no_such_key=1"],
        "warmup": ["fit", *arguments(name, tmp_path), "--model.warmup=-1"],
    }
    for named, words in cases.items():
        assert main(words) == 2, named
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
        assert named in line
    assert not list(tmp_path.glob("*/run.json"))


def test_a_checkpoint_of_another_network_is_refused(run: Run, tmp_path: Path) -> None:
    objects = ExperimentCLI(["--config", str(run.config)]).objects()
    checkpoint = torch.load(run.checkpoint, weights_only=True)
    name = next(iter(checkpoint["state_dict"]))
    checkpoint["state_dict"]["another"] = checkpoint["state_dict"].pop(name)
    other = Run(tmp_path / "other")
    other.checkpoint.parent.mkdir(parents=True)
    torch.save(checkpoint, other.checkpoint)
    for file in (run.config, run.metadata_path):
        (other.directory / file.name).write_bytes(file.read_bytes())
    with pytest.raises(UserError, match="does not fit the model"):
        load_model(other, objects.model, "raw")


def train_every_family(rank: int, folder: Path) -> None:
    for model in TINY:
        train_in_both(model, folder)


def train_in_both(model: str, root: Path) -> None:
    """Train one family in this and the other process; both must end with the same weights."""
    kept: list[GenerativeModel] = []
    build = ExperimentCLI.objects

    def keep(cli: ExperimentCLI, facts: DataFacts | None = None) -> Experiment:
        objects = build(cli, facts)
        kept.append(objects.model)
        return objects

    ExperimentCLI.objects = keep  # type: ignore[assignment, method-assign]
    two = ["--trainer.strategy=ddp", "--trainer.devices=2", "--grid.num_samples=0"]
    commands.fit(arguments(model, root, 64 * 3, "--data.num_val=70", "--trainer.val_check_interval=2", *two))
    ExperimentCLI.objects = build  # type: ignore[method-assign]
    own = next(built for built in kept if f"--model={type(built).__name__}" in TINY[model])  # not its first stage
    weights = {name: value.clone() for name, value in own.state_dict().items()}
    first, second = gather(weights)
    differing = [name for name, value in first.items() if not torch.equal(value, second[name])]
    assert not differing, (model, differing)


@pytest.mark.slow
def test_two_processes_end_with_the_same_weights(tmp_path: Path) -> None:
    in_two_processes(train_every_family, tmp_path)
    finished = [Run(path.parent) for path in tmp_path.glob("*/run.json")]
    assert len(finished) == len(TINY) + 1, "and the one first stage of all that follow one"
    assert all(run.finished for run in finished)
