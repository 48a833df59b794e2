"""CIFAR-10 and CIFAR-100: archives and folders of the official format, made here in small."""

import hashlib
import io
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_gen.core.errors import UserError
from lit_gen.data import CIFAR10, CIFAR100
from lit_gen.data.cifar import CifarSource

SOURCES: list[type[CifarSource]] = [CIFAR10, CIFAR100]


def batch(source: type[CifarSource], name: str) -> dict[str, Any]:
    rng = np.random.default_rng(list(name.encode()))
    labels = rng.integers(0, 100 if source is CIFAR100 else 10, 3).tolist()
    return {
        "data": rng.integers(0, 256, (3, 3072), dtype=np.uint8),
        source.label_key: labels,
        "coarse_labels": [0, 0, 0],
        "filenames": ["a.png", "b.png", "c.png"],
    }


def contents(source: type[CifarSource], protocol: int = 2) -> dict[str, bytes]:
    names = [name for part in source.md5.values() for name in part]
    return {name: pickle.dumps(batch(source, name), protocol) for name in names}


def write_folder(root: Path, source: type[CifarSource], **changes: bytes) -> Path:
    folder = root / source.folder
    folder.mkdir(parents=True)
    for name, content in (contents(source) | changes).items():
        (folder / name).write_bytes(content)
    return folder


def write_archive(root: Path, source: type[CifarSource], leave_out: str = "") -> Path:
    root.mkdir(exist_ok=True)
    path = root / source.url.rsplit("/", 1)[1]
    with tarfile.open(path, "w:gz") as tar:
        for name, content in sorted(contents(source).items()):
            if name != leave_out:
                entry = tarfile.TarInfo(f"{source.folder}/{name}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return path


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("write", [write_folder, write_archive])
def test_images_and_labels(tmp_path: Path, source: type[CifarSource], write: Any) -> None:
    write(tmp_path, source)
    dataset = source(root=str(tmp_path), download=False, checksum=False)
    for part, files in source.md5.items():
        batches = [batch(source, name) for name in files]
        images, labels = dataset.load(part)
        # a row holds 1024 red, 1024 green, 1024 blue values, each row by row
        expected = np.concatenate([b["data"] for b in batches])
        assert images.shape == (3 * len(files), *dataset.image_shape)
        assert images[1, 2, 5, 7] == expected[1, 2 * 1024 + 5 * 32 + 7]
        assert images.tobytes() == expected.tobytes()
        assert labels is not None
        assert labels.tolist() == sum((b[source.label_key] for b in batches), [])


def test_pickles_of_python_2_and_3(tmp_path: Path) -> None:
    """The official files are protocol 2 of Python 2: its strings become latin1 text, arrays name numpy.core."""
    pixels = bytes(range(256)) * 12
    python2 = (
        b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x01M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        + b"T\x00\x0c\x00\x00"
        + pixels
        + b"tbU\x06labels]K\x07au."
    )
    write_folder(tmp_path, CIFAR10, test_batch=python2, data_batch_1=pickle.dumps(batch(CIFAR10, "data_batch_1"), 4))
    source = CIFAR10(root=str(tmp_path), download=False, checksum=False)
    images, labels = source.load("test")
    assert images.tobytes() == pixels
    assert labels is not None
    assert labels.tolist() == [7]
    assert (source.load("train").images[:3].reshape(3, -1) == batch(CIFAR10, "data_batch_1")["data"]).all()


def test_pickles_cannot_run_code(tmp_path: Path) -> None:
    class Forged:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "harm"),)

    write_folder(tmp_path, CIFAR10, test_batch=pickle.dumps({"data": Forged(), "labels": []}))
    with pytest.raises(UserError, match=r"test_batch: not a batch of cifar10 \(it asks for .*mkdir"):
        CIFAR10(root=str(tmp_path), checksum=False).load("test")
    assert not (tmp_path / "harm").exists()


def test_download_and_checksums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = write_archive(tmp_path / "server", CIFAR10)
    monkeypatch.setattr(CIFAR10, "url", archive.as_uri())
    with pytest.raises(UserError, match=r"could not download cifar-10-python\.tar\.gz.*checksum mismatch"):
        CIFAR10(root=str(tmp_path / "home")).prepare()
    monkeypatch.setattr(CIFAR10, "archive_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    source = CIFAR10(root=str(tmp_path / "home"))
    source.prepare()
    assert (tmp_path / "home" / archive.name).read_bytes() == archive.read_bytes()
    with pytest.raises(UserError, match=r"tar\.gz/cifar-10-batches-py/test_batch: not the official file"):
        source.load("test")
    sums = {name: hashlib.md5(content).hexdigest() for name, content in contents(CIFAR10).items()}
    monkeypatch.setattr(CIFAR10, "md5", {part: {n: sums[n] for n in files} for part, files in CIFAR10.md5.items()})
    assert len(source.load("train").images) == 15


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "http://127.0.0.1:9/cifar-10-python.tar.gz"
    monkeypatch.setattr(CIFAR10, "url", url)
    with pytest.raises(UserError, match=r"could not download cifar-10-python\.tar\.gz") as caught:
        CIFAR10(root=str(tmp_path)).prepare()
    for part in (f"searched {tmp_path}, {tmp_path / 'cifar10'})", f"{url}: ", f"put {url} into a folder"):
        assert part in str(caught.value)
    assert "--data.source.root" in str(caught.value) and "\n" not in str(caught.value)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cifar-100-python\.tar\.gz of cifar100 was not found") as caught:
        CIFAR100(root=str(tmp_path), download=False).prepare()
    for remedy in (str(tmp_path), "https://www.cs.toronto.edu", "--data.source.root", "--data.source.download"):
        assert remedy in str(caught.value)
    (write_folder(tmp_path, CIFAR10) / "data_batch_3").unlink()
    with pytest.raises(UserError, match="data_batch_3: missing, unlike other files of cifar10; unpack"):
        CIFAR10(root=str(tmp_path), checksum=False).load("train")


def test_damaged_archives(tmp_path: Path) -> None:
    source = CIFAR10(root=str(tmp_path), checksum=False)
    archive = write_archive(tmp_path, CIFAR10)
    whole = archive.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:100], b"<html>not found</html>", b""):
        archive.write_bytes(damaged)
        with pytest.raises(
            UserError, match=r"cifar-10-python\.tar\.gz: (truncated or damaged|lacks).*download it again"
        ):
            source.load("train")
    write_archive(tmp_path, CIFAR10, leave_out="data_batch_2")
    with pytest.raises(UserError, match=": lacks cifar-10-batches-py/data_batch_2"):
        source.load("train")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"data": np.zeros((3, 3072))}, "images are float64 of shape"),
        ({"data": np.zeros((3, 3000), np.uint8)}, r"images are uint8 of shape \(3, 3000\), not"),
        ({"labels": [0, 1, 10]}, "labels are not all in 0 .. 9"),
        ({"labels": [0, 1]}, r"not uint8 of shape \(2, 3072\)"),
    ],
)
def test_bad_batches(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    write_folder(tmp_path, CIFAR10, test_batch=pickle.dumps(batch(CIFAR10, "test_batch") | wrong))
    with pytest.raises(UserError, match=f"test_batch.*{message}"):
        CIFAR10(root=str(tmp_path), checksum=False).load("test")
