"""A flow trained again on the pairs that it draws."""

import csv
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from lit_gen.cli import commands
from lit_gen.cli.main import main
from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.core.pixels import quantise
from lit_gen.data import Batch, Digits, ImageDataModule, TwoMoons
from lit_gen.data.pairs import Pairs
from lit_gen.experiment.loading import load_model
from lit_gen.experiment.parser import ExperimentCLI
from lit_gen.experiment.reflow import Reflow
from lit_gen.families.diffusion import (
    EDMSchedule,
    FlowMatching,
    Karras,
    LinearVP,
    Quadratic,
    Rectified,
    Schedule,
    TimeShift,
    Uniform,
)
from lit_gen.families.diffusion.samplers import (
    DDIM,
    DDPM,
    RK45,
    AnnealedLangevin,
    DiffusionSampler,
    DPMSolver,
    Euler,
    EulerMaruyama,
    Heun,
    PredictorCorrector,
)
from lit_gen.families.diffusion.straightness import straightness
from lit_gen.metrics import wasserstein
from lit_gen.runs.directory import Run
from tests.conftest import ROOT, arguments

pytestmark = pytest.mark.slow
"""End-to-end runs; the gate runs them."""

QUICK = ["--reflow.num_pairs=80", "--reflow.batch_size=33", "--reflow.sampler=Euler", "--reflow.sampler.steps=3"]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return commands.fit(arguments("RectifiedFlow", tmp_path_factory.mktemp("runs"), 256))


@pytest.fixture(scope="module")
def second(first: Run) -> Run:
    return commands.reflow([str(first.directory), *QUICK])


@pytest.fixture(scope="module")
def distilled(first: Run) -> Run:
    return commands.reflow([str(first.directory), "--distill", *QUICK])


def trained(run: Run, weights: str = "ema") -> FlowMatching:
    model = load_model(run, ExperimentCLI(["--config", str(run.config)]).objects().model, weights)
    assert isinstance(model, FlowMatching)
    return model


def logged(run: Run, name: str) -> dict[int, float]:
    """The values of a curve, by images seen."""
    with (run.directory / "metrics.csv").open() as file:
        return {int(row["images"]): float(row[name]) for row in csv.DictReader(file) if row.get(name)}


def test_pairs_are_images_and_the_index_of_their_noise(first: Run, second: Run) -> None:
    objects = ExperimentCLI(["--config", str(second.config)]).objects()
    model: Any = load_model(first, objects.model, "ema")
    path = objects.reflow.path(first, model)
    with np.load(path) as file:
        assert sorted(file) == ["images", "index", "num_classes", "seed"]
    pairs = Pairs.load(path)
    assert pairs.images.shape == (80, 1, 8, 8) and pairs.images.dtype == np.uint8
    np.testing.assert_array_equal(pairs.index, np.arange(80))
    alone = model.sample(Noise(pairs.seed, [71]), sampler=objects.reflow.sampler)
    np.testing.assert_array_equal(quantise(alone).numpy()[0], pairs.images[71])


