"""Files that are bombs, links, pipes, or damaged: one line, soon, and within little memory."""

import gzip
import io
import os
import pickle
import struct
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_gen.core.errors import UserError
from lit_gen.data import CIFAR10, MNIST, Npz
from lit_gen.data import files as data_files
from lit_gen.data.encoded import load_values, save_values
from lit_gen.data.pairs import Pairs

MEGABYTE = 10**6
needs_fifos = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")


@contextmanager
def little_memory(megabytes: int = 30) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < megabytes * MEGABYTE


def idx(*shape: int) -> bytes:
    return struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)


def mnist(folder: Path, images: bytes, ending: str = ".gz") -> MNIST:
    """Six images, whose file has the given content."""
    folder.mkdir(exist_ok=True)
    (folder / f"train-images-idx3-ubyte{ending}").write_bytes(images)
    (folder / "train-labels-idx1-ubyte").write_bytes(idx(6) + bytes(6))
    return MNIST(root=str(folder), download=False, checksum=False)


@pytest.mark.parametrize("shape", [(6, 28, 28), (0, 0, 0), (1, 1, 1)])
def test_a_gzip_bomb_is_unpacked_no_further_than_its_header_says(tmp_path: Path, shape: tuple[int, ...]) -> None:
    bomb = gzip.compress(idx(*shape) + bytes(100 * MEGABYTE), 1)
    with little_memory(), pytest.raises(UserError, match=r"idx3-ubyte\.gz: .* its header promises .*, but it has more"):
        mnist(tmp_path, bomb).load("train")


def test_a_large_file_is_read_no_further_than_its_header_says(tmp_path: Path) -> None:
    source = mnist(tmp_path, idx(6, 28, 28), ending="")
    os.truncate(tmp_path / "train-images-idx3-ubyte", 100 * MEGABYTE)
    with little_memory(), pytest.raises(UserError, match="its header promises 4,720 bytes .*, but it has more"):
        source.load("train")


@pytest.mark.parametrize("shape", [(2**30, 1, 1), (2**32 - 1,) * 3])
def test_a_header_beyond_the_limit_is_refused_with_the_limit(tmp_path: Path, shape: tuple[int, ...]) -> None:
    bomb = gzip.compress(idx(*shape) + bytes(10 * MEGABYTE))
    with little_memory(), pytest.raises(UserError, match=r"header announces [\d,]+ bytes, more than 1,073,741,824"):
        mnist(tmp_path, bomb).load("train")


def batch(**changes: Any) -> bytes:
    images = np.zeros((2, 3072), np.uint8)
    return pickle.dumps({"data": images, "labels": [3, 5]} | changes, 2)


Member = tuple[tarfile.TarInfo, bytes]


def member(name: str, content: bytes = b"", **fields: Any) -> Member:
    info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def cifar(folder: Path, *members: Member, **options: Any) -> CIFAR10:
    """An archive of the test batch alone, with the given members before it."""
    folder.mkdir(exist_ok=True)
    with tarfile.open(folder / "cifar-10-python.tar.gz", "w:gz", compresslevel=1, **options) as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return CIFAR10(root=str(folder), download=False, checksum=False)


LINKS = {
    "link": member("test_batch", type=tarfile.SYMTYPE, linkname="other"),
    "link outside": member("test_batch", type=tarfile.SYMTYPE, linkname="/etc/hostname"),
    "link to itself": member("test_batch", type=tarfile.SYMTYPE, linkname="test_batch"),
    "hard link": member("test_batch", type=tarfile.LNKTYPE, linkname="cifar-10-batches-py/other"),
    "hard link to nothing": member("test_batch", type=tarfile.LNKTYPE, linkname="nothing"),
    "pipe": member("test_batch", type=tarfile.FIFOTYPE),
    "device": member("test_batch", type=tarfile.CHRTYPE, devmajor=1, devminor=5),
    "folder": member("test_batch", type=tarfile.DIRTYPE),
    "outside": member("../../test_batch", batch()),
}


