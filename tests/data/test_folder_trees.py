"""Which files of a folder are images of a data set: links, names, endings, parts, transparency."""

import logging
import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st
from PIL import Image, features

from lit_gen.core.errors import UserError
from lit_gen.data import Folder, ImageDataModule

Channels = Literal[1, 3]


def save(path: Path, grey: int, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4, 3), grey, np.uint8)).save(path, **options)


def folder(root: Path, **settings: Any) -> Folder:
    defaults: dict[str, Any] = {"resolution": 4, "cache": str(root.parent / "cache")}
    return Folder(str(root), **(defaults | settings))


def greys(source: Folder, part: Literal["train", "test"] = "train") -> list[int]:
    return sorted(source.load(part).images[:, 0, 0, 0].tolist())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of two images each, one in a folder of its own."""
    for grey, name in enumerate(("cat/0.png", "cat/deep/1.png", "dog/0.png", "dog/1.png")):
        save(tmp_path / "pets" / name, grey)
    return tmp_path / "pets"


LINKS = {
    "to itself": {"dog/again": "."},
    "to a parent": {"cat/deep/up": "../.."},
    "above the root": {"dog/above": "../.."},
    "to each other": {"cat/dogs": "../dog", "dog/cats": "../cat"},
    "no folder at all": {"cat/loop": "loop", "dog/one": "two", "dog/two": "one"},
    "to a class": {"aardvark": "cat"},
}


@pytest.mark.parametrize("links", LINKS.values(), ids=LINKS.keys())
def test_each_folder_is_read_once_whatever_links_lead_to_it(
    root: Path, links: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    before = ImageDataModule(folder(root)).fingerprint("train")
    save(root.parent / "elsewhere.png", 200)
    for name, target in links.items():
        (root / name).symlink_to(target)
    with caplog.at_level(logging.WARNING):
        source = folder(root)
        assert greys(source) == [0, 1, 2, 3]
    assert source.classes == ["cat", "dog"]
    assert ImageDataModule(source).fingerprint("train") == before
    assert len(caplog.messages) == 1 and f"{len(links)} link" in caplog.text and min(links) in caplog.text


def test_links_to_folders_elsewhere_are_followed_once(root: Path, tmp_path: Path) -> None:
    save(tmp_path / "more" / "bird" / "0.png", 10)
    save(tmp_path / "more" / "bird" / "old" / "1.png", 11)
    (tmp_path / "more" / "bird" / "back").symlink_to(root)
    (root / "bird").symlink_to(tmp_path / "more" / "bird")
    (root / "cat" / "old").symlink_to(tmp_path / "more" / "bird" / "old")
    source = folder(root)
    assert greys(source) == [0, 1, 2, 3, 10, 11]
    assert source.class_names == ("bird", "cat", "dog")
    assert np.bincount(source.load("train").labels).tolist() == [2, 2, 2]  # type: ignore[arg-type]


@pytest.mark.skipif(os.name == "nt", reason="names are bytes only on POSIX")
def test_names_that_are_not_utf8_or_cannot_be_printed(root: Path) -> None:
    inside = os.fsencode(root)
    os.mkdir(inside + b"/b\xe9b\xe9")
    os.rename(inside + b"/cat/0.png", inside + b"/b\xe9b\xe9/n\xff.png")
    os.rename(inside + b"/dog/0.png", inside + b"/dog/a\nb.png")
    source = folder(root)
    assert greys(source) == [0, 1, 2, 3]
    assert source.class_names == ("b\\xe9b\\xe9", "cat", "dog")
    assert len(ImageDataModule(source).fingerprint("train")) == 64
    for name in (b"/b\xe9b\xe9/n\xff.png", b"/dog/a\nb.png"):
        with open(inside + name, "wb") as file:
            file.write(b"no image")
    with pytest.raises(UserError) as caught:
        folder(root).load("train")
    str(caught.value).encode()
    assert "\n" not in str(caught.value)
    (root / "b\udce9b\udce9" / "1.png").write_bytes((root / "dog" / "1.png").read_bytes())
    assert sorted(folder(root, on_error="skip").skipped("train")) == ["b\\xe9b\\xe9/n\\xff.png", "dog/a\\nb.png"]


def test_the_order_of_images_depends_on_their_names_alone(tmp_path: Path) -> None:
    """The fingerprint of opaque images with ordinary names, as version 0.1 computed it."""
    for grey in range(9):
        save(tmp_path / "a" / f"{'xyz'[grey % 3]}" / f"ü{grey}.png", 20 * grey)
    expected = "bf46026784acb529b06342daa8ca043f16f2c2ba39747e4d3507f46b03db1702"
    assert ImageDataModule(folder(tmp_path / "a")).fingerprint("train") == expected


def test_all_endings_and_none_are_read_and_others_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    formats = {"a.jfif": "JPEG", "b.JPE": "JPEG", "c.tga": "TGA", "d.PnM": "PPM", "e": "PNG", "f": "WEBP", "g.": "BMP"}
    if features.check("avif"):
        formats["h.AVIF"] = "AVIF"
    for number, (name, kind) in enumerate(formats.items()):
        save(tmp_path / "a" / name, 20 * number, format=kind)
    for name in ("notes.txt", "more.TXT", "labels.json", "README", ".hidden.txt", "Thumbs.db", "desktop.ini"):
        (tmp_path / "a" / name).write_text("P7 is no image")
    with caplog.at_level(logging.WARNING):
        found = greys(folder(tmp_path / "a"))
    assert np.abs(np.array(found) - 20 * np.arange(len(formats))).max() <= 2  # JPEG and AVIF round
    (message,) = caplog.messages
    assert message.endswith("a: skipped 4 files of other kinds (.txt 2, without a suffix 1, .json 1)")


def test_a_folder_without_images_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for number in range(11):
        (tmp_path / "a" / f"{number}.heic").write_bytes(b"?")
    with pytest.raises(UserError, match=r"data.source.root: .*a holds no images .* but 11 files of other kinds"):
        folder(tmp_path / "a").load("train")


def test_formats_that_start_programs_are_not_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("started a program"))
    for name in ("a.png", "b.jpg"):
        save(tmp_path / "a" / name, 5, format="EPS")
    save(tmp_path / "a" / "c", 5, format="EPS")
    with pytest.raises(UserError, match=r"a/[ab]\.(png|jpg): cannot be read as an image"):
        folder(tmp_path / "a").load("train")


@pytest.mark.timeout(60)
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
def test_fifos_and_devices_are_not_waited_for(root: Path) -> None:
    os.mkfifo(root / "cat" / "pipe.png")
    (root / "dog" / "zero.bmp").symlink_to("/dev/zero")
    os.mkfifo(root / "dog" / "pipe")
    with pytest.raises(UserError, match=r"(pipe\.png|zero\.bmp): cannot be read .* \(it is not a regular file"):
        folder(root).load("train")
    source = folder(root, on_error="skip")
    assert greys(source) == [0, 1, 2, 3]
    assert sorted(source.skipped("train")) == ["cat/pipe.png", "dog/zero.bmp"]


@pytest.mark.parametrize("factor", [1.5, 3])
def test_images_of_too_many_pixels_are_named_or_left_out(root: Path, factor: float) -> None:
    """Pillow warns of the first and refuses the second."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, int(factor * 89_478_485 / 20_000), 8, 2, 0, 0, 0))
    (root / "cat" / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserError, match=r"cat/bomb\.png: cannot be read as an image \(.*(89,478,485|178956970)"):
            folder(root).load("train")
        assert folder(root, on_error="skip").skipped("train") == ["cat/bomb.png"]
        os.rename(root / "cat" / "bomb.png", root / "cat" / "bomb")
        with pytest.raises(UserError, match=r"cat/bomb: cannot be read as an image"):
            folder(root).load("train")


