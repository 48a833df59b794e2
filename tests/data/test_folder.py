"""Folders of images: pixels, classes, the cache, damaged files."""

import logging
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image

from lit_gen.core.errors import UserError
from lit_gen.data import Folder, ImageDataModule


def save(path: Path, pixels: Any, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(path, **options)


def make_tree(root: Path, classes: tuple[str, ...] = ("apple", "pear"), per_class: int = 4) -> Path:
    """Flat images whose grey value is 10 (class) + number."""
    for label, name in enumerate(classes):
        for number in range(per_class):
            save(root / name / f"{number}.png", np.full((8, 8, 3), 10 * label + number))
    return root


def folder(root: Path, **settings: Any) -> Folder:
    defaults: dict[str, Any] = {"resolution": 8, "cache": str(root.parent / "cache")}
    return Folder(str(root), **(defaults | settings))


def test_images_and_labels_agree(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "pets")
    (root / "readme.txt").write_text("no image")
    save(root / ".hidden" / "0.png", np.zeros((8, 8)))
    source = folder(root)
    images, labels = source.load("train")
    assert labels is not None
    assert sorted(images[:, 0, 0, 0].tolist()) == [0, 1, 2, 3, 10, 11, 12, 13]
    assert (images[:, 0, 0, 0] // 10 == labels).all()
    assert (source.name, source.classes, source.num_classes) == ("pets", ["apple", "pear"], 2)
    assert (np.diff(labels) < 0).any()  # not sorted by class


def test_square_images_of_the_right_size_keep_their_pixels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    save(tmp_path / "a" / "x.png", pixels)
    assert (folder(tmp_path / "a").load("train").images[0] == pixels.transpose(2, 0, 1)).all()
    grey = folder(tmp_path / "a", channels=1).load("train").images[0]
    assert (grey[0] == np.asarray(Image.fromarray(pixels).convert("L"))).all()


@pytest.mark.parametrize("wide", [True, False])
def test_resized_and_cropped_to_the_middle(tmp_path: Path, wide: bool) -> None:
    """Three squares in a row, the middle one half red, half blue: only it is left, at half its size."""
    pixels = np.zeros((16, 48, 3))
    pixels[:, 16:24] = (255, 0, 0)
    pixels[:, 24:32] = (0, 0, 255)
    save(tmp_path / "a" / "x.png", pixels if wide else pixels.transpose(1, 0, 2))
    image = folder(tmp_path / "a").load("train").images[0]
    image = image if wide else image.transpose(0, 2, 1)
    assert (image[:, :, 1] == np.array([255, 0, 0])[:, None]).all()
    assert (image[:, :, 6] == np.array([0, 0, 255])[:, None]).all()


def test_orientation_of_photographs_is_respected(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 3))
    pixels[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    save(tmp_path / "a" / "x.png", pixels, exif=exif)
    image = folder(tmp_path / "a").load("train").images[0]
    assert image[:, :4].max() == 0
    assert image[:, 4:].min() == 255


def test_no_classes(tmp_path: Path) -> None:
    for number in range(3):
        save(tmp_path / "flat" / f"{number}.png", np.full((8, 8), number))
    flat = folder(tmp_path / "flat")
    assert (flat.num_classes, flat.load("train").labels) == (0, None)
    root = make_tree(tmp_path / "tree")
    ignored = folder(root, class_folders=False)
    assert (ignored.num_classes, ignored.load("train").labels, len(ignored.load("train").images)) == (0, None, 8)
    save(root / "loose.png", np.zeros((8, 8)))
    with pytest.raises(UserError, match=r"both in subfolders and next to them \(loose\.png\).*class_folders false"):
        folder(root).load("train")


def test_test_folder(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "train")
    with pytest.raises(UserError, match=r"data\.source\.test: train has no test images; .*--data\.source\.test"):
        folder(root).load("test")
    source = folder(root, test=str(make_tree(tmp_path / "test", ("pear",), 2)))
    assert source.load("test").labels.tolist() == [1, 1]  # type: ignore[union-attr]
    source = folder(root, test=str(make_tree(tmp_path / "other", ("plum",), 1)))
    with pytest.raises(UserError, match=r"plum/0\.png: belongs to none of the 2 classes"):
        source.load("test")


def test_cache_is_built_once_and_again_when_files_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_tree(tmp_path / "a")
    folder(root).prepare()
    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", lambda *_: pytest.fail("decoded again"))
        assert len(folder(root).load("train").images) == 8
    save(root / "apple" / "0.png", np.full((8, 8, 3), 200))
    os.utime(root / "apple" / "0.png", ns=(1, 1))
    assert folder(root).load("train").images.max() == 200
    assert len(list((tmp_path / "cache").iterdir())) == 2  # and no remains of a build
    assert folder(root, resolution=4).load("train").images.shape == (8, 3, 4, 4)


def test_trees_that_differ_in_pixels_alone_have_caches_of_their_own(tmp_path: Path) -> None:
    """Bitmaps are as large whatever they show, and copying tools keep the times of files."""
    stats = []
    for root, grey in ((tmp_path / "a", 50), (tmp_path / "b", 200)):
        save(root / "x" / "0.bmp", np.full((8, 8, 3), grey))
        os.utime(root / "x" / "0.bmp", ns=(10**18, 10**18))
        stat = (root / "x" / "0.bmp").stat()
        stats.append((stat.st_size, stat.st_mtime_ns))
    assert stats[0] == stats[1]
    for name, grey in (("a", 50), ("b", 200), ("a", 50)):
        assert (folder(tmp_path / name).load("train").images == grey).all()
    # the fingerprint knows the content and not the place
    first, second = (ImageDataModule(folder(tmp_path / name)).fingerprint("train") for name in ("a", "b"))
    (tmp_path / "a").rename(tmp_path / "c")
    assert ImageDataModule(folder(tmp_path / "c")).fingerprint("train") == first != second
    (tmp_path / "link").symlink_to(tmp_path / "c")
    caches = len(list((tmp_path / "cache").iterdir()))
    folder(tmp_path / "link").prepare()
    assert len(list((tmp_path / "cache").iterdir())) == caches == 3, "another name of the same place"


def test_images_stay_on_disk(tmp_path: Path) -> None:
    data = ImageDataModule(folder(make_tree(tmp_path / "a")), batch_size=2, num_val=2, num_workers=2)
    for split in ("train", "val"):
        assert isinstance(data.images(split), np.memmap)
    seen = [
        (int(image[0, 0, 0]), int(label))
        for batch in data.train_dataloader()
        for image, label in zip(*batch[:2], strict=True)
    ]
    assert len(set(seen)) == 6
    assert all(grey // 10 == label for grey, label in seen)
    data.images("train")[:] = 0  # writes to memory, not to the file
    assert folder(tmp_path / "a").load("train").images.max() == 13


def test_fingerprint_is_of_content_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = folder(make_tree(tmp_path / "a"))
    second = folder(make_tree(tmp_path / "b"), cache=str(tmp_path / "elsewhere"))
    value = ImageDataModule(first).fingerprint("train")
    assert value == ImageDataModule(second).fingerprint("train") == first.load("train").fingerprint()
    assert ImageDataModule(first, num_val=2).fingerprint("val") == first.load("train").slice(6, 8).fingerprint()
    monkeypatch.setattr("lit_gen.data.sources.ImageSet.fingerprint", lambda _: pytest.fail("computed again"))
    assert ImageDataModule(folder(tmp_path / "a")).fingerprint("train") == value


@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
def test_unreadable_image(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    root = make_tree(tmp_path / "a")
    bad = root / "pear" / "2.png"
    save(bad, np.random.default_rng(0).integers(0, 256, (64, 64, 3)))
    bad.write_bytes({"cut": bad.read_bytes()[:3000], "text": b"hello", "empty": b""}[damage])
    modes: list[Literal["raise", "skip"]] = ["raise", "skip", "raise"]  # also when the cache was built by skipping
    for on_error in modes:
        source = folder(root, on_error=on_error)
        if on_error == "raise":
            with pytest.raises(UserError, match=r"pear/2\.png: cannot be read as an image.*on_error skip"):
                source.load("train")
            continue
        with caplog.at_level(logging.WARNING):
            images, labels = source.load("train")
        assert sorted(images[:, 0, 0, 0].tolist()) == [0, 1, 2, 3, 10, 11, 13]
        assert (images[:, 0, 0, 0] // 10 == labels).all()
        assert "skipped 1 of 8 files that cannot be read as images; the first is pear/2.png" in caplog.text
        assert source.skipped("train") == ["pear/2.png"]


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^data\.source\.root: .*none is not a folder; set --data\.source\.root"):
        folder(tmp_path / "none").load("train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty holds no images .*set --data\.source\.root"):
        folder(tmp_path / "empty").load("train")
    (tmp_path / "empty" / "x.jpg").write_text("hello")
    with pytest.raises(UserError, match="empty: none of its 1 files can be read"):
        folder(tmp_path / "empty", on_error="skip").load("train")
    with pytest.raises(UserError, match="data.source.resolution: 0"):
        folder(tmp_path / "empty", resolution=0)


@pytest.mark.parametrize(("ending", "channels"), [("png", 1), ("png", 3), ("tif", 1), ("pgm", 1)])
def test_16_bit_grey_values_are_scaled(tmp_path: Path, ending: str, channels: Literal[1, 3]) -> None:
    values = np.random.default_rng(0).integers(0, 2**16, (8, 8), dtype=np.uint16)
    values[0, :6] = (0, 128, 129, 255, 65406, 65535)  # v / 257 is rounded: 128 -> 0, 129 -> 1, 65406 -> 254
    (tmp_path / "a").mkdir()
    Image.fromarray(values).save(tmp_path / "a" / f"x.{ending}")
    image = folder(tmp_path / "a", channels=channels).load("train").images[0]
    assert image[0, 0, :6].tolist() == [0, 0, 1, 1, 254, 255]
    assert (image == np.rint(values / 257).astype(np.uint8)).all()


def test_values_without_a_known_range_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)).save(tmp_path / "a" / "x.tif")
    with pytest.raises(UserError, match=r"x\.tif: cannot be read as an image \(pixels of type F, .*on_error skip"):
        folder(tmp_path / "a").load("train")


def test_a_link_that_leads_nowhere_is_an_unreadable_image(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "a")
    (root / "pear" / "9.png").symlink_to(tmp_path / "missing.png")
    with pytest.raises(UserError, match=r"pear/9\.png: cannot be read as an image.*on_error skip"):
        folder(root).load("train")
    source = folder(root, on_error="skip")
    assert len(source.load("train").images) == 8 and source.skipped("train") == ["pear/9.png"]
    save(tmp_path / "missing.png", np.full((8, 8, 3), 200))
    assert folder(root).load("train").images.max() == 200, "the cache knows that it is there now"


def test_the_cache_can_be_read_by_all_whom_the_umask_allows(tmp_path: Path) -> None:
    for umask in (0o022, 0o027):
        cache = tmp_path / oct(umask)
        before = os.umask(umask)
        try:
            source = folder(make_tree(tmp_path / "a"), cache=str(cache))
            ImageDataModule(source).fingerprint("train")
        finally:
            os.umask(before)
        modes = {(path.is_dir(), path.stat().st_mode & 0o777) for path in [cache, *cache.rglob("*")]}
        assert modes == {(True, 0o777 & ~umask), (False, 0o666 & ~umask)}
        assert any(path.name.startswith("fingerprint") for path in cache.rglob("*"))
