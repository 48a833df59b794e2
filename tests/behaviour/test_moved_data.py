"""A run whose data has moved, has changed, or is gone; and one whose directory has another name."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lit_gen.cli import commands
from lit_gen.cli.main import main
from lit_gen.core.errors import UserError
from lit_gen.data import Digits, ImageDataModule, Npz
from lit_gen.data.class_order import classes_of
from lit_gen.experiment.trained import class_number, load
from lit_gen.report.results import read_result
from lit_gen.runs.directory import Run, RunSettings
from tests.conftest import TINY

pytestmark = pytest.mark.slow
"""End-to-end runs; the gate runs them."""

COUNTS = (60, 11, 29)
RUN = {"identity": "ab", "recipe": "cd", "seed": 0, "status": "training", "wandb_id": "0"}
SETTINGS = [
    *TINY["VAE"],
    "--model.class_conditional=true",
    "--data.batch_size=50",
    "--budget.num_images=50",
    "--trainer.accelerator=cpu",
    "--evaluation.feature_net=DigitsFeatures",
    "--evaluation.num_samples=20",
    "--evaluation.inception_splits=1",
    "--grid.num_samples=4",
    "--wandb.mode=disabled",
]


def save(path: Path, classes: tuple[int, ...] = (2, 4, 8), brighter: int = 0) -> Path:
    """Images of three digits; or of the same digits, one of them changed."""
    images, digits = Digits().load("train")
    rows = np.concatenate([np.flatnonzero(digits == c)[:num] for c, num in zip(classes, COUNTS, strict=True)])
    labels = np.repeat(np.arange(3), COUNTS)
    order = np.random.default_rng(1).permutation(len(rows))
    images = images[rows][order].copy()
    images[0, 0, 0, 0] += brighter
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, images=images, labels=labels[order])
    return path


@pytest.fixture
def trained(trained_once: Run, tmp_path: Path) -> Run:
    """A copy of the run, with the data that it was trained on."""
    shutil.copytree(trained_once.directory, tmp_path / "runs" / trained_once.directory.name)
    run = Run(tmp_path / "runs" / trained_once.directory.name)
    run.config.write_text(run.config.read_text().replace("DATA.npz", str(save(tmp_path / "three.npz"))))
    return run


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("runs")
    path = save(folder / "three.npz")
    run = commands.fit([*SETTINGS, "--data.source=Npz", f"--data.source.path={path}", f"--run.root={folder / 'runs'}"])
    run.config.write_text(run.config.read_text().replace(str(path), "DATA.npz"))
    path.unlink()
    return run


def data_of(run: Run) -> Path:
    return run.directory.parent.parent / "three.npz"


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(words) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("lit-gen: error: ") and "\n" not in error
    return error


def forget_facts(run: Run) -> None:
    """Makes of a run.json what an older version wrote."""
    metadata = run.metadata
    metadata["data"] = {key: metadata["data"][key] for key in ("name", "fingerprint")}
    run.metadata_path.write_text(json.dumps(metadata))


def test_a_run_is_sampled_without_its_data(trained: Run, tmp_path: Path, capsys: Any) -> None:
    """Its classes have the frequencies of the training images, into whatever the images are written."""
    words = ["sample", str(trained.directory), "-n", "30", "--first", "7", "--out"]
    assert main([*words, str(tmp_path / "with.npz")]) == 0
    data_of(trained).unlink()
    assert main([*words, str(tmp_path / "without.npz")]) == 0
    classes = load(trained.directory).module.drawn_classes(torch.arange(30))
    assert classes is not None and classes.tolist() == classes_of(np.arange(30), COUNTS).tolist()
    with np.load(tmp_path / "with.npz") as file, np.load(tmp_path / "without.npz") as other:
        np.testing.assert_array_equal(file["labels"], classes_of(np.arange(7, 37), COUNTS))
        for key in ("images", "labels"):
            np.testing.assert_array_equal(file[key], other[key])
    error = said(capsys, *words, str(tmp_path / "grid.png"), "--picture", "reconstructions")
    assert str(data_of(trained)) in error and "data.source.path" in error
    forget_facts(trained)
    assert str(data_of(trained)) in said(capsys, *words, str(tmp_path / "grid.png"))
    save(data_of(trained))
    assert main([*words, str(tmp_path / "old.npz")]) == 0
    with np.load(tmp_path / "old.npz") as file, np.load(tmp_path / "with.npz") as other:
        np.testing.assert_array_equal(file["labels"], other["labels"])


def test_the_same_images_elsewhere_are_the_same_data(trained: Run, tmp_path: Path, capsys: Any) -> None:
    """The result is the one that stood there, under its name; a run is not trained again."""
    first = commands.evaluate([str(trained.directory)])
    moved = tmp_path / "elsewhere" / "renamed.npz"
    moved.parent.mkdir()
    data_of(trained).rename(moved)
    source = ["--data.source=Npz", f"--data.source.path={moved}"]
    assert commands.evaluate([str(trained.directory), source[1]]) == first
    assert "(computed before)" in capsys.readouterr().out
    again = commands.evaluate([str(trained.directory), source[1], "--evaluation.seed=5"])
    results = [json.loads(path.read_text()) for path in (first, again)]
    assert results[0]["protocol"] == results[1]["protocol"] and results[1]["other_data"] is None
    renamed = trained.directory.rename(trained.directory.with_name(f"mine-{trained.metadata['identity'][:10]}"))
    path = commands.run([*SETTINGS, *source, f"--run.root={renamed.parent}"])
    assert path == renamed / "evaluations" / first.parent.name / "result.json"
    assert f"{renamed}: this run is finished" in capsys.readouterr().out
    assert [entry for entry in renamed.parent.iterdir() if not entry.name.startswith(".")] == [renamed]


def test_other_images_are_refused_unless_they_are_accepted(trained: Run, tmp_path: Path, capsys: Any) -> None:
    """Even if one value of one pixel differs; also by a run that an older version recorded."""
    run, out = str(trained.directory), str(tmp_path / "picture.png")
    first, before = commands.evaluate([run]), trained.metadata["data"]["fingerprint"]
    picture = ["sample", run, "--picture", "reconstructions", "--out", out]
    now = ImageDataModule(Npz(str(save(data_of(trained), brighter=1)))).fingerprint("train")
    error = said(capsys, "evaluate", run)
    assert before[:12] in error and now[:12] in error and "--evaluation.other_data true" in error
    assert "trained on other images" in said(capsys, *picture)
    other = str(save(tmp_path / "b.npz", (0, 1, 2)))
    path = commands.evaluate([run, "--evaluation.other_data=true", "--data.source.path", other])
    result = json.loads(path.read_text())
    assert path != first and result["other_data"]["trained_on"] == before
    assert result["other_data"]["given"] == result["protocol"]["data_fingerprint"] != before
    assert result["protocol"]["data"] == "b"
    assert read_result(path).model == f"{result['model']} (trained on {before[:8]})"
    assert main(["sample", run, "-n", "2", "--out", out]) == 0, "which needs no images"
    assert "trained on other images" in said(capsys, "sample", run, "--data.source.path", other)
    forget_facts(trained)
    assert before[:12] in said(capsys, "evaluate", run)


def test_other_images_must_suit_the_model(trained: Run, tmp_path: Path, capsys: Any) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), np.uint8)
    np.savez(tmp_path / "larger.npz", images=images.repeat(2, 1).repeat(2, 2), labels=np.arange(40) % 3)
    np.savez(tmp_path / "unlabelled.npz", images=images)
    for name, says in (("larger", "its images are 1x16x16, but"), ("unlabelled", "it has no classes, but")):
        words = ["--evaluation.other_data=true", f"--data.source.path={tmp_path / name}.npz"]
        assert says in said(capsys, "evaluate", str(trained.directory), *words)


def test_labels_go_by_name_or_number(trained: Run, tmp_path: Path, capsys: Any) -> None:
    trained.update(data=trained.metadata["data"] | {"class_names": ["ant", "bee", "house fly"]})
    words = ["sample", str(trained.directory), "-n", "2", "--out", str(tmp_path / "a.npz"), "--label"]
    assert main([*words, "house fly"]) == 0
    with np.load(tmp_path / "a.npz") as file:
        assert file["labels"].tolist() == [2, 2]
    assert "class house fly)" in capsys.readouterr().out
    assert "--label: fly is not a class; choose one of ant, bee, house fly" in said(capsys, *words, "fly")


@pytest.mark.parametrize(
    ("names", "numbers"),
    [
        (("ant", "bee", "1 fly"), {"ant": 0, "1 fly": 2, "0": 0, "2": 2, "3": None, "-1": None, "1.0": None, "": None}),
        (("5", "0", "1"), {"5": 0, "0": 1, "1": 2, "2": None}),
        (None, {"0": 0, "2": 2, "3": None, "ant": None}),
    ],
)
def test_a_number_is_a_class_unless_names_are_numbers(names: Any, numbers: dict[str, int | None]) -> None:
    model: Any = SimpleNamespace(num_classes=3, title="VAE")
    for label, number in numbers.items():
        if number is None:
            with pytest.raises(UserError, match=f"^--label: {re.escape(label)} is not a class; choose one of"):
                class_number(label, model, names, "--label")
        else:
            assert class_number(label, model, names) == number


def test_which_images_a_run_was_trained_on(tmp_path: Path) -> None:
    """Also where pairs or codes, with fingerprints of their own, stood in their place."""

    def write(folder: Path, **facts: Any) -> Run:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "run.json").write_text(json.dumps(RUN | facts))
        return Run(folder)

    plain = {"data": {"name": "a", "fingerprint": "image"}, "training": {"model": {}}}
    assert write(tmp_path / "plain", **plain).images_fingerprint == "image"
    pairs: dict[str, Any] = {"data": {"fingerprint": "pairs"}, "training": {"reflow": {"weights": "ema"}}}
    assert write(tmp_path / "pairs", **pairs).images_fingerprint is None
    pairs["data"]["images_fingerprint"] = "recorded"
    assert write(tmp_path / "pairs", **pairs).images_fingerprint == "recorded"
    second = write(tmp_path / "second", data={"fingerprint": "codes"}, training={})
    write(second.directory / "first_stage", **plain)
    assert second.images_fingerprint == "image"
    assert write(tmp_path / "ancient").images_fingerprint is None


def test_a_run_is_found_by_its_identity(tmp_path: Path) -> None:
    settings, identity = RunSettings(root=str(tmp_path)), "0123456789" + "ab" * 27

    def of(name: str | None = None) -> str:
        return Run.of(RunSettings(str(tmp_path), name), "digits_vae", identity).directory.name

    def write(name: str, of: str) -> None:
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps(RUN | {"identity": of}))

    assert of() == "digits_vae-0123456789" and settings.name is None
    write("other-0123456789", "0123456789" + "cd" * 27)  # begins alike, and is another training
    assert of() == "digits_vae-0123456789"
    write("moved_vae-0123456789", identity)
    assert of() == "moved_vae-0123456789"
    assert of("mine") == "mine-0123456789", "a name that is asked for is a run of its own, as it was"
    write("second-0123456789", identity)
    (tmp_path / "second-0123456789" / "checkpoints").mkdir()
    (tmp_path / "second-0123456789" / "checkpoints" / "last.ckpt").touch()
    (tmp_path / "second-0123456789" / "run.json").write_text(
        json.dumps(RUN | {"identity": identity, "status": "finished"})
    )
    assert of() == "second-0123456789", "a finished one before others"
    write("digits_vae-0123456789", identity)
    assert of() == "digits_vae-0123456789"
