"""Digits, and .npz files good and bad."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from lit_gen.data import Digits, Npz
from lit_gen.errors import UserError


def test_digits_are_all_there_and_stratified() -> None:
    train, test = Digits().load("train"), Digits().load("test")
    assert train.labels is not None
    assert test.labels is not None
    assert (len(train.images), len(test.images)) == (1442, 355)
    assert np.bincount(test.labels).tolist() == [n // 5 for n in np.bincount(load_digits().target)]
    both = np.concatenate([train.images, test.images]).reshape(-1, 64)
    official = np.rint(load_digits().data * 255 / 16)
    assert np.array_equal(both[np.lexsort(both.T)], official[np.lexsort(official.T)])
    # the fifth zero in scikit-learn's order is the first test image of class 0
    fifth = np.flatnonzero(load_digits().target == 0)[4]
    assert np.array_equal(test.images[test.labels == 0][0].ravel(), official[fifth])
    assert train.images.max() == 255


def write(path: Path, **arrays: Any) -> str:
    np.savez(path, **arrays)
    return str(path)


def test_npz_layouts_are_one_data_set(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 6, 4), dtype=np.uint8)
    labels = np.array([2, 0, 1, 2, 0], dtype=np.int32)
    first = Npz(write(tmp_path / "a.npz", images=images, labels=labels))
    last = Npz(write(tmp_path / "b.npz", images=images.transpose(0, 2, 3, 1), labels=labels))
    grey = Npz(write(tmp_path / "c.npz", images=images[:, 0]))
    assert (first.load("train").images == images).all()
    assert (last.load("train").images == images).all()
    assert (grey.load("train").images == images[:, :1]).all()
    assert (first.load("train").labels == labels).all()  # type: ignore[union-attr]
    assert (first.name, first.image_shape, first.num_classes) == ("a", (3, 6, 4), 3)
    assert (grey.image_shape, grey.num_classes, grey.load("train").labels) == ((1, 6, 4), 0, None)


def test_npz_test_part(tmp_path: Path) -> None:
    train = {"images": np.zeros((4, 1, 2, 2), np.uint8), "labels": [0, 1, 0, 1]}
    path = write(tmp_path / "train.npz", **train)
    test = write(tmp_path / "test.npz", images=np.ones((3, 1, 2, 2), np.uint8), labels=[1, 1, 0])
    assert Npz(path, test=test, name="mine").load("test").images.sum() == 12
    with pytest.raises(UserError, match=r"mine has no test images: .*--data\.source\.test"):
        Npz(path, name="mine").load("test")
    for wrong, message in (
        ({"images": np.ones((3, 1, 4, 4), np.uint8), "labels": [1, 1, 0]}, r"shape \(1, 4, 4\), training images"),
        ({"images": np.ones((3, 1, 2, 2), np.uint8), "labels": [1, 2, 0]}, "label 2 does not occur"),
        ({"images": np.ones((3, 1, 2, 2), np.uint8)}, "key 'labels'"),
    ):
        with pytest.raises(UserError, match=message):
            Npz(path, test=write(tmp_path / "wrong.npz", **wrong)).load("test")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": np.zeros((2, 1, 4, 4), np.uint8)}, "no key 'images': save it with"),
        ({"images": np.zeros((2, 1, 4, 4))}, "images are float64, expected uint8"),
        ({"images": np.zeros((2, 5, 4, 4), np.uint8)}, r"images have shape \(2, 5, 4, 4\), expected \(N, H, W\)"),
        ({"images": np.zeros((2, 16), np.uint8)}, r"images have shape \(2, 16\)"),
        ({"images": np.zeros((0, 1, 4, 4), np.uint8)}, "holds no images"),
        ({"images": np.zeros((2, 1, 4, 4), np.uint8), "labels": [1]}, r"labels are int64 of shape \(1,\), expected"),
        ({"images": np.zeros((2, 1, 4, 4), np.uint8), "labels": [0.0, 1.0]}, "labels are float64"),
        ({"images": np.zeros((2, 1, 4, 4), np.uint8), "labels": [0, -1]}, "integers from 0"),
        ({"images": np.array([{}, {}])}, "cannot be read as an .npz file"),
    ],
)
def test_bad_npz(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "bad.npz", **arrays)
    with pytest.raises(UserError, match=rf"bad\.npz.*{message}"):
        Npz(path).load("train")


def test_missing_and_truncated_npz(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.npz does not exist: set --data\.source\.path"):
        Npz(str(tmp_path / "none.npz")).load("train")
    path = tmp_path / "cut.npz"
    np.savez(path, images=np.zeros((9, 1, 8, 8), np.uint8))
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UserError, match=r"cut\.npz cannot be read"):
        Npz(str(path)).load("train")