def test_the_second_flow_is_a_run_of_its_own(first: Run, second: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert second.directory != first.directory and second.finished
    assert second.metadata["title"] == "2-RectifiedFlow" and second.metadata["flow"] == 2
    assert second.directory.name.startswith("digits_2-rectifiedflow-")
    assert commands.reflow([str(first.directory), *QUICK]).directory == second.directory
    assert "this run is finished" in capsys.readouterr().out
    other = commands.reflow([str(first.directory), *QUICK, "--reflow.num_pairs=81"])
    assert other.directory != second.directory
    weights = [torch.load(run.checkpoint, weights_only=True)["state_dict"] for run in (first, second)]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_second_flow_starts_from_the_first(first: Run) -> None:
    def gap(*more: str) -> float:
        run = commands.reflow([str(first.directory), *QUICK, "--budget.num_images=64", "--ema.decay=0", *more])
        start = torch.load(first.checkpoint, weights_only=True)["ema"]["weights"]
        end = torch.load(run.checkpoint, weights_only=True)["ema"]["weights"]
        return max(float((start[name] - end[name]).abs().max()) for name in start)

    assert gap("--seed_everything=3") <= 3e-4  # one step of Adam moves no weight by more than its learning rate
    assert gap("--seed_everything=3", "--reflow.start=false") > 0.05


def test_a_result_says_which_flow_it_is(second: Run) -> None:
    path = commands.evaluate([str(second.directory), "--sampler=Euler", "--sampler.steps=1"])
    result = json.loads(path.read_text())
    assert result["model"] == "2-RectifiedFlow" and result["nfe"] == 1
    assert result["protocol"]["num_real"] == 1442  # the reference is the data, not the pairs
    data, other = second.metadata["data"], result["other_data"]
    assert data["images_fingerprint"] == result["protocol"]["data_fingerprint"] != data["fingerprint"] and other is None


def test_straightness_is_logged(second: Run) -> None:
    """That of the averaged flow, on the noise of the grid of samples."""
    expected = straightness(trained(second).denoiser, Noise(0, range(64)), (1, 8, 8)).mean()
    assert logged(second, "samples/straightness") == {256: pytest.approx(float(expected), rel=1e-4)}


def test_validation_has_the_objective_of_training(first: Run) -> None:
    """Its loss is that of pairs which are not trained on."""
    run = commands.reflow([str(first.directory), *QUICK, "--data.num_val=16"])
    model, losses = trained(run, "raw"), []
    reflow = ExperimentCLI(["--config", str(run.config)]).objects().reflow
    pairs = Pairs.load(reflow.path(first, trained(first)))
    batch = Batch(torch.tensor(pairs.images[64:]) / 127.5 - 1, None, torch.arange(16))
    for noise in (Noise(pairs.seed, range(64, 80)), Noise(pairs.seed, range(16))):
        paired = batch._replace(noise=noise.normal((1, 8, 8)))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(model, "log_validation", lambda _, loss: losses.append(loss.item()))
            model.validation_step(paired, 0)
    assert logged(run, "val/loss")[256] == pytest.approx(losses[0], rel=1e-4)
    assert abs(losses[1] - losses[0]) > 1e-2 * losses[0]


@pytest.mark.slow
def test_an_experiment_can_be_the_teacher_and_a_third_flow_follows(first: Run, second: Run, tmp_path: Path) -> None:
    root = first.directory.parent
    third = commands.reflow([str(second.directory), *QUICK])
    assert third.metadata["title"] == "3-RectifiedFlow"
    teacher = first.config
    words = [*arguments("RectifiedFlow", root, 256), f"--reflow.teacher={teacher}", *QUICK]
    assert commands.fit(words).directory == second.directory
    fresh = [*arguments("RectifiedFlow", tmp_path, 128), f"--reflow.teacher={teacher}", *QUICK]
    run = commands.fit(fresh)
    assert run.metadata["flow"] == 2 and len(list(tmp_path.glob("digits_rectifiedflow-*"))) == 1


@pytest.mark.slow
def test_the_budget_of_a_teacher_has_a_key_of_its_own(
    first: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command line wins over the file, both over the teacher's own; the budget of the flow itself is another."""
    config = tmp_path / "second.yaml"
    overrides = {"budget.num_images": 64, "ema.decay": 0.5}
    config.write_text(json.dumps({"reflow": {"teacher": str(first.config), "teacher_overrides": overrides}}))
    words = [f"--config={config}", *arguments("RectifiedFlow", tmp_path, 192), *QUICK]
    run = commands.fit([*words, "--reflow.teacher.budget.num_images=128"])
    (teacher,) = (Run.open(path) for path in tmp_path.glob("digits_rectifiedflow-*"))
    assert (run.metadata["images_seen"], teacher.metadata["images_seen"]) == (192, 128)
    assert yaml.safe_load(teacher.config.read_text())["ema"]["decay"] == 0.5
    assert (
        f"first {first.config}: 128 images (--reflow.teacher.budget.num_images), "
        "then what follows it: 192 images (--budget.num_images)\n"
    ) in capsys.readouterr().out
    assert commands.fit([f"--config={run.config}"]) == run  # what was overridden is in the saved configuration
    assert len(list(tmp_path.glob("digits_*"))) == 2
    with pytest.raises(UserError, match=r"reflow\.teacher: .*budget\.nothing=1: no such key"):
        commands.fit([*words, "--reflow.teacher.budget.nothing=1"])
    with pytest.raises(UserError, match=r"reflow\.teacher\.budget\.num_images: no experiment is trained first; remove"):
        commands.fit([*arguments("RectifiedFlow", tmp_path), "--reflow.teacher.budget.num_images=1"])
    third = [str(run.directory), *QUICK, "--reflow.teacher.budget.num_images=1"]
    with pytest.raises(UserError, match=r"reflow\.teacher\.budget\.num_images: .*2-rectifiedflow-.* is trained"):
        commands.reflow(third)


def test_distilling_trains_at_pure_noise_alone(distilled: Run) -> None:
    model = trained(distilled)
    assert (model.density(model.schedule, 5) == 1).all()
    assert logged(distilled, "samples/straightness") == {}
    result = json.loads(commands.evaluate([str(distilled.directory)]).read_text())
    assert result["nfe"] == 1 and result["sampler"]["name"] == "Euler"
    assert result["sampler"]["grid"] == {"name": "Uniform"}


@pytest.mark.slow
def test_a_distilled_flow_has_no_likelihood(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = commands.fit(arguments("RectifiedFlow", tmp_path, 64, "--evaluation.likelihood=4"))
    run = commands.reflow([str(teacher.directory), "--distill", *QUICK])
    assert main(["evaluate", str(run.directory)]) == 0, "that of the teacher is not asked of it"
    assert main(["evaluate", str(run.directory), "--evaluation.likelihood=4"]) == 2
    error = "evaluation.likelihood: RectifiedFlow was trained only at pure noise"
    assert error in capsys.readouterr().err


def test_a_distilled_flow_keeps_the_number_of_its_teacher(first: Run, second: Run, distilled: Run) -> None:
    assert distilled.metadata["title"] == "RectifiedFlow, distilled" and distilled.metadata["flow"] == 1
    run = commands.reflow([str(second.directory), "--distill", *QUICK])
    assert run.metadata["title"] == "2-RectifiedFlow, distilled" and run.metadata["flow"] == 2


def test_a_distilled_flow_teaches_no_other(distilled: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reflow", str(distilled.directory), *QUICK]) == 2
    assert "has no paths to learn; name the run that it was distilled from" in capsys.readouterr().err


RECTIFIED, VP = Rectified(), LinearVP()


@pytest.mark.parametrize(
    ("sampler", "schedule"),
    [
        (None, RECTIFIED),
        (None, VP),
        (Heun(steps=3), RECTIFIED),
        (Heun(steps=3), EDMSchedule()),
        (Heun(steps=3, schedule=VP), RECTIFIED),
        (Euler(steps=1, grid=Uniform()), RECTIFIED),
        (Euler(steps=3, grid=TimeShift(3.0)), RECTIFIED),
        (DDIM(steps=3), VP),
        (DPMSolver(steps=3), RECTIFIED),
        (EulerMaruyama(steps=3, noise_scale=0.0), RECTIFIED),
        (RK45(rtol=1e-2, atol=1e-2), RECTIFIED),
        (Heun(steps=3), EDMSchedule(sigma_max=5.0)),  # no more noise than there is
    ],
)
def test_samplers_that_make_an_image_of_one_noise_are_taken(
    sampler: DiffusionSampler | None, schedule: Schedule
) -> None:
    Reflow(sampler=sampler).check(schedule)


@pytest.mark.parametrize(
    "sampler",
    [
        DDPM(steps=3),
        DDIM(steps=3, eta=0.1),
        Heun(steps=3, S_churn=1.0),
        EulerMaruyama(steps=3),
        DPMSolver(steps=3, eta=1.0),
        PredictorCorrector(steps=3),
        AnnealedLangevin(steps=3),
    ],
    ids=lambda sampler: type(sampler).__name__,
)
def test_samplers_that_draw_noise_are_refused(sampler: DiffusionSampler) -> None:
    with pytest.raises(UserError, match=f"reflow.sampler: {type(sampler).__name__} .* draws noise on its way"):
        Reflow(sampler=sampler).check(RECTIFIED)


@pytest.mark.parametrize(
    ("sampler", "level"),
    [
        (DDIM(steps=3, grid=Quadratic(0.8)), "4"),
        (Heun(steps=3, grid=Karras(sigma_max=2.5)), "2.5"),
        (RK45(sigma_max=10.0), "10"),
        (Euler(steps=3, schedule=EDMSchedule(sigma_max=8.0)), "8"),
    ],
)
def test_samplers_that_start_amid_images_are_refused(sampler: DiffusionSampler, level: str) -> None:
    with pytest.raises(UserError, match=f"reflow.sampler: .* sigma / alpha = {level}, where images are still visible"):
        Reflow(sampler=sampler).check(RECTIFIED)


@pytest.mark.slow
def test_the_second_flow_of_points_is_straighter_and_nearer_in_one_step(tmp_path: Path) -> None:
    words = [f"--config={ROOT}/conf/experiment/points_rectified_flow.yaml", "--data.source=TwoMoons"]
    words += ["--model.network.depth=2", "--model.warmup=5000", "--budget.num_images=150000"]
    first = commands.fit([*words, "--wandb.mode=disabled", f"--run.root={tmp_path}"])
    second = commands.reflow([str(first.directory), "--reflow.num_pairs=8000", "--reflow.batch_size=2000"])
    real = torch.from_numpy(TwoMoons().load("test").images[:500]).flatten(1)
    bends, distances = [], []
    for run in (first, second):
        model, noise = trained(run), Noise(3, range(500))
        bends.append(float(straightness(model.denoiser, noise, (2, 1, 1)).mean()))
        drawn = model.sample(Noise(4, range(500)), sampler=Euler(steps=1, grid=Uniform()))
        distances.append(wasserstein(drawn.flatten(1), real))
    assert bends[1] < bends[0] / 2
    assert distances[1] < distances[0] / 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--model=EDM"], "model: EDM cannot learn from pairs; use --model RectifiedFlow"),
        (["--data.flip=true"], "data.flip: a flipped image does not match its noise"),
        (["--model.network.channels=8"], "reflow.start: the network of .* is not that of the model"),
        (["--reflow.teacher=nowhere"], "reflow.teacher: nowhere is neither a run directory nor the file"),
        (["--reflow.num_pairs=0"], "reflow.num_pairs: 0 is not a positive number"),
        (["--reflow.sampler=DDIM", "--reflow.sampler.eta=1"], "reflow.sampler: DDIM .* draws noise on its way"),
        (["--data.num_val=80"], "data.num_val: 80 pairs .* leave none of 80 .* --reflow.num_pairs"),
    ],
)
def test_bad_input_is_one_line(first: Run, capsys: pytest.CaptureFixture[str], words: list[str], says: str) -> None:
    assert main(["reflow", str(first.directory), *QUICK, *words]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("lit-gen: error: ")
    assert re.search(says, error), error


@pytest.mark.parametrize(("num_val", "num_train"), [(0, 24), (5, 16)])
def test_a_batch_of_pairs_holds_the_noise_of_its_images(num_val: int, num_train: int) -> None:
    data = ImageDataModule(Digits(), batch_size=8, num_val=num_val)
    images = np.random.default_rng(0).integers(0, 256, (24, 1, 8, 8), np.uint8)
    pairs = Pairs(images, np.arange(100, 124), seed=9)
    before = data.training_fingerprint
    data.train_on(pairs)
    assert data.training_fingerprint == pairs.slice(0, 24 - num_val).fingerprint()
    assert data.training_fingerprint != before == data.fingerprint("train")
    assert (data.training_fingerprint == pairs.fingerprint()) == (num_val == 0)
    assert len(data.images("train")) == 1442 - num_val
    trainer: Any = SimpleNamespace(training=True, testing=False, global_rank=0, world_size=1, accumulate_grad_batches=1)
    data.trainer = trainer
    data._position = lambda: None  # type: ignore[method-assign]
    data._on_cuda = lambda: False  # type: ignore[method-assign]
    loaders: list[Any] = [data.train_dataloader(), data.val_dataloader()]
    for loader, first, num in zip(loaders, (0, 24 - num_val), (num_train, num_val), strict=True):
        seen = 0
        for raw in loader:
            batch = data.on_after_batch_transfer(raw, 0)
            assert batch.noise is not None
            row = first + batch.index
            assert torch.equal(batch.noise, Noise(9, 100 + row).normal((1, 8, 8)))
            torch.testing.assert_close(batch.images, torch.tensor(images)[row] / 127.5 - 1)
            seen += len(row)
        assert seen == num
        trainer.training = False
    trainer.testing = True
    batch = data.on_after_batch_transfer(next(iter(data.test_dataloader())), 0)
    assert batch.noise is None, "the test split is of the data"


def test_damaged_pairs_are_named(tmp_path: Path) -> None:
    path = tmp_path / "pairs.npz"
    pairs = Pairs(np.zeros((3, 1, 8, 8), np.uint8), np.arange(3), 5, 10)
    pairs.save(path)
    loaded = Pairs.load(path)
    assert (loaded.seed, loaded.num_classes, loaded.fingerprint()) == (5, 10, pairs.fingerprint())
    np.testing.assert_array_equal(loaded.image_set.labels, [0, 1, 2])
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"pairs\.npz: not a readable file of pairs"):
        Pairs.load(path)


@pytest.mark.slow
def test_pairs_can_be_drawn_with_autoguidance(first: Run, tmp_path: Path) -> None:
    weaker = commands.fit(arguments("RectifiedFlow", tmp_path, 64))
    euler = ["--reflow.sampler=Euler", "--reflow.sampler.steps=4"]
    drawn = []
    for words in ([], [f"--reflow.sampler.guidance.run={weaker.directory}", "--reflow.sampler.guidance.weight=3"]):
        before = set(first.directory.glob("pairs/*.npz"))
        commands.reflow([str(first.directory), *QUICK, *euler, *words])
        (path,) = set(first.directory.glob("pairs/*.npz")) - before
        drawn.append(Pairs.load(path).images.astype(int))
    plain, guided = drawn
    guide = trained(weaker).sample(Noise(1_000_000, range(80)), sampler=Euler(steps=4))
    away = plain - quantise(guide).numpy().astype(int)
    assert np.corrcoef((guided - plain).ravel(), away.ravel())[0, 1] > 0.5
