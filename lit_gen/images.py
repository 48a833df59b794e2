"""Images on disk: grids, folders, archives."""

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from lit_gen.errors import UserError

SMALLEST_TILE = 32


def save_grid(images: Tensor, path: Path, columns: int | None = None) -> Path:
    """Saves uint8 images (N, C, H, W) as one PNG, small ones enlarged by whole factors."""
    factor = max(1, SMALLEST_TILE // images.shape[-1])
    images = images.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    columns = columns or math.ceil(math.sqrt(len(images)))
    grid = make_grid(images, nrow=columns, padding=2, pad_value=128)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.tmp.png")
    Image.fromarray(grid.permute(1, 2, 0).numpy()).save(temporary)
    temporary.replace(path)
    return path


def check_ending(out: Path) -> None:
    """Raises a UserError unless `save_images` knows what to write there."""
    if out.suffix not in (".png", ".npz", ""):
        raise UserError(f"--out: {out} ends in {out.suffix}; give .png for a grid, .npz, or a folder")


def save_images(images: Tensor, labels: Tensor | None, out: Path) -> None:
    """Saves uint8 images as a grid (`.png`), an archive (`.npz`) or one PNG each (a folder)."""
    if out.suffix == ".png":
        save_grid(images, out)
    elif out.suffix == ".npz":
        out.parent.mkdir(parents=True, exist_ok=True)
        arrays = {"images": images.numpy()}
        if labels is not None:
            arrays["labels"] = labels.numpy()
        np.savez_compressed(out, **arrays)  # type: ignore[arg-type]
    else:
        out.mkdir(parents=True, exist_ok=True)
        digits = max(5, len(str(len(images) - 1)))
        for index, image in enumerate(images):
            pixels = image.permute(1, 2, 0).squeeze(-1) if image.shape[0] == 1 else image.permute(1, 2, 0)
            Image.fromarray(torch.as_tensor(pixels).numpy()).save(out / f"{index:0{digits}d}.png")