@pytest.mark.parametrize("special", LINKS.values(), ids=LINKS.keys())
def test_only_regular_members_of_an_archive_are_read(tmp_path: Path, special: Member) -> None:
    source = cifar(tmp_path / "in", member("other", batch()), special)
    with pytest.raises(UserError, match=r"tar\.gz: lacks cifar-10-batches-py/test_batch; delete it"):
        source.load("test")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["cifar-10-python.tar.gz"]
    source = cifar(tmp_path / "in", special, member("test_batch", batch()))
    assert source.load("test").labels.tolist() == [3, 5]  # type: ignore[union-attr]


BOMBS: dict[str, Callable[[], list[Member]]] = {
    "before": lambda: [member("padding", bytes(60 * MEGABYTE)), member("test_batch", batch())],
    "itself": lambda: [member("test_batch", bytes(60 * MEGABYTE))],
    "header": lambda: [member("test_batch", batch(), pax_headers={"comment": "x" * 60 * MEGABYTE})],
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS.keys())
def test_an_archive_is_unpacked_no_further_than_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bomb: Callable[[], list[Member]]
) -> None:
    source = cifar(tmp_path, *bomb(), format=tarfile.PAX_FORMAT)
    monkeypatch.setattr("lit_gen.data.cifar.LIMIT", 2 * MEGABYTE)
    with (
        little_memory(),
        pytest.raises(UserError, match=r"tar\.gz: .* unpacks to more than 2,000,000 bytes"),
    ):
        source.load("test")


def lists_of_lists(depth: int) -> list[Any]:
    """10^depth entries, in a few bytes."""
    entry: list[Any] = [0] * 10
    for _ in range(depth - 1):
        entry = [entry] * 10
    return entry


@pytest.mark.parametrize("labels", [lists_of_lists(7), [], [2**70, 1], ["3", "5"], None, {3: 5}, 3])
def test_labels_of_a_batch_are_a_list_of_integers(tmp_path: Path, labels: Any) -> None:
    source = cifar(tmp_path, member("test_batch", batch(labels=labels)))
    with little_memory(), pytest.raises(UserError, match="test_batch"):
        source.load("test")


