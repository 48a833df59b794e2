"""A flow trained again on the pairs that it draws."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from lit_gen import commands
from lit_gen.cli import main
from lit_gen.config import ExperimentCLI
from lit_gen.data import Digits, ImageDataModule
from lit_gen.data.pairs import Pairs
from lit_gen.errors import UserError
from lit_gen.metrics import quantise
from lit_gen.noise import Noise
from lit_gen.runs import Run
from tests.conftest import arguments

QUICK = ["--reflow.num_pairs=80", "--reflow.batch_size=33", "--reflow.sampler=Euler", "--reflow.sampler.steps=3"]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return commands.fit(arguments("RectifiedFlow", tmp_path_factory.mktemp("runs"), 256))


@pytest.fixture(scope="module")
def second(first: Run) -> Run:
    return commands.reflow([str(first.directory), *QUICK])


def test_pairs_are_images_and_the_index_of_their_noise(first: Run, second: Run) -> None:
    (path,) = (first.directory / "pairs").glob("*.npz")
    with np.load(path) as file:
        assert sorted(file) == ["images", "index", "num_classes", "seed"]
    pairs = Pairs.load(path)
    assert pairs.images.shape == (80, 1, 8, 8) and pairs.images.dtype == np.uint8
    np.testing.assert_array_equal(pairs.index, np.arange(80))
    objects = ExperimentCLI(["--config", str(second.config)]).objects()
    model = commands.load_model(first, objects.model, "ema")
    alone = model.sample(Noise(pairs.seed, [71]), sampler=objects.reflow.sampler)
    np.testing.assert_array_equal(quantise(alone).numpy()[0], pairs.images[71])


def test_the_second_flow_is_a_run_of_its_own(first: Run, second: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert second.directory != first.directory and second.finished
    assert second.metadata["title"] == "2-RectifiedFlow" and second.metadata["flow"] == 2
    assert second.directory.name.startswith("digits_2-rectifiedflow-")
    assert commands.reflow([str(first.directory), *QUICK]).directory == second.directory
    assert "this training is finished" in capsys.readouterr().out
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


def test_straightness_is_logged(second: Run) -> None:
    header = (second.directory / "metrics.csv").read_text().splitlines()[0]
    assert "samples/straightness" in header.split(",")


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


def test_distilling_trains_at_pure_noise_alone(first: Run) -> None:
    run = commands.reflow([str(first.directory), "--distill", *QUICK])
    assert run.metadata["title"] == "2-RectifiedFlow, distilled"
    objects = ExperimentCLI(["--config", str(run.config)]).objects()
    assert (objects.model.density(objects.model.schedule, 5) == 1).all()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--model=EDM"], "reflow: EDM cannot learn from pairs; use --model RectifiedFlow"),
        (["--data.flip=true"], "data.flip: a flipped image no longer belongs to its noise"),
        (["--model.network.channels=8"], "reflow.start: the network of .* is not that of the model"),
        (["--reflow.teacher=nowhere"], "reflow.teacher: nowhere is neither a run directory nor the file"),
        (["--reflow.num_pairs=0"], "reflow.num_pairs: 0 is not a positive number"),
    ],
)
def test_bad_input_is_one_line(first: Run, capsys: pytest.CaptureFixture[str], words: list[str], says: str) -> None:
    assert main(["reflow", str(first.directory), *QUICK, *words]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("lit-gen: error: ")
    assert re.search(says, error), error


def test_a_batch_of_pairs_holds_the_noise_of_its_images() -> None:
    data = ImageDataModule(Digits(), batch_size=8)
    images = np.random.default_rng(0).integers(0, 256, (24, 1, 8, 8), np.uint8)
    pairs = Pairs(images, np.arange(100, 124), seed=9)
    before = data.training_fingerprint
    data.train_on(pairs)
    assert data.training_fingerprint == pairs.fingerprint() != before == data.fingerprint("train")
    assert len(data.images("train")) == 1442
    data.trainer = type("Training", (), {"training": True, "global_rank": 0, "world_size": 1})()
    data._position = lambda: None  # type: ignore[method-assign]
    data._on_cuda = lambda: False  # type: ignore[method-assign]
    seen = 0
    for raw in data.train_dataloader():
        batch = data.on_after_batch_transfer(raw, 0)
        assert batch.noise is not None
        expected = Noise(9, [100 + int(i) for i in batch.index]).normal((1, 8, 8))
        torch.testing.assert_close(batch.noise, expected, rtol=0, atol=0)
        torch.testing.assert_close(batch.images, torch.tensor(images)[batch.index] / 127.5 - 1)
        seen += len(batch.index)
    assert seen == 24


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
