"""Binary images: what becomes black and white, and that draws are of (seed, epoch, index) alone."""

import json
import os
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image

from lit_gen.cli import commands
from lit_gen.cli.main import main
from lit_gen.core.errors import UserError
from lit_gen.data import Binarised, Digits, ImageDataModule, Npz, TwoMoons
from lit_gen.data.batches import BatchKey
from lit_gen.data.sources import Part
from lit_gen.experiment.parser import ExperimentCLI
from tests.behaviour.test_resume import assert_equal_bits, contents
from tests.conftest import DIGITS, ROOT, TINY
from tests.interrupt import KILL_AT, CrashError

How = Literal["threshold", "sampled", "dynamic"]
HOWS: list[How] = ["threshold", "sampled", "dynamic"]
PARTS: list[Part] = ["train", "test"]


@pytest.fixture(scope="module")
def greys(tmp_path_factory: pytest.TempPathFactory) -> Npz:
    """3,000 images with every grey value in its place."""
    path = tmp_path_factory.mktemp("data") / "greys.npz"
    images = np.broadcast_to(np.arange(256, dtype=np.uint8).reshape(16, 16), (3000, 1, 16, 16))
    np.savez(path, images=images)
    return Npz(str(path), test=str(path), name="greys")


def test_a_threshold(greys: Npz) -> None:
    images = Binarised(greys).load("train").images
    assert images.dtype == np.uint8
    assert np.array_equal(images[3, 0].ravel(), np.repeat([0, 255], 128))


@pytest.mark.parametrize("how", ["sampled", "dynamic"])
def test_a_value_is_its_probability_of_white(greys: Npz, how: How) -> None:
    source = Binarised(greys, how)
    images = source.load("test").images if how == "sampled" else source.redraw(np.arange(3000), 5)
    assert images is not None and set(np.unique(images)) == {0, 255}
    white = (images == 255).reshape(3000, 256)
    p = np.arange(256) / 255
    z = (white.mean(0) - p)[1:-1] / np.sqrt(p * (1 - p) / 3000)[1:-1]
    assert white[:, 0].sum() == 0 and white[:, 255].all()
    assert 0.8 < (z**2).mean() < 1.25  # of 254 independent squares, +- 2.8 standard deviations
    assert np.abs(z).max() < 4.5
    between = white[:, 1:-1] - p[1:-1]  # neighbours, and images, know nothing of each other
    for product in (between[:, 1:] * between[:, :-1], between[1:] * between[:-1]):
        assert abs(product.mean()) < 4.5 * product.std() / np.sqrt(product.size)


def test_fixed_draws_are_the_same_images_always_and_epochs_others(greys: Npz) -> None:
    for how in HOWS[1:]:
        one, two = Binarised(greys, how, seed=3), Binarised(greys, how, seed=3)
        for part in PARTS:
            assert np.array_equal(one.load(part).images, two.load(part).images)
        assert not np.array_equal(one.load("train").images, one.load("test").images)
        assert not np.array_equal(one.load("train").images, Binarised(greys, how, seed=4).load("train").images)
    sampled, dynamic = Binarised(greys, "sampled"), Binarised(greys, "dynamic")
    for part in PARTS:
        assert np.array_equal(sampled.load(part).images, dynamic.load(part).images)
    assert sampled.redraw(np.arange(3), 0) is None
    index = np.array([7, 2500, 2])
    epochs = [dynamic.redraw(index, epoch) for epoch in (0, 1, 0)]
    assert epochs[0] is not None and epochs[1] is not None
    assert np.array_equal(epochs[0], epochs[2])  # type: ignore[arg-type]
    assert (epochs[0] != epochs[1]).mean() > 0.25  # 1/3 on average over grey values
    assert (epochs[0] != sampled.load("train").images[index]).mean() > 0.25
    alone = Binarised(greys, "dynamic").redraw(index[1:2], 0)
    assert np.array_equal(epochs[0][1:2], alone)  # type: ignore[arg-type]


def test_batches_are_redrawn_in_training_alone() -> None:
    data = ImageDataModule(Binarised(Digits(), "dynamic"), batch_size=32, num_val=100)
    train, val = data.train_dataloader().dataset, data.val_dataloader().dataset  # type: ignore[union-attr]
    rows = np.arange(32)
    first, again, later = (train[BatchKey(epoch, rows)].images for epoch in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, later)
    assert torch.equal(val[BatchKey(0, rows)].images, torch.from_numpy(data.images("val")[:32]))
    assert torch.equal(val[BatchKey(1, rows)].images, torch.from_numpy(data.images("val")[:32]))
    flipped = ImageDataModule(Binarised(Digits(), "dynamic"), batch_size=32, num_val=100, flip=True)
    images = flipped.train_dataloader().dataset[BatchKey(0, rows)].images
    mirrored = (images == first.flip(3)).flatten(1).all(1)
    assert ((images == first).flatten(1).all(1) | mirrored).all() and 6 < mirrored.sum() < 26


