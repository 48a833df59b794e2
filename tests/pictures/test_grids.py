"""Grids, folders and archives of images hold the pixels that they are given."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lit_gen.core.errors import UserError
from lit_gen.data import Digits
from lit_gen.pictures.grids import check_ending, save_grid, save_images, save_tiles


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


@pytest.mark.parametrize(("num", "size", "columns"), [(5, 40, None), (6, 8, 3), (2, 17, None), (4, 32, 1)])
def test_a_grid_holds_each_image_in_its_place(num: int, size: int, columns: int | None, tmp_path: Path) -> None:
    images = torch.randint(0, 256, (num, 3, size, size), dtype=torch.uint8)
    grid = pixels(save_grid(images, tmp_path / "grid.png", columns))
    factor = max(1, 32 // size)
    width = columns or int(np.ceil(np.sqrt(num)))
    step = factor * size + 2
    for index, image in enumerate(images):
        row, column = divmod(index, width)
        tile = grid[2 + row * step :, 2 + column * step :][: factor * size, : factor * size]
        for offset in range(factor):
            assert np.array_equal(tile[offset::factor, offset::factor], image.permute(1, 2, 0).numpy())
    frame = grid[:2]
    assert (frame == 128).all() and grid.shape[1] == 2 + min(width, num) * step


def test_tiles_are_rounded_to_the_nearest_level(tmp_path: Path) -> None:
    levels = torch.randint(0, 256, (2, 3, 1, 32, 32))
    shift = 0.9 * (torch.rand(levels.shape) - 0.5)
    grid = pixels(save_tiles((levels + shift) / 127.5 - 1, tmp_path / "tiles.png"))
    assert grid.shape == (2 + 2 * 34, 2 + 3 * 34, 3)
    assert np.array_equal(grid[36:68, 70:102, 0], levels[1, 2, 0].numpy())


@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_numbers_its_images_from_the_first(channels: int, tmp_path: Path) -> None:
    images = torch.randint(0, 256, (3, channels, 8, 8), dtype=torch.uint8)
    save_images(images, None, Digits(), tmp_path / "folder", first=99_999)
    names = ["099999.png", "100000.png", "100001.png"]
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == names
    for name, image in zip(names, images, strict=True):
        found = pixels(tmp_path / "folder" / name).reshape(8, 8, channels)
        assert np.array_equal(found, image.permute(1, 2, 0).numpy())


def test_an_archive_holds_images_and_labels(tmp_path: Path) -> None:
    images, labels = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8), torch.arange(4)
    save_images(images, labels, Digits(), tmp_path / "images.npz")
    with np.load(tmp_path / "images.npz") as found:
        assert np.array_equal(found["images"], images) and np.array_equal(found["labels"], labels)


@pytest.mark.parametrize("out", ["", "samples.jpg", "a/b.gif"])
def test_other_endings_are_refused(out: str) -> None:
    with pytest.raises(UserError, match="^--out: .*; give "):
        check_ending(Path(out))
    for accepted in ("a.png", "a.npz", "folder"):
        check_ending(Path(accepted))


def test_a_single_image_has_no_frame(tmp_path: Path) -> None:
    image = torch.randint(0, 256, (1, 3, 40, 40), dtype=torch.uint8)
    assert np.array_equal(pixels(save_grid(image, tmp_path / "one.png")), image[0].permute(1, 2, 0).numpy())