def test_a_class_whose_images_cannot_be_read_is_refused(root: Path) -> None:
    (root / "bird").mkdir()
    (root / "bird" / "0.png").write_bytes(b"?")
    with pytest.raises(UserError, match=r"bird: holds no file that can be read as an image; repair"):
        folder(root, on_error="skip").load("train")


@pytest.mark.parametrize("link", [False, True])
def test_a_test_folder_below_the_root_is_no_class(root: Path, tmp_path: Path, link: bool) -> None:
    save(tmp_path / "held" / "cat" / "0.png", 50)
    if link:
        (root / "test").symlink_to(tmp_path / "held")
    else:
        (tmp_path / "held").rename(root / "test")
    source = folder(root, test=str(tmp_path / "held" if link else root / "test"))
    assert (greys(source), greys(source, "test")) == ([0, 1, 2, 3], [50])
    assert source.classes == ["cat", "dog"]
    flat = folder(root, test=str(root / "test"), class_folders=False)
    assert (greys(flat), greys(flat, "test")) == ([0, 1, 2, 3], [50])
    deep = folder(root, test=str(root / "dog"))
    assert (greys(deep), deep.classes) == ([0, 1, 50], ["cat", "test"])


@pytest.mark.parametrize(
    ("parts", "named"),
    [
        (("train", "test"), False),
        (("train", "test"), True),
        (("Training", "val"), True),
        (("train", "valid", "x"), False),
    ],
)
def test_parts_of_a_data_set_are_no_classes(tmp_path: Path, parts: tuple[str, ...], named: bool) -> None:
    for grey, part in enumerate(parts):
        save(tmp_path / "set" / part / "cat" / "0.png", grey)
    test = tmp_path / "set" / parts[1]
    with pytest.raises(UserError, match=r"^data\.source\.root: .* would become classes; set --data") as caught:
        folder(tmp_path / "set", test=str(test) if named else None).load("train")
    assert f"--data.source.root {tmp_path / 'set' / parts[0]} --data.source.test {test}" in str(caught.value)
    assert greys(folder(tmp_path / "set" / parts[0], test=str(test))) == [0]
    assert greys(folder(tmp_path / "set", class_folders=False)) == list(range(len(parts)))