def deflated(path: Path, name: str, *pieces: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open(f"{name}.npy", "w") as file:
        for piece in pieces:
            file.write(piece)
    return path


def npy(*shape: int) -> bytes:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return header.getvalue()


def test_an_npz_bomb_is_refused_with_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert data_files.NPZ_LIMIT == 2**32
    monkeypatch.setattr(data_files, "NPZ_LIMIT", 3 * MEGABYTE)
    path = deflated(tmp_path / "a.npz", "images", npy(50, 1, 1000, 1000), *[bytes(MEGABYTE)] * 50)
    with little_memory(), pytest.raises(UserError, match=r"unpacks to 50,000,128 bytes, but .* is 3,000,000"):
        Npz(str(path)).load("train")
    with little_memory(), pytest.raises(UserError, match=r"a\.npz: not a readable .* is 3,000,000"):
        load_values(deflated(tmp_path / "a.npz", "values", npy(50, 1, 1000, 1000), *[bytes(MEGABYTE)] * 50))
    noise = np.random.default_rng(0).integers(0, 256, (4, 1, 1000, 1000), dtype=np.uint8)
    np.savez_compressed(tmp_path / "b.npz", images=noise)  # beyond that limit, but as large on the disk
    assert (Npz(str(tmp_path / "b.npz")).load("train").images == noise).all()


@pytest.mark.parametrize("shape", [(10**12, 1, 2, 2), (3, 1, 2, 2), (1, 1, 2, 2), (0, 1, 2, 2)])
def test_an_array_is_as_long_as_its_header_says(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = deflated(tmp_path / "a.npz", "images", npy(*shape), bytes(8))
    with pytest.raises(UserError, match=r"a\.npz: cannot be read as an \.npz file"):
        Npz(str(path)).load("train")


@needs_fifos
@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["fifo", "device", "folder"])
def test_data_files_are_regular_files(tmp_path: Path, kind: str) -> None:
    def put(path: Path) -> str:
        path.unlink(missing_ok=True)
        path.parent.mkdir(exist_ok=True)
        {"fifo": os.mkfifo, "device": lambda path: path.symlink_to("/dev/zero"), "folder": os.mkdir}[kind](path)
        return str(path)

    for path, read in (
        (tmp_path / "a.npz", lambda path: Npz(path).load("train")),
        (tmp_path / "b.npz", lambda path: load_values(Path(path))),
        (tmp_path / "c.npz", lambda path: Pairs.load(Path(path))),
    ):
        with pytest.raises(UserError, match=rf"{path.name}.* not a regular file"):
            read(put(path))
    source = mnist(tmp_path / "mnist", b"")
    put(tmp_path / "mnist" / "train-images-idx3-ubyte.gz")
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte"):
        source.load("train")
    archive = cifar(tmp_path / "cifar")
    put(tmp_path / "cifar" / "cifar-10-python.tar.gz")
    with pytest.raises(UserError, match=r"cifar-10-python\.tar\.gz"):
        archive.load("train")


def an_npz(path: Path) -> None:
    images = np.arange(3 * 2 * 2, dtype=np.uint8).reshape(3, 1, 2, 2)
    np.savez(path, images=images, labels=np.array([4, 0, 4]), class_names=np.array(list("abcde")))


def read_npz(path: Path) -> list[Any]:
    source = Npz(str(path))
    images, labels = source.load("train")
    return [images.tolist(), labels.tolist(), source.class_names]  # type: ignore[union-attr]


KINDS: dict[str, tuple[Callable[[Path], Any], Callable[[Path], list[Any]]]] = {
    "npz": (an_npz, read_npz),
    "pairs": (
        lambda path: Pairs(np.full((3, 1, 2, 2), 7, np.uint8), np.arange(3), 5, 2, (1, 2)).save(path),
        lambda path: [Pairs.load(path).images.tolist(), Pairs.load(path).fingerprint(), Pairs.load(path).class_counts],
    ),
    "codes": (
        lambda path: save_values(np.arange(12, dtype=np.int32).reshape(3, 2, 2), path),
        lambda path: [load_values(path).tolist(), load_values(path).dtype],
    ),
}


@pytest.mark.parametrize(("kind", "name"), [("npz", "labels"), ("npz", "class_names"), ("pairs", "class_counts")])
def test_an_optional_array_is_not_lost_with_its_name(tmp_path: Path, kind: str, name: str) -> None:
    write, read = KINDS[kind]
    path = tmp_path / "a.npz"
    write(path)
    content = path.read_bytes()
    places = [content.index(f"{name}.npy".encode()), content.rindex(f"{name}.npy".encode())]
    assert places[0] < places[1]
    for place in places:
        for offset in range(len(name) + 4):
            path.write_bytes(content[: place + offset] + b"x" + content[place + offset + 1 :])
            with pytest.raises(UserError, match=r"a\.npz"):
                read(path)


@settings(max_examples=150, derandomize=True, deadline=None)
@given(kind=st.sampled_from(list(KINDS)), data=st.data())
def test_damaged_files_are_refused_and_never_read_wrongly(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject
) -> None:
    write, read = KINDS[kind]
    path = tmp_path_factory.getbasetemp() / f"{kind}.npz"
    write(path)
    right, content = read(path), bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    for bit in data.draw(st.lists(st.integers(0, 8 * len(content) - 1), max_size=2)) if content else []:
        content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    try:
        found = read(path)
    except UserError as error:
        assert "\n" not in str(error) and str(path) in str(error)
    else:
        assert found == right
