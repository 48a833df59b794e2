"""Save images as grids, folders and archives, and points as pictures."""

import math
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from lit_gen.core.errors import UserError
from lit_gen.core.files import replacing, write_arrays
from lit_gen.core.pixels import quantise
from lit_gen.data.points import PointSource
from lit_gen.data.sources import ImageSource

SMALLEST_TILE = 32


def save_grid(images: Tensor, path: Path, columns: int | None = None) -> Path:
    """Save uint8 images (N, C, H, W) as a grid in one PNG; small images are enlarged by whole factors."""
    images = enlarge(images, max(1, SMALLEST_TILE // images.shape[-1]))
    columns = columns or math.ceil(math.sqrt(len(images)))
    grid = make_grid(images, nrow=columns, padding=2, pad_value=128)
    return save_png(Image.fromarray(grid.permute(1, 2, 0).numpy()), path)


def enlarge(images: Tensor, factor: int) -> Tensor:
    """Return images (..., H, W) with every pixel repeated `factor` times in both directions."""
    return images.repeat_interleave(factor, -1).repeat_interleave(factor, -2)


def save_png(picture: Image.Image, path: Path) -> Path:
    """Save a picture as a PNG, whole or not at all."""
    with replacing(path) as temporary:
        picture.save(temporary, format="png")
    return path


def save_tiles(tiles: Tensor, path: Path) -> Path:
    """Save tiles (rows, columns, C, H, W) in [-1, 1] as one PNG."""
    return save_grid(quantise(tiles.flatten(0, 1)).cpu(), path, tiles.shape[1])


def save_picture(samples: Tensor, source: ImageSource, path: Path) -> Path:
    """Save samples as one PNG: images as a grid, points of the plane on their true density."""
    if not isinstance(source, PointSource):
        return save_grid(samples, path)
    from lit_gen.pictures.points import save_scatter  # matplotlib is slow to import

    return save_scatter(samples, source, path)


def check_ending(out: Path) -> None:
    """Raise a UserError unless `save_images` can write to a path."""
    if out == Path():
        raise UserError("--out: no file or folder is named; give a .png, an .npz, or a folder")
    if out.suffix not in (".png", ".npz", ""):
        raise UserError(f"--out: {out} ends in {out.suffix}; give .png for a grid, .npz, or a folder")


def save_images(images: Tensor, labels: Tensor | None, source: ImageSource, out: Path, first: int = 0) -> None:
    """Save samples as a picture (`.png`), an archive (`.npz`), or a folder of one PNG each.

    Args:
        images: Samples (N, C, H, W), as the data stores them.
        labels: Their classes (N,), for an archive.
        source: The data that the samples are like.
        out: The file or folder.
        first: Number of the first PNG in a folder.

    Raises:
        UserError: If `out` is a folder and the samples are points of the plane.
    """
    if out.suffix == ".png":
        save_picture(images, source, out)
    elif out.suffix == ".npz":
        arrays = {"images": images.numpy()}
        if labels is not None:
            arrays["labels"] = labels.numpy()
        write_arrays(out, **arrays)
    elif not source.quantised:
        raise UserError(f"--out: {out} is a folder, which cannot hold points; give a .png or an .npz")
    else:
        digits = max(5, len(str(first + len(images) - 1)))
        for index, image in enumerate(images, first):
            pixels = image.permute(1, 2, 0).squeeze(-1) if image.shape[0] == 1 else image.permute(1, 2, 0)
            with replacing(out / f"{index:0{digits}d}.png", flush=False) as temporary:  # there may be very many
                Image.fromarray(torch.as_tensor(pixels).numpy()).save(temporary, format="png")
