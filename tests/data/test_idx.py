"""MNIST and Fashion-MNIST: files of the official format, found, downloaded, checked."""

import gzip
import hashlib
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from lit_gen.core.errors import UserError
from lit_gen.data import MNIST, FashionMNIST, ImageDataModule
from lit_gen.data.files import decompress, download
from lit_gen.data.idx import read_idx

SIZES = {"train": 6, "t10k": 4}


def content(prefix: str, kind: str) -> bytes:
    rng = np.random.default_rng([len(prefix), len(kind)])
    size = SIZES[prefix]
    if kind == "labels":
        return struct.pack(">HBBI", 0, 8, 1, size) + rng.integers(0, 10, size, dtype=np.uint8).tobytes()
    return struct.pack(">HBBIII", 0, 8, 3, size, 28, 28) + rng.integers(0, 256, size * 784, dtype=np.uint8).tobytes()


def write_files(folder: Path, compress: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for prefix in SIZES:
        for kind, dimensions in (("images", 3), ("labels", 1)):
            path = folder / f"{prefix}-{kind}-idx{dimensions}-ubyte"
            if compress:
                path.with_name(path.name + ".gz").write_bytes(gzip.compress(content(prefix, kind), mtime=0))
            else:
                path.write_bytes(content(prefix, kind))
    return folder


def official(monkeypatch: pytest.MonkeyPatch, source: type[MNIST] | type[FashionMNIST]) -> None:
    """Declares the small files official."""

    def md5(data: bytes) -> str:
        return hashlib.md5(data).hexdigest()

    sums = {}
    for name in source.md5:
        data = content(name.split("-")[0], name.split("-")[1])
        sums[name] = (md5(gzip.compress(data, mtime=0)), md5(data))
    monkeypatch.setattr(source, "md5", sums)


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("inner", ["", "MNIST/raw", "mnist"])
def test_files_are_read_wherever_they_lie(tmp_path: Path, compress: bool, inner: str) -> None:
    write_files(tmp_path / inner, compress)
    source = MNIST(root=str(tmp_path), resolution=32, download=False, checksum=False)
    for part, prefix in (("train", "train"), ("test", "t10k")):
        images, labels = source.load(part)  # type: ignore[arg-type]
        expected = np.frombuffer(content(prefix, "images")[16:], np.uint8).reshape(-1, 1, 28, 28)
        assert (images[:, :, 2:30, 2:30] == expected).all()
        assert images.astype(int).sum() == expected.astype(int).sum()  # zeros all around
        assert labels is not None
        assert labels.tolist() == list(content(prefix, "labels")[8:])
    assert (MNIST(root=str(tmp_path), checksum=False).load("train").images.shape) == (6, 1, 28, 28)


def test_shape_is_known_without_files() -> None:
    source = FashionMNIST(root="/nowhere", resolution=32)
    assert (source.name, source.image_shape, source.num_classes) == ("fashion_mnist", (1, 32, 32), 10)
    for resolution in (27, 16, 31):
        with pytest.raises(UserError, match=f"data.source.resolution: {resolution} .*give 28 or"):
            MNIST(resolution=resolution)


def test_usual_places_are_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_files(tmp_path / "cache/lit_gen/data/mnist")
    assert len(MNIST(download=False, checksum=False).load("train").images) == 6
    monkeypatch.setattr(FashionMNIST, "package", ("dataset-fashion-mnist", str(write_files(tmp_path / "package"))))
    assert len(FashionMNIST(download=False, checksum=False).load("train").images) == 6


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="train-images-idx3-ubyte.gz of fashion_mnist was not found") as caught:
        FashionMNIST(root=str(tmp_path), download=False).prepare()
    for remedy in (f"searched {tmp_path}", "apt-get install dataset-fashion-mnist", "--data.source.root"):
        assert remedy in str(caught.value)


def test_download_is_checked_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = write_files(tmp_path / "server")
    official(monkeypatch, MNIST)
    monkeypatch.setattr(MNIST, "mirrors", ((tmp_path / "dead").as_uri() + "/", server.as_uri() + "/"))
    home = tmp_path / "home"
    MNIST(root=str(home)).prepare()
    assert sorted(path.name for path in (home / "mnist").iterdir()) == sorted(path.name for path in server.iterdir())
    source = MNIST(root=str(home), download=False)
    assert source.load("train").images.tobytes() == content("train", "images")[16:]
    assert len(ImageDataModule(source, num_val=2).images("train")) == 4


def test_damaged_download_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    official(monkeypatch, MNIST)
    server = write_files(tmp_path / "server")
    cut = server / "train-images-idx3-ubyte.gz"
    cut.write_bytes(cut.read_bytes()[:500])
    monkeypatch.setattr(MNIST, "mirrors", (server.as_uri() + "/",))
    with pytest.raises(UserError, match=r"could not download train-images.*checksum mismatch.*--data\.source\.root"):
        MNIST(root=str(tmp_path / "home")).prepare()
    assert not (tmp_path / "home").exists()


@pytest.mark.network
def test_the_mirrors_of_fashion_mnist_hold_the_official_files(tmp_path: Path) -> None:
    """The smallest of them, 5 kB: ten classes of 1,000 test images each."""
    source = FashionMNIST(root=str(tmp_path))
    for mirror in source.mirrors:
        name = "t10k-labels-idx1-ubyte"
        path = tmp_path / source.name / f"{name}.gz"
        download([f"{mirror}{name}.gz"], path, source.md5[name][0], source.folders())
        assert np.bincount(read_idx(decompress(path), 1, name)).tolist() == [1000] * 10
        path.unlink()


