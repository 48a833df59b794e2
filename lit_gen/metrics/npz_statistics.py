"""Reference statistics of other software: .npz files with the mean `mu` and the covariance `sigma` of features.

pytorch-fid, EDM and ADM write such files, with the divisor n - 1. `n`, the number of images, is ours. ADM's files also
hold `mu_s`, `sigma_s` and `arr_0` (images), which are not read.
"""

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.core.files import open_regular, write_arrays
from lit_gen.core.text import printable
from lit_gen.data.files import read_npz
from lit_gen.metrics.moments import Moments

TOLERANCE = 1e-5
"""Largest asymmetry, and negative eigenvalue, of a covariance in multiples of its largest entry or eigenvalue."""


def read_npz_moments(path: Path, width: int, num_images: int) -> tuple[Moments, str]:
    """Return the moments in an .npz file, and the SHA-256 of the file.

    Args:
        path: The file.
        width: Number of features that it must have.
        num_images: Number of images of the split, which its `n` must be, if it has one.

    Raises:
        UserError: If the file is missing or broken, or does not hold the moments of so many features and images.
    """
    try:
        arrays = read_npz(path, ("mu", "sigma", "n"))
        with open_regular(path) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise UserError(f"{printable(path)}: does not exist; give an .npz file with the keys mu and sigma") from None
    except UserError:
        raise
    except Exception as error:  # numpy, zipfile and zlib each have their own exceptions for a broken file
        reason = printable(str(error).split("\n")[0])
        raise UserError(
            f"{printable(path)}: cannot be read as an .npz file ({reason}); give one with the keys mu and sigma"
        ) from error
    for name, shape in {"mu": (width,), "sigma": (width, width)}.items():
        if name not in arrays:
            raise UserError(f"{printable(path)}: has no key {name}; give a file of pytorch-fid, EDM or ADM")
        array = arrays[name]
        if array.dtype not in (np.float32, np.float64) or array.shape != shape:
            raise UserError(
                f"{printable(path)}: {name} is {array.dtype} of shape {array.shape}, not float32 or float64 of shape "
                f"{shape}; choose the --feature_net that it was computed with"
            )
    n = arrays.get("n", np.array(num_images))
    if n.size != 1 or n.dtype.kind not in "iu" or int(n.item()) != num_images:
        raise UserError(
            f"{printable(path)}: its statistics are of n = {printable(n)} images, but the split has {num_images}; "
            "choose other data or another --split"
        )
    mean, cov = (torch.from_numpy(arrays[name]).double() for name in ("mu", "sigma"))
    moments = Moments(num_images, mean, (cov + cov.T) / 2)
    if (wrong := flaw(moments, cov)) is not None:
        raise UserError(f"{printable(path)}: {wrong}; compute the file again")
    return moments, digest


def write_npz_moments(path: Path, moments: Moments) -> None:
    """Write moments as `mu`, `sigma` and `n`."""
    write_arrays(path, mu=moments.mean.numpy(), sigma=moments.cov.numpy(), n=np.array(moments.n))


def flaw(moments: Moments, cov: Tensor | None = None) -> str | None:
    """Return why numbers cannot be the moments of features; None if they can.

    Args:
        moments: The moments.
        cov: The covariance as it was written, if not that of the moments.
    """
    cov = (moments.cov if cov is None else cov).double()
    if moments.n < 2:
        return f"statistics of {moments.n} images have no covariance"
    if not (moments.mean.isfinite().all() and cov.isfinite().all()):
        return "its numbers are not finite"
    if (cov - cov.T).abs().max() > TOLERANCE * cov.abs().max():
        return "its covariance is not symmetric"
    values = torch.linalg.eigvalsh(cov)
    if values[0] < -TOLERANCE * values[-1].abs():
        return f"its covariance has the negative eigenvalue {values[0]:.3g}"
    return None
