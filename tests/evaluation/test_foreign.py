"""Images of other software: read whole or refused, and scored to the last digit like the samples of a run."""

import json
import math
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import lit_gen
from lit_gen.cli import commands
from lit_gen.cli.main import main
from lit_gen.core.errors import UserError
from lit_gen.data import Digits, ImageDataModule
from lit_gen.data.given import arrange, content_hash, read_given
from lit_gen.metrics.feature_nets import DigitsFeatures
from tests.conftest import arguments

pytestmark = pytest.mark.slow
"""End-to-end runs; the gate runs them."""

NUM = 300
DIGITS = ["--data.source=Digits", "--evaluation.feature_net=DigitsFeatures"]


@pytest.fixture(scope="module")
def data() -> ImageDataModule:
    return ImageDataModule(Digits())


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of a run."""
    root = tmp_path_factory.mktemp("runs")
    words = [f"--evaluation.num_samples={NUM}", "--evaluation.batch_size=128", "--evaluation.inception_splits=10"]
    return commands.run(arguments("VAE", root, 64, *words))


@pytest.fixture(scope="module")
def samples(own: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same samples, saved by the command."""
    folder = tmp_path_factory.mktemp("samples")
    for out in ("a.npz", "pictures"):
        assert main(["sample", str(own.parents[2]), "-n", str(NUM), "--out", str(folder / out)]) == 0
    return folder


def score(images: Path, root: Path, *words: str) -> dict[str, Any]:
    place = ["--root", str(root), "--evaluation.batch_size=128", *DIGITS]
    assert main(["score", str(images), *place, *words]) == 0
    (path,) = root.glob("*/evaluations/images-*/result.json")
    content: dict[str, Any] = json.loads(path.read_text())
    return content | {"path": path}


@pytest.mark.parametrize("form", ["a.npz", pytest.param("pictures", marks=pytest.mark.slow)])
def test_samples_of_a_run_have_the_scores_of_its_evaluation(
    own: Path, samples: Path, form: str, tmp_path: Path
) -> None:
    ours, theirs = json.loads(own.read_text()), score(samples / form, tmp_path, "--name=Theirs", "--nfe=1")
    for same in ("metrics", "standard_errors", "floors", "copies", "protocol", "score_protocols"):
        assert theirs[same] == ours[same], same
    assert theirs["model"] == "Theirs" and theirs["nfe"] == 1 and theirs["run"]["foreign"] is True
    for name in ("samples.png", "neighbours.png"):
        assert theirs["path"].with_name(name).read_bytes() == own.with_name(name).read_bytes()
    for name in ("samples.npz", "features.npz", "deviations.npz"):
        with np.load(theirs["path"].with_name(name)) as one, np.load(own.with_name(name)) as other:
            assert {key: one[key].tobytes() for key in one} == {key: other[key].tobytes() for key in other}


@pytest.mark.slow
def test_the_first_images_alone(samples: Path, tmp_path: Path, data: ImageDataModule) -> None:
    with np.load(samples / "a.npz") as file:
        images = file["images"]
    result = lit_gen.score(
        images[:100], data, "Theirs", feature_net=DigitsFeatures(), root=tmp_path / "python", batch_size=128
    )
    theirs = score(samples / "pictures", tmp_path / "command", "--evaluation.num_samples=100", "--name=Theirs")
    assert theirs["metrics"] == result.metrics and theirs["run"] == result.record.run.to_dict()
    assert (theirs["nfe"], theirs["num_parameters"], theirs["images_seen"]) == (None, None, None)
    more = lit_gen.score(
        images[:100], data, "Theirs", nfe=7, num_parameters=9, feature_net=DigitsFeatures, root=tmp_path / "python"
    )
    assert more.path == result.path and more.record == replace(result.record, nfe=7.0, num_parameters=9)
    assert json.loads(more.path.read_text()) == more.record.to_dict()


def test_a_foreign_row_stands_on_the_leaderboard(own: Path, samples: Path, tmp_path: Path, capsys: Any) -> None:
    root = own.parents[3]
    with np.load(samples / "a.npz") as file:
        np.save(tmp_path / "turned.npy", 255 - file["images"].transpose(0, 2, 3, 1))
    assert main(["score", str(tmp_path / "turned.npy"), "--root", str(root), *DIGITS]) == 0
    assert "turned (foreign, NFE unknown): fd_digits " in capsys.readouterr().out
    board = lit_gen.leaderboard(root)
    assert [row["model"] for row in board] == ["VAE", "turned (foreign)"] and [row["rank"] for row in board] == [1, 2]
    for text in (str(board), board.to_markdown(), board._repr_html_()):
        assert "turned (foreign)" in text and "nan" not in text
    one, other = board.board.rows
    line = board.paired("model=VAE", "run.foreign=true")
    error = math.hypot(*(row.results[0].standard_error(board.board.by) or math.nan for row in (one, other)))
    assert "VAE nfe 1 beats turned (foreign) by" in line and f"± {1.96 * error:.2g} (unpaired" in line
    assert main(["report", str(root), "--out", str(tmp_path / "page.html")]) == 0
    assert "turned (foreign)" in (tmp_path / "page.html").read_text()
    assert main(["report", str(root / board[1]["runs"][0]), "--out", str(tmp_path / "b.html")]) == 0
    assert main(["leaderboard", str(root), "--budgets", "1,10"]) == 0
    assert "turned" not in capsys.readouterr().out


