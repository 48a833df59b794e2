"""Digits, and .npz files good and bad."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from lit_gen.core.errors import UserError
from lit_gen.data import (
    CIFAR10,
    CIFAR100,
    MNIST,
    Binarised,
    Digits,
    FashionMNIST,
    GaussianMixture2D,
    ImageDataModule,
    Npz,
    Spiral,
)


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
    with pytest.raises(UserError, match=r"data\.source\.test: mine has no test images; set"):
        Npz(path, name="mine").load("test")
    for wrong, message in (
        ({"images": np.ones((3, 1, 4, 4), np.uint8), "labels": [1, 1, 0]}, r"shape \(1, 4, 4\), but training images"),
        ({"images": np.ones((3, 1, 2, 2), np.uint8), "labels": [1, 2, 0]}, "label 2 does not occur"),
        ({"images": np.ones((3, 1, 2, 2), np.uint8)}, "key 'labels'"),
    ):
        with pytest.raises(UserError, match=message):
            Npz(path, test=write(tmp_path / "wrong.npz", **wrong)).load("test")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": np.zeros((2, 1, 4, 4), np.uint8)}, "no key 'images'; save it with"),
        ({"images": np.zeros((2, 1, 4, 4))}, "images are float64, not uint8"),
        ({"images": np.zeros((2, 5, 4, 4), np.uint8)}, r"images have shape \(2, 5, 4, 4\); save them as \(N, H, W\)"),
        ({"images": np.zeros((2, 16), np.uint8)}, r"images have shape \(2, 16\)"),
        ({"images": np.zeros((0, 1, 4, 4), np.uint8)}, "holds no images"),
        ({"images": np.zeros((2, 1, 4, 4), np.uint8), "labels": [1]}, r"labels are int64 of shape \(1,\); save"),
        ({"images": np.zeros((2, 1, 4, 4), np.uint8), "labels": [0.0, 1.0]}, "labels are float64"),
        ({"images": np.zeros((2, 1, 4, 4), np.uint8), "labels": [0, -1]}, "label -1 is negative; remove"),
        ({"images": np.array([{}, {}])}, ": cannot be read as an .npz file"),
    ],
)
def test_bad_npz(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "bad.npz", **arrays)
    with pytest.raises(UserError, match=rf"bad\.npz.*{message}"):
        Npz(path).load("train")


def pixels(num: int) -> np.ndarray:
    return np.arange(4 * num, dtype=np.uint8).reshape(num, 1, 2, 2)


GAPS: list[tuple[Any, list[int]]] = [
    (np.array([9, 0, 9, 4]), [2, 0, 2, 1]),
    (np.array([5_000_000, 0, 0, 5_000_000], np.int32), [1, 0, 0, 1]),
    (np.array([2**64 - 1, 3, 2**64 - 2, 3], np.uint64), [2, 0, 1, 0]),
    (np.array([200, 100, 100, 0], np.uint8), [2, 1, 1, 0]),
    (np.array([7, 7, 7, 7], np.int16), [0, 0, 0, 0]),
    (np.array([1, 2, 1, 3], ">i8"), [0, 1, 0, 2]),
]


@pytest.mark.parametrize(("labels", "numbered"), GAPS)
def test_labels_with_gaps_are_numbered_and_keep_their_names(
    tmp_path: Path, labels: np.ndarray, numbered: list[int]
) -> None:
    train = write(tmp_path / "train.npz", images=pixels(4), labels=labels)
    test = write(tmp_path / "test.npz", images=pixels(2), labels=labels[[3, 0]])
    source = Npz(train, test=test)
    assert source.load("train").labels.tolist() == numbered  # type: ignore[union-attr]
    assert source.load("test").labels.tolist() == [numbered[3], numbered[0]]  # type: ignore[union-attr]
    assert source.num_classes == max(numbered) + 1
    assert source.class_names == tuple(str(value) for value in sorted(set(labels.tolist())))
    assert Binarised(source).class_names == source.class_names
    for other in (17, np.iinfo(labels.dtype).max - 5):
        wrong = write(tmp_path / "wrong.npz", images=pixels(2), labels=np.array([labels[0], other], labels.dtype))
        with pytest.raises(UserError, match=rf"wrong\.npz: label {other} does not occur in training, whose labels are"):
            Npz(train, test=wrong).load("test")


def test_labels_without_gaps_keep_their_fingerprint(tmp_path: Path) -> None:
    """As version 0.1 computed it."""
    path = write(tmp_path / "a.npz", images=pixels(5), labels=np.array([2, 0, 1, 1, 2], np.uint8))
    expected = "eb988879be16cb70dc114aa8149736d0559b2a6a6e283aa1f92422162848283b"
    assert ImageDataModule(Npz(path)).fingerprint("train") == expected


def test_names_of_classes_in_an_npz(tmp_path: Path) -> None:
    names = np.array(["cat", "dog", "Füchsin", "bird"])
    for labels, found in (([3, 0, 2], ("cat", "Füchsin", "bird")), ([0, 1, 2], ("cat", "dog", "Füchsin"))):
        path = write(tmp_path / "a.npz", images=pixels(3), labels=labels, class_names=names)
        assert Npz(path).class_names == found
    assert Npz(write(tmp_path / "b.npz", images=pixels(3), class_names=names)).class_names is None
    for wrong, message in (
        ({"class_names": names[:2]}, "2 names, but labels up to 2; give"),
        ({"class_names": names[[0, 1, 1]]}, "a list of distinct texts"),
        ({"class_names": np.arange(3)}, "a list of distinct texts"),
        ({"class_names": names.reshape(2, 2)}, "a list of distinct texts"),
    ):
        path = write(tmp_path / "wrong.npz", images=pixels(3), labels=[0, 1, 2], **wrong)
        with pytest.raises(UserError, match=rf"wrong\.npz: class_names: .*{message}"):
            Npz(path).load("train")


def test_names_of_classes_of_official_sets_are_known_without_files() -> None:
    fashion, photographs, fine = FashionMNIST(root="/nowhere"), CIFAR10(root="/nowhere"), CIFAR100(root="/nowhere")
    assert (fashion.class_names[9], photographs.class_names[3], fine.class_names[99]) == ("Ankle boot", "cat", "worm")
    for source in (fashion, photographs, fine):
        assert len(set(source.class_names)) == source.num_classes
    for digits in (Digits(), MNIST(root="/nowhere")):
        assert digits.class_names == tuple("0123456789")
    assert (GaussianMixture2D(num_components=3).class_names, Spiral().class_names) == (("0", "1", "2"), None)


def test_missing_and_truncated_npz(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^data\.source\.path: .*none\.npz does not exist; set --data\.source\.path"):
        Npz(str(tmp_path / "none.npz")).load("train")
    path = tmp_path / "cut.npz"
    np.savez(path, images=np.zeros((9, 1, 8, 8), np.uint8))
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UserError, match=r"cut\.npz: cannot be read"):
        Npz(str(path)).load("train")
