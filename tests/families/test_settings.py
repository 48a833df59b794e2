"""Settings of a family: samplers, likelihood methods, pictures, initial values."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lit_gen.cli import commands
from lit_gen.cli.main import main
from lit_gen.core.errors import UserError, class_names
from lit_gen.core.noise import Noise
from lit_gen.data import Digits, ImageDataModule, Npz
from lit_gen.families.settings import LikelihoodMethod, Sampler, Temperature
from lit_gen.families.vae import VAE
from tests.conftest import arguments
from tests.interrupt import KILL_AT, CrashError


class Halved(VAE):
    """A VAE that records the images for its initial values, and shows images at half their brightness."""

    capabilities = replace(VAE.capabilities, pictures=("halves",))
    calls: list[Tensor] = []

    def initialise(self, images: Tensor) -> None:
        self.calls.append(images)
        with torch.no_grad():
            next(self.parameters()).zero_()

    def picture(
        self, name: str, images: Tensor, labels: Tensor | None, noise: Noise, sampler: Sampler | None = None
    ) -> Tensor:
        return torch.stack([images, images / 2])


def words(root: Path, *more: str) -> list[str]:
    rest = [word for word in arguments("VAE", root, 64 * 4, *more) if word != "--model=VAE"]
    return ["--model=tests.families.test_settings.Halved", *rest]


@pytest.mark.slow
def test_initial_values_are_set_by_the_data_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Halved.calls.clear()
    interrupted = words(tmp_path, "--checkpoint.every=64", "--trainer.callbacks=tests.interrupt.Interrupt")
    monkeypatch.setenv(KILL_AT, "raise:3")
    with pytest.raises(CrashError):
        commands.fit(interrupted)
    monkeypatch.delenv(KILL_AT)
    run = commands.fit(interrupted)
    assert run.finished and len(Halved.calls) == 1, "not again on resuming"
    (images,) = Halved.calls
    data = ImageDataModule(Digits())
    train = torch.from_numpy(data.images("train")).float() / 127.5 - 1
    assert torch.equal(images, train[[i * len(train) // 512 for i in range(512)]])


@pytest.mark.slow
def test_a_picture_is_drawn_in_training_and_by_the_command(tmp_path: Path) -> None:
    run = commands.fit(words(tmp_path))
    (drawn,) = run.samples.glob("halves-*.png")
    out = tmp_path / "halves.png"
    assert main(["sample", str(run.directory), "--picture", "halves", "-n", "16", "--out", str(out)]) == 0
    assert out.read_bytes() == drawn.read_bytes()
    with Image.open(out) as picture:
        assert picture.size == (16 * 34 + 2, 2 * 34 + 2)


def test_training_images_are_shown_where_there_is_no_test_part(tmp_path: Path) -> None:
    images = np.arange(3 * 64, dtype=np.uint8).reshape(3, 8, 8)
    np.savez(tmp_path / "few.npz", images=images)
    model = Halved((1, 8, 8))
    tiles = model.show("halves", ImageDataModule(Npz(str(tmp_path / "few.npz"))), 4, 0)
    assert torch.equal(tiles[0], torch.from_numpy(images[:, None]).float() / 127.5 - 1)
    assert torch.equal(tiles[1], tiles[0] / 2)


@pytest.mark.slow
def test_a_picture_that_there_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = commands.fit(words(tmp_path))
    capsys.readouterr()
    assert main(["sample", str(run.directory), "--picture", "thirds", "--out", str(tmp_path / "x.png")]) == 2
    assert "Halved has no picture thirds; choose one of halves" in capsys.readouterr().err
    assert main(["sample", str(run.directory), "--picture", "halves", "--out", str(tmp_path / "x.npz")]) == 2
    assert "does not end in .png; give a name" in capsys.readouterr().err
    sampler = ["--sampler", "Temperature", "--out", str(tmp_path / "x.png")]
    assert main(["sample", str(run.directory), "--picture", "halves", *sampler]) == 2
    error = capsys.readouterr().err
    assert (
        error.startswith("lit-gen: error: sampler: the picture halves of Halved does not use")
        and len(error.splitlines()) == 1
    )
    trajectory = ["--trajectory", str(tmp_path / "t.png"), "--out", str(tmp_path / "x.png")]
    assert main(["sample", str(run.directory), "--picture", "halves", *trajectory]) == 2
    assert "--trajectory: needs sampled images and cannot be used with --picture" in capsys.readouterr().err
    assert not list(tmp_path.glob("?.png"))


def test_data_that_does_not_suit_is_said_before_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(model: VAE, data: ImageDataModule) -> None:
        raise UserError(f"model: not of {data.name}")

    monkeypatch.setattr(Halved, "check_data", refuse)
    for verb in (commands.fit, commands.run):
        with pytest.raises(UserError, match="model: not of digits"):
            verb(words(tmp_path))
    assert not list(tmp_path.iterdir())


def test_samplers_of_other_families_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *arguments("DDPM", tmp_path, 64, "--sampler=Temperature")]) == 2
    assert "sampler: DDPM does not support Temperature; choose one of AnnealedLangevin," in capsys.readouterr().err


@pytest.mark.parametrize("value", ["0", "-1", ".inf", ".nan"])
def test_a_temperature_out_of_range(value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--sampler=Temperature", f"--sampler.temperature={value}"]
    assert main(["run", *arguments("DDPM", tmp_path, 64, *given)]) == 2
    said = capsys.readouterr().err
    assert "sampler.temperature: " in said and ("is not a positive number" in said or "nan is not a number" in said)


def test_settings_are_recorded() -> None:
    assert Temperature(0.7).to_dict() == {"name": "Temperature", "temperature": 0.7}
    assert "Temperature" in class_names(Sampler) and "Sampler" not in class_names(Sampler)
    assert "LikelihoodMethod" not in class_names(LikelihoodMethod)