def test_the_hash_is_that_of_a_set(data: ImageDataModule) -> None:
    images, labels = Digits().load("test")
    given, turned = arrange(images, labels, data), arrange(images[::-1], labels[::-1], data)  # type: ignore[index]
    assert content_hash(given) == content_hash(turned)
    assert content_hash(given) != content_hash(arrange(images, None, data))
    assert content_hash(arrange(images[:9], None, data)) != content_hash(arrange(images[:8], None, data))


def test_every_form_gives_the_same_images(tmp_path: Path, data: ImageDataModule) -> None:
    images, labels = Digits().load("test")
    assert labels is not None
    images, labels = images[:40], labels[:40]
    np.savez(tmp_path / "ours.npz", images=images, labels=labels)
    np.savez(tmp_path / "adm.npz", arr_0=images.transpose(0, 2, 3, 1), arr_1=labels)
    np.save(tmp_path / "plain.npy", images[:, 0])
    torch.save(torch.from_numpy(images) / 127.5 - 1, tmp_path / "float.pt")
    torch.save(torch.from_numpy(images), tmp_path / "uint8.pth")
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        (tmp_path / "classes" / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0]).save(tmp_path / "classes" / str(label) / f"{number:03}.png")
    for name in ("ours.npz", "adm.npz", "plain.npy", "float.pt", "uint8.pth"):
        read = read_given(tmp_path / name, data)
        np.testing.assert_array_equal(read.images, images)
        if name.endswith(".npz"):
            assert read.labels is not None and read.labels.tolist() == labels.tolist()
    by_class = read_given(tmp_path / "classes", data)
    assert by_class.labels is not None and by_class.labels.tolist() == sorted(labels.tolist())
    order = np.argsort(labels, kind="stable")
    np.testing.assert_array_equal(by_class.images, images[order])
    np.testing.assert_array_equal(read_given(tmp_path / "plain.npy", data, 7).images, images[:7])


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (
            np.zeros((9, 1, 9, 9), np.uint8),
            r"shape \(9, 1, 9, 9\), but digits has images of 1x8x8; give \(N, 1, 8, 8\)",
        ),
        (np.zeros((9, 3, 8, 8), np.uint8), "shape"),
        (np.zeros((9, 8, 8), np.int64), "values of type int64; give uint8, or floats"),
        (np.ones((9, 8, 8), bool), "values of type bool"),
        (np.random.default_rng(0).random((9, 8, 8)), r"float values from 0\.\d+ to 0\.\d+, but \[-1, 1\] is black to"),
        (np.full((9, 8, 8), -2.0), "float values from -2 to -2"),
        (np.full((9, 8, 8), np.nan), "some values are not finite"),
        (np.zeros((1, 8, 8), np.uint8), "1 images are too few to be scored"),
        (np.zeros((0, 8, 8), np.uint8), "0 images are too few to be scored"),
    ],
)
def test_other_arrays_are_refused(array: np.ndarray, says: str, data: ImageDataModule) -> None:
    with pytest.raises(UserError, match=f"^images: .*{says}"):
        arrange(array, None, data)


def test_other_files_are_refused(tmp_path: Path, data: ImageDataModule) -> None:
    images = np.zeros((9, 1, 8, 8), np.uint8)

    def refused(name: str, says: str, num: int | None = None) -> None:
        with pytest.raises(UserError, match=says):
            read_given(tmp_path / name, data, num)

    Image.new("L", (80, 80)).save(tmp_path / "grid.png")
    refused("grid.png", "grid.png: a single picture; a grid of tiles does not say where its tiles begin")
    refused("missing", "missing: does not exist; give a folder")
    (tmp_path / "images.txt").write_text("1")
    refused("images.txt", "not a known form of images; give")
    np.savez(tmp_path / "other.npz", pictures=images)
    refused("other.npz", "neither the key 'images' nor 'arr_0'")
    np.savez(tmp_path / "labels.npz", images=images, labels=np.arange(9) + 5)
    refused("labels.npz", "labels from 5 to 13, but digits has the classes 0 to 9")
    (tmp_path / "damaged.npy").write_bytes(b"\x93NUMPY")
    refused("damaged.npy", "damaged.npy: cannot be read")
    np.save(tmp_path / "nine.npy", images)
    refused("nine.npy", "^evaluation.num_samples: 10 images, but .*nine.npy holds 9; give at most 9", 10)