def test_a_download_can_be_read_by_all_whom_the_umask_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = write_files(tmp_path / "server")
    official(monkeypatch, MNIST)
    monkeypatch.setattr(MNIST, "mirrors", (server.as_uri() + "/",))
    for umask, mode in ((0o022, 0o644), (0o027, 0o640)):
        before = os.umask(umask)
        try:
            MNIST(root=str(tmp_path / oct(umask))).prepare()
        finally:
            os.umask(before)
        assert {path.stat().st_mode & 0o777 for path in (tmp_path / oct(umask) / "mnist").iterdir()} == {mode}


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for source in (MNIST, FashionMNIST):
        monkeypatch.setattr(source, "mirrors", ("http://127.0.0.1:9/",))
        with pytest.raises(UserError, match=r"could not download train-images-idx3-ubyte\.gz") as caught:
            source(root=str(tmp_path)).prepare()
        places = (f"searched {tmp_path / source.name}, ", f", {tmp_path})")
        url = "http://127.0.0.1:9/train-images-idx3-ubyte.gz"
        for part in (*places, f"{url}: ", f"put {url} into a folder", "--data.source.root"):
            assert part in str(caught.value)
        package = "apt-get install dataset-fashion-mnist"
        assert (package in str(caught.value)) == (source is FashionMNIST)
        assert "\n" not in str(caught.value)
    # and where no root is named
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(FashionMNIST, "package", ("dataset-fashion-mnist", str(tmp_path / "package")))
    with pytest.raises(UserError, match="could not download") as caught:
        FashionMNIST().prepare()
    for place in ("searched data/fashion_mnist, ", str(tmp_path / "cache/lit_gen/data"), str(tmp_path / "package")):
        assert place in str(caught.value)


def test_checksum_of_local_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path)
    official(monkeypatch, MNIST)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(content("train", "images"), compresslevel=1))  # compressed anew, as Debian does
    source = MNIST(root=str(tmp_path), download=False)
    assert len(source.load("train").images) == 6
    changed = bytearray(content("train", "images"))
    changed[-1] ^= 1
    path.write_bytes(gzip.compress(bytes(changed)))
    with pytest.raises(UserError, match="train-images-idx3-ubyte.gz: not the official file.*checksum false"):
        source.load("train")
    assert len(MNIST(root=str(tmp_path), checksum=False).load("train").images) == 6


def test_truncated_and_foreign_files(tmp_path: Path) -> None:
    source = MNIST(root=str(tmp_path), download=False, checksum=False)
    write_files(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    for damaged in (whole[:1000], whole[:5], whole[:2000] + b"?" * 20 + whole[2020:], content("train", "images")):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"train-images-idx3-ubyte\.gz: truncated or damaged .*download it again"):
            source.load("train")
    for damaged in (content("train", "images")[:-1], content("train", "images")[:6]):
        path.write_bytes(gzip.compress(damaged))
        with pytest.raises(UserError, match=r"images-idx3-ubyte\.gz: truncated or damaged, since its header promises"):
            source.load("train")
    path.write_bytes(gzip.compress(content("train", "labels")))
    with pytest.raises(UserError, match=r"images-idx3-ubyte\.gz: not an IDX file of 3-dimensional"):
        source.load("train")
    path.write_bytes(gzip.compress(content("t10k", "images")))
    with pytest.raises(UserError, match=r"the train files hold images of shape \(4, 28, 28\) and 6 labels"):
        source.load("train")


def test_images_and_labels_that_are_not_those_of_the_data_set(tmp_path: Path) -> None:
    source = MNIST(root=str(tmp_path), download=False, checksum=False)
    write_files(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(struct.pack(">HBBIII", 0, 8, 3, 6, 20, 20) + bytes(6 * 400)))
    with pytest.raises(UserError, match=r"train files hold images of shape \(6, 20, 20\).*not \(N, 28, 28\)"):
        source.load("train")
    write_files(tmp_path)
    path = tmp_path / "train-labels-idx1-ubyte.gz"
    for last in (11, 10):
        path.write_bytes(gzip.compress(struct.pack(">HBBI", 0, 8, 1, 6) + bytes((0, 1, 2, 3, 4, last))))
        with pytest.raises(UserError, match=rf"mnist: the train labels go up to {last}, not 9"):
            source.load("train")
    assert len(source.load("test").images) == 4, "the other part is as it should be"


@pytest.mark.skipif(
    not Path("/usr/share/datasets/fashion-mnist").is_dir(), reason="needs Debian's package dataset-fashion-mnist"
)
def test_fashion_mnist_of_debian() -> None:
    data = ImageDataModule(FashionMNIST(resolution=32, download=False), num_val=5000)
    assert [len(data.images(split)) for split in ("train", "val", "test")] == [55000, 5000, 10000]
    assert np.bincount(FashionMNIST(download=False).load("train").labels).tolist() == [6000] * 10  # type: ignore[arg-type]
    assert np.bincount(data.labels("test")).tolist() == [1000] * 10  # type: ignore[arg-type]
    # the first training image is an ankle boot; the mean grey value is the one everybody normalises with
    assert data.labels("train")[0] == 9  # type: ignore[index]
    mean = FashionMNIST(download=False).load("train").images.mean() / 255
    assert abs(mean - 0.2860) < 5e-5
