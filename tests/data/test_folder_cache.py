"""Caches of folders that are damaged: always the right images and fingerprint."""

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lit_gen.data import Folder, ImageDataModule, folder

NAMES = ("meta.json", "images.u8", "labels.npy", "fingerprint-0-5", "fingerprint-5-7")


class Tree:
    """Seven images of two classes, their cache, and what is right."""

    def __init__(self, place: Path) -> None:
        self.root, self.caches = place / "pets", place / "cache"
        rng = np.random.default_rng(0)
        for number in range(7):
            path = self.root / ("cat" if number % 3 else "dog") / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (6, 5, 3), dtype=np.uint8)).save(path)
        self.right = self.read()
        (self.cache,) = self.caches.iterdir()
        self.kept = place / "kept"
        shutil.copytree(self.cache, self.kept)

    def read(self) -> list[Any]:
        source = Folder(str(self.root), resolution=3, cache=str(self.caches))
        data = ImageDataModule(source, num_val=2)
        images, labels = source.load("train")
        assert labels is not None
        return [images.tobytes(), labels.tolist(), data.fingerprint("train"), data.fingerprint("val")]

    def restore(self) -> None:
        shutil.rmtree(self.caches)
        shutil.copytree(self.kept, self.cache)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    return Tree(tmp_path_factory.mktemp("damaged"))


@settings(max_examples=60, derandomize=True, deadline=None)
@given(data=st.data())
def test_cut_and_flipped_files_are_made_again(tree: Tree, data: st.DataObject) -> None:
    tree.restore()
    path = tree.cache / data.draw(st.sampled_from(NAMES))
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        bit = data.draw(st.integers(0, 8 * len(content) - 1))
        content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    assert tree.read() == tree.right
    assert tree.read() == tree.right
    assert [path.name for path in tree.caches.iterdir()] == [tree.cache.name], "no remains of a build"


OTHERS = {
    "nothing": b"",
    "a list": b"[]",
    "null": b"null",
    "a number": b"1e999",
    "nested": b"[" * 100_000,
    "not UTF-8": b'{"shape": "\xff"}',
    "another fingerprint": b"0" * 64,
    "longer": b"0" * 1000,
}


@pytest.mark.parametrize("content", OTHERS.values(), ids=OTHERS.keys())
@pytest.mark.parametrize("name", NAMES)
def test_other_content_is_not_accepted(tree: Tree, name: str, content: bytes) -> None:
    tree.restore()
    (tree.cache / name).write_bytes(content)
    assert tree.read() == tree.right


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", [*NAMES, ""])
@pytest.mark.parametrize("kind", ["missing", "folder", "fifo", "link", "file"])
def test_what_is_no_file_is_not_accepted(tree: Tree, name: str, kind: str) -> None:
    tree.restore()
    path = tree.cache / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    match kind:
        case "folder":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "link":
            path.symlink_to(tree.caches / "nowhere")
        case "file":
            path.write_bytes(b"?")
    assert tree.read() == tree.right


def test_records_of_another_cache_are_not_accepted(tree: Tree, tmp_path: Path) -> None:
    tree.restore()
    other = Folder(str(tree.root), resolution=4, cache=str(tmp_path))
    theirs = ImageDataModule(other, num_val=2).fingerprint("train")
    (cache,) = tmp_path.iterdir()
    for name in ("fingerprint-0-5", "meta.json", "labels.npy"):
        shutil.copy(cache / name, tree.cache / name)
        assert tree.read() == tree.right
    assert theirs != tree.right[2]


def test_a_large_cache_is_read_again_only_after_it_was_touched(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    tree.restore()
    monkeypatch.setattr(folder, "VERIFIED", 0)
    path = tree.cache / "images.u8"
    assert tree.read() == tree.right  # a copy with times of its own, whose checksum is right
    with monkeypatch.context() as patch:
        patch.setattr("hashlib.file_digest", lambda *_: pytest.fail("read again"))
        assert tree.read() == tree.right
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)
    assert tree.read() == tree.right


def test_a_rebuilt_cache_is_said_once(tree: Tree, caplog: pytest.LogCaptureFixture) -> None:
    tree.restore()
    (tree.cache / "labels.npy").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        tree.read()
        tree.read()
    assert caplog.messages == [f"{tree.cache}: the cache is damaged; building it again"]