def as_rgba(kind: str, colours: np.ndarray, opacity: np.ndarray) -> Image.Image:
    """Pixels of colours (4, 4, 3) and opacities (4, 4) in one of the ways in which files keep them."""
    image = Image.fromarray(np.dstack([colours, opacity]), "RGBA")
    if kind == "LA":
        return Image.merge("LA", [Image.fromarray(colours[:, :, 0]), Image.fromarray(opacity)])
    if kind == "P":  # one colour for each pixel, with its own opacity
        palette = Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4), "P")
        palette.putpalette(colours.reshape(-1).tolist())
        palette.info["transparency"] = opacity.tobytes()
        return palette
    return image


@pytest.mark.parametrize("kind", ["RGBA", "LA", "P"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("background", "behind"), [("white", (255, 255, 255)), ("#204060", (0x20, 0x40, 0x60))])
def test_transparent_pixels_show_the_background(
    tmp_path: Path, kind: str, channels: Channels, background: str, behind: tuple[int, int, int]
) -> None:
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    opacity = rng.integers(0, 256, (4, 4), dtype=np.uint8)
    opacity[0] = (0, 0, 255, 255)
    if kind == "LA":
        colours[:] = colours[:, :, :1]
    (tmp_path / "a").mkdir()
    as_rgba(kind, colours, opacity).save(tmp_path / "a" / "x.png")
    settings = {} if background == "white" else {"background": background}
    image = folder(tmp_path / "a", channels=channels, **settings).load("train").images[0]
    share = opacity[:, :, None] / 255
    expected = share * colours + (1 - share) * behind
    if channels == 1:
        expected = expected @ [[0.299], [0.587], [0.114]]
    assert np.abs(image - expected.transpose(2, 0, 1)).max() <= 1.01
    if channels == 3:
        assert np.array_equal(image[:, 0].T, [behind, behind, colours[0, 2], colours[0, 3]])


@pytest.mark.parametrize(("mode", "values", "key"), [("L", np.uint8, 7), ("I;16", np.uint16, 1799)])
def test_a_transparent_grey_value_shows_the_background(tmp_path: Path, mode: str, values: Any, key: int) -> None:
    pixels = np.full((4, 4), 200 * key // 7, values)
    pixels[1, 2] = key
    (tmp_path / "a").mkdir()
    Image.fromarray(pixels).save(tmp_path / "a" / "x.png", transparency=key)
    image = folder(tmp_path / "a", background="red").load("train").images[0]
    assert image[:, 1, 2].tolist() == [255, 0, 0]
    assert image[:, 0, 0].tolist() == [200, 200, 200]


@budget(max_examples=30, derandomize=True, deadline=None)
@given(kind=st.sampled_from(["RGBA", "LA", "P"]), seed=st.integers(0, 2**16), channels=st.sampled_from([1, 3]))
def test_opaque_images_keep_their_bits(
    tmp_path_factory: pytest.TempPathFactory, kind: str, seed: int, channels: Channels
) -> None:
    """What Pillow converts without a look at the opacity."""
    root = tmp_path_factory.mktemp("opaque") / "a"
    root.mkdir()
    colours = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    image = as_rgba(kind, colours, np.full((4, 4), 255, np.uint8))
    image.save(root / "x.png")
    image.info.clear()
    expected = np.asarray(image.convert("RGB" if channels == 3 else "L")).reshape(4, 4, channels).transpose(2, 0, 1)
    assert (folder(root, channels=channels).load("train").images[0] == expected).all()


@pytest.mark.parametrize("wrong", ["none of them", "#12", "#11223344", ""])
def test_a_background_is_an_opaque_colour(tmp_path: Path, wrong: str) -> None:
    with pytest.raises(UserError, match=r"^data\.source\.background: .* is not a colour; give a name"):
        folder(tmp_path, background=wrong)


@pytest.mark.parametrize("test", ["set", "set/../set", "."])
def test_a_test_folder_that_holds_the_training_images_is_refused(test: str, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    with pytest.raises(UserError, match=r"^data.source.test: .* holds the training images"):
        Folder(str(tmp_path / "set"), test=str(tmp_path / test))
    Folder(str(tmp_path / "set"), test=str(tmp_path / "set" / "test"))