def test_no_code_of_a_file_runs(tmp_path: Path, data: ImageDataModule, monkeypatch: pytest.MonkeyPatch) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return open, (str(tmp_path / "ran"), "w")

    torch.save(Evil(), tmp_path / "evil.pt")
    np.save(tmp_path / "evil.npy", np.array([Evil()], object), allow_pickle=True)
    np.savez(tmp_path / "evil.npz", images=np.array([Evil()], object))
    for name in ("evil.pt", "evil.npy", "evil.npz"):
        with pytest.raises(UserError, match=f"{name}: "):
            read_given(tmp_path / name, data)
    assert not (tmp_path / "ran").exists()
    torch.save({"images": torch.zeros(2)}, tmp_path / "dict.pt")
    torch.save(torch.zeros(1, 1, 8, 8).expand(10**9, 1, 8, 8), tmp_path / "vast.pt")
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000, 8, 8), }"
    (tmp_path / "vast.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(2**20))
    monkeypatch.setattr("lit_gen.data.given.NPZ_LIMIT", 2**10)
    for name, says in (("dict.pt", "holds a dict"), ("vast.pt", "exceeds its values"), ("vast.npy", "cannot be read")):
        with pytest.raises(UserError, match=says):
            read_given(tmp_path / name, data)
    with pytest.raises(UserError, match="unpacks to 1,048,576 bytes"):
        read_given(tmp_path / "bomb.pt", data)


def test_other_pictures_are_refused(tmp_path: Path, data: ImageDataModule) -> None:
    def refused(says: str, /, num: Any = None, **pictures: Any) -> None:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        for place, picture in pictures.items():
            path = folder / f"{place.replace('_', '/')}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
        with pytest.raises(UserError, match=says):
            read_given(folder, data, num)

    grey = Image.new("L", (8, 8))
    refused("b.png: it has 9x8 pixels, not 8x8; give images like those of digits", a=grey, b=Image.new("L", (8, 9)))
    refused("b.png: its pixels are of type RGB, not L", a=grey, b=Image.new("RGB", (8, 8)))
    refused("b.png: its pixels are of type LA, not L", a=grey, b=Image.new("LA", (8, 8)))
    refused("b.png: its pixels are of type I;16, not L", a=grey, b=Image.new("I;16", (8, 8)))
    refused("the folder x belongs to no class of digits; name", x_a=grey, x_b=grey)
    refused("a picture outside of the folders of classes", a=grey, **{"0_b": grey})
    refused(
        "^evaluation.num_samples: the first 2 of 3 images in folders of classes",
        2,
        **{f"{i}_a": grey for i in range(3)},
    )
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no images"):
        read_given(tmp_path / "empty", data)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "IMAGES: missing; "),
        (["a.npz", "--evaluation.seed=1", *DIGITS], "evaluation.seed: 1 is a setting of a model"),
        (["a.npz", "--evaluation.likelihood=10", *DIGITS], "evaluation.likelihood: 10 is a setting of a model"),
        (["a.npz", "--nfe=-1", *DIGITS], "--nfe: -1.0 is not a number of network evaluations"),
        (["a.npz", "--name=", *DIGITS], "--name: '' is not a name"),
        (["a.npz", "--parameters=-1", *DIGITS], "--parameters: -1 is not a number of parameters"),
        (["a.npz", "--namme=x", *DIGITS], "--namme"),
        (["a.npz", "--model=EDM", *DIGITS], "model"),
        (["a.npz"], "data.source"),
    ],
)
def test_bad_words_are_named(
    words: list[str], says: str, samples: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(samples)
    assert main(["score", *words]) == 2
    assert says in capsys.readouterr().err.splitlines()[-1]
    assert not (samples / "runs").exists()


def test_errors_in_python_name_the_argument(data: ImageDataModule) -> None:
    images = np.zeros((9, 1, 8, 8), np.uint8)
    for settings, says in (
        ({}, "^name: missing; "),
        ({"name": "x", "nfe": 0}, "^nfe: 0 is not a number"),
        ({"name": "x", "num_parameters": -1}, "^num_parameters: -1 is not"),
        ({"name": "x", "num_samples": 10}, "^num_samples: 10 images, but images holds 9"),
    ):
        with pytest.raises(UserError, match=says):
            lit_gen.score(images, data, **settings)  # type: ignore[arg-type]
