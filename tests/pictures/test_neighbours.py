from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lit_gen.pictures.grids import enlarge
from lit_gen.pictures.neighbours import find_neighbours, save_neighbours


def images(n: int, channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, channels, height, width), generator=generator, dtype=torch.uint8)


def places(picture: np.ndarray, tile: np.ndarray) -> list[tuple[int, int]]:
    """Corners (row, column) at which a tile lies in a picture."""
    corner = (picture == tile[0, 0]).all(2)
    height, width = tile.shape[:2]
    return [
        (int(y), int(x))
        for y, x in zip(*np.nonzero(corner), strict=True)
        if picture[y : y + height, x : x + width].shape == tile.shape
        and (picture[y : y + height, x : x + width] == tile).all()
    ]


@pytest.mark.parametrize(
    "channels, height, width, factor", [(1, 8, 8, 6), (3, 28, 28, 2), (3, 64, 64, 1), (1, 64, 20, 3), (3, 1, 1, 48)]
)
def test_every_image_is_in_its_place(tmp_path: Path, channels: int, height: int, width: int, factor: int) -> None:
    samples, train = images(3, channels, height, width), images(30, channels, height, width, 1)
    train[7] = samples[1]
    by_features, by_pixels = torch.tensor([[3, 4], [7, 5], [6, 8]]), torch.tensor([[10], [11], [12]])
    path = save_neighbours(samples, train, by_features, by_pixels, tmp_path / "neighbours.png")
    picture = np.array(Image.open(path))
    rows: list[int] = []
    for sample, features, pixels in zip(samples, by_features, by_pixels, strict=True):
        shown = [sample, *train[features], *train[pixels]]
        tiles = [enlarge(image.expand(3, -1, -1), factor).permute(1, 2, 0).numpy() for image in shown]
        found = [places(picture, tile) for tile in tiles]
        assert all(found)
        ys, xs = {place[0] for each in found for place in each}, [place[1] for each in found for place in each]
        assert len(ys) == 1, "a sample and its neighbours share a row"
        rows += ys
        assert len(set(xs)) == 4
        # the order of a row; an equal image is found twice
        order = [max(each)[1] if place else min(each)[1] for place, each in enumerate(found)]
        assert order == sorted(order)
    assert rows == sorted(rows) and len(set(rows)) == 3


def test_only_equal_images_are_red(tmp_path: Path) -> None:
    samples, train = images(2, 1, 8, 8), images(5, 1, 8, 8, 1)

    def red() -> int:
        index = torch.tensor([[0, 1], [2, 3]])
        picture = np.array(Image.open(save_neighbours(samples, train, index, index, tmp_path / "p.png"))).astype(int)
        return int((picture[..., 0] - picture[..., 1] > 50).sum())

    assert red() == 0
    train[2] = samples[0]  # it is beside the other sample
    assert red() == 0
    train[2] = samples[1]
    assert red() > 0


def test_titles_are_not_cut_off(tmp_path: Path) -> None:
    """With one small neighbour each, the titles are wider than the images."""
    index = torch.zeros(1, 1, dtype=torch.int64)
    path = save_neighbours(images(1, 1, 2, 2), images(1, 1, 2, 2, 1), index, index, tmp_path / "p.png")
    picture = np.array(Image.open(path))
    assert (picture[:, -10:] == 255).all() and (picture[-8:] == 255).all()
    dark = np.flatnonzero((picture[:44] < 128).all(axis=2).any(axis=0))  # columns of the titles
    starts = dark[1:][np.diff(dark) > 20]
    assert len(starts) == 2 and starts[1] - starts[0] > 48 + 60, "the columns are wider than an image"
    assert dark.max() < picture.shape[1] - 10


def test_neighbours_by_features_and_by_pixels() -> None:
    train = torch.zeros(4, 1, 2, 2, dtype=torch.uint8)
    train[:, 0, 0, 0] = torch.tensor([0, 100, 200, 250])
    samples = train[[3, 0]]
    features, sample_features = torch.tensor([[0.0], [1.0], [2.0], [3.0]]), torch.tensor([[0.2], [1.9]])
    by_features, by_pixels = find_neighbours(samples, train, sample_features, features, k=2)
    assert by_features.tolist() == [[0, 1], [2, 1]] and by_pixels.tolist() == [[3, 2], [0, 1]]
    assert [index.shape[1] for index in find_neighbours(samples, train, sample_features, features, k=9)] == [4, 4]


def test_pixels_are_not_compared_modulo_256() -> None:
    train = torch.tensor([0, 150, 255], dtype=torch.uint8)[:, None, None, None]
    sample = torch.tensor([130], dtype=torch.uint8)[:, None, None, None]
    assert find_neighbours(sample, train, torch.zeros(1, 1), torch.zeros(3, 1), 3)[1].tolist() == [[1, 2, 0]]