def test_it_is_its_data_set_otherwise() -> None:
    source = Binarised(Digits())
    assert (source.name, source.image_shape, source.num_classes) == ("digits_binary", (1, 8, 8), 10)
    assert source.num_levels == 2 and Digits().num_levels == 256 and source.quantised
    assert np.array_equal(source.load("test").labels, Digits().load("test").labels)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"data.source.source: .* holds points"):
        Binarised(TwoMoons())


def test_fingerprints_tell_binarisations_apart() -> None:
    of = {how: ImageDataModule(Binarised(Digits(), how)) for how in HOWS}
    assert len({data.training_fingerprint for data in of.values()}) == 3
    assert of["threshold"].fingerprint("test") != of["sampled"].fingerprint("test")
    assert of["sampled"].fingerprint("test") == of["dynamic"].fingerprint("test")
    seeds = [ImageDataModule(Binarised(Digits(), "dynamic", seed)).training_fingerprint for seed in (0, 1, 0)]
    assert seeds[0] == seeds[2] != seeds[1]


def test_samples_of_binary_data_are_black_or_white() -> None:
    samples = torch.tensor([-3.0, -1.0, -0.3, -0.005, 0.005, 0.4, 1.0, 2.0])
    assert Binarised(Digits()).stored(samples).tolist() == [0, 0, 0, 0, 255, 255, 255, 255]
    assert Digits().stored(samples).tolist() == [0, 0, 89, 127, 128, 179, 255, 255]


def binary(root: Path, how: str, num_images: int, *more: str) -> list[str]:
    """The arguments of a training of the tiny VAE, whose source is nested in another."""
    source = ["--data.source=Binarised", "--data.source.source=Digits", f"--data.source.how={how}"]
    words = [word for word in DIGITS if not word.startswith("--data.source")]
    return [*TINY["VAE"], *words, *source, f"--run.root={root}", f"--budget.num_images={num_images}", *more]


@pytest.mark.slow
def test_a_dynamic_training_resumes_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    num_images = 28 * 64  # digits have 22 batches of 64 in an epoch: this is one and a part
    every = ["--checkpoint.every=640", "--grid.num_samples=0", "--trainer.callbacks=tests.interrupt.Interrupt"]
    parts = binary(tmp_path / "parts", "dynamic", num_images, *every)
    monkeypatch.setenv(KILL_AT, "raise:25")
    with pytest.raises(CrashError):
        commands.fit(parts)
    monkeypatch.delenv(KILL_AT)
    whole = commands.fit(binary(tmp_path / "whole", "dynamic", num_images, *every))
    commands.fit(parts)
    assert_equal_bits(contents(tmp_path / "whole"), contents(tmp_path / "parts"))
    fixed = commands.fit(binary(tmp_path / "fixed", "sampled", num_images, *every))
    one, other = (contents(tmp_path / name) for name in ("whole", "fixed"))
    assert any(key.startswith("state_dict") and not torch.equal(one[key], other[key]) for key in one)  # type: ignore[arg-type]
    assert fixed.metadata["data"]["name"] == "digits_binary"
    assert fixed.metadata["data"]["fingerprint"] != whole.metadata["data"]["fingerprint"]


@pytest.mark.slow
def test_the_commands_take_a_source_within_a_source(tmp_path: Path) -> None:
    config = f"--data={ROOT / 'conf/data/binary_digits.yaml'}"
    words = [word for word in DIGITS if not word.startswith("--data.source")]
    words = [*TINY["VAE"], config, *words, f"--run.root={tmp_path}", "--budget.num_images=64"]
    path = commands.run([*words, "--evaluation.likelihood=20"])
    run = path.parents[2]
    assert run.name.startswith("digits_binary_vae")
    result = json.loads(path.read_text())
    assert result["protocol"]["data"] == "digits_binary" and np.isfinite(result["metrics"]["fd_digits"])
    assert set(np.unique(np.load(path.with_name("samples.npz"))["images"])) <= {0, 255}
    assert main(["sample", str(run), "-n", "5", "--out", str(tmp_path / "folder")]) == 0
    pictures = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "folder").glob("*.png"))]
    assert len(pictures) == 5 and set(np.unique(pictures)) <= {0, 255}
    source = ExperimentCLI(["--config", os.fspath(run / "config.yaml")]).objects().data.source
    assert isinstance(source, Binarised) and isinstance(source.source, Digits)
