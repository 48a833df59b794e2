"""MNIST and Fashion-MNIST from their official IDX files.

An IDX file is big-endian: two zero bytes, a type (8 = uint8), the number of dimensions, each dimension as uint32, data.
"""

import math
import struct
from pathlib import Path

import numpy as np

from lit_gen.core.errors import UserError
from lit_gen.data.files import LIMIT, cache_home, check_md5, decompress, download, find, listed
from lit_gen.data.sources import ImageSet, ImageSource, Part


def header_size(num_dimensions: int) -> int:
    """Return the size of the header in bytes."""
    return 4 + 4 * num_dimensions


def read_shape(header: bytes, num_dimensions: int, what: str) -> tuple[int, ...]:
    """Return the shape in the header of an IDX file; `what` names the file in errors."""
    if header[:4] != bytes((0, 0, 8, num_dimensions)):
        raise UserError(
            f"{what}: not an IDX file of {num_dimensions}-dimensional uint8 data, since its first bytes are wrong; "
            "delete it and download it again"
        )
    return struct.unpack_from(f">{num_dimensions}I", header.ljust(header_size(num_dimensions), b"\0"), 4)


def read_idx(content: bytes, num_dimensions: int, what: str) -> np.ndarray:
    """Return the uint8 array of an IDX file; `what` names the file in errors."""
    shape = read_shape(content, num_dimensions, what)
    promised = header_size(num_dimensions) + math.prod(shape)
    if len(content) != promised:
        has = f"{len(content):,}" if len(content) < promised else "more"
        raise UserError(
            f"{what}: truncated or damaged, since its header promises {promised:,} bytes of shape {shape}, but it has "
            f"{has}; delete it and download it again"
        )
    return np.frombuffer(content, np.uint8, offset=header_size(num_dimensions)).reshape(shape)


class IdxSource(ImageSource):
    """Four IDX files: training and test images of 28x28 grey pixels, and their labels in 10 classes.

    Args:
        root: Folder that holds the files, gzipped or not, and receives downloads. By default, `data/`, the cache folder
            and the folders of system packages are searched, and downloads go to the cache folder.
        resolution: Height and width: 28, or a larger even number to pad with zeros on all sides. 32 is usual for
            networks that halve the resolution several times.
        download: Download missing files.
        checksum: Compare the files with their official md5. Set it to false to read custom files.
    """

    folder: str
    """Folder of the files below the root of torchvision."""
    package: tuple[str, str] | None = None
    """Debian package, and the folder that it installs."""
    mirrors: tuple[str, ...]
    md5: dict[str, tuple[str, str]]
    """By file name, the md5 of the published .gz and of its content (packages may compress it differently)."""

    image_side = 28
    num_classes = 10

    def __init__(
        self, root: str | None = None, resolution: int = 28, download: bool = True, checksum: bool = True
    ) -> None:
        if resolution < self.image_side or resolution % 2:
            raise UserError(
                f"data.source.resolution: {resolution} is not possible; give {self.image_side} or a larger even number"
            )
        self.root = Path(root).expanduser() if root is not None else None
        self.resolution = resolution
        self.download = download
        self.checksum = checksum

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return 1, self.resolution, self.resolution

    def folders(self) -> list[Path]:
        """Return the folders to search for the files, in order."""
        homes = [self.root] if self.root is not None else [Path("data"), cache_home() / "data"]
        folders = [home / inner for home in homes for inner in (self.name, self.folder, f"{self.folder}/raw")]
        if self.root is not None:
            folders.append(self.root)
        elif self.package is not None:
            folders.append(Path(self.package[1]))
        return folders

    def prepare(self) -> None:
        for name in self.md5:
            self._locate(name)

    def load(self, part: Part) -> ImageSet:
        prefix = "train" if part == "train" else "t10k"
        images = self._read(f"{prefix}-images-idx3-ubyte", 3)
        labels = self._read(f"{prefix}-labels-idx1-ubyte", 1)
        if len(images) != len(labels) or images.shape[1:] != (self.image_side, self.image_side):
            raise UserError(
                f"{self.name}: the {part} files hold images of shape {images.shape} and {len(labels)} labels, not "
                f"(N, {self.image_side}, {self.image_side}) and N labels; download them again"
            )
        if labels.max(initial=0) >= self.num_classes:
            raise UserError(
                f"{self.name}: the {part} labels go up to {labels.max()}, not {self.num_classes - 1}; download them "
                "again"
            )
        margin = (self.resolution - self.image_side) // 2
        padded = np.pad(images[:, None], ((0, 0), (0, 0), (margin, margin), (margin, margin)))
        return ImageSet(padded, labels.astype(np.int64))

    def _read(self, name: str, num_dimensions: int) -> np.ndarray:
        path = self._locate(name)
        shape = read_shape(decompress(path, header_size(num_dimensions)), num_dimensions, str(path))
        size = header_size(num_dimensions) + math.prod(shape)
        if size > LIMIT:
            raise UserError(f"{path}: its header announces {size:,} bytes, more than {LIMIT:,}, the limit; delete it")
        content = decompress(path, size + 1)  # at most one byte too many, whatever the file unpacks to
        array = read_idx(content, num_dimensions, str(path))
        if self.checksum:
            check_md5(content, self.md5[name][1], str(path))
        return array

    def _locate(self, name: str) -> Path:
        path = find((f"{name}.gz", name), self.folders())
        if path is not None:
            return path
        if not self.download:
            package = f"install Debian's package (apt-get install {self.package[0]}), " if self.package else ""
            raise UserError(
                f"data.source.root: {name}.gz of {self.name} was not found (searched {listed(self.folders())}), and "
                f"downloads are off; {package}set --data.source.root to its folder, or set --data.source.download true"
            )
        path = (self.root or cache_home() / "data") / self.name / f"{name}.gz"
        try:
            urls = [f"{mirror}{name}.gz" for mirror in self.mirrors]
            download(urls, path, self.md5[name][0], self.folders())
        except UserError as error:
            remedy = f"; or apt-get install {self.package[0]}" if self.package else ""
            raise UserError(f"{error}{remedy}") from error
        return path


class MNIST(IdxSource):
    """Handwritten digits: 60,000 training and 10,000 test images of 28x28 grey pixels in 10 classes.

    LeCun, Bottou, Bengio, Haffner, "Gradient-Based Learning Applied to Document Recognition", Proc. IEEE, 1998.
    """

    name = "mnist"
    folder = "MNIST"
    mirrors = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/")
    md5 = {
        "train-images-idx3-ubyte": ("f68b3c2dcbeaaa9fbdd348bbdeb94873", "6bbc9ace898e44ae57da46a324031adb"),
        "train-labels-idx1-ubyte": ("d53e105ee54ea40749a09fcbcd1e9432", "a25bea736e30d166cdddb491f175f624"),
        "t10k-images-idx3-ubyte": ("9fb629c4189551a2d022fa330f9573f3", "2646ac647ad5339dbf082846283269ea"),
        "t10k-labels-idx1-ubyte": ("ec29112dd5afa0611ce80d1b7f02629c", "27ae3e4e09519cfbb04c329615203637"),
    }


class FashionMNIST(IdxSource):
    """Images of clothes: 60,000 training and 10,000 test images of 28x28 grey pixels in 10 classes.

    The files of Debian's package `dataset-fashion-mnist` are found automatically.

    Xiao, Rasul, Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms",
    https://arxiv.org/abs/1708.07747.
    """

    name = "fashion_mnist"
    folder = "FashionMNIST"
    class_names = (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    )  # fmt: skip
    package = ("dataset-fashion-mnist", "/usr/share/datasets/fashion-mnist")
    mirrors = ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",)
    md5 = {
        "train-images-idx3-ubyte": ("8d4fb7e6c68d591d4c3dfef9ec88bf0d", "f4a8712d7a061bf5bd6d2ca38dc4d50a"),
        "train-labels-idx1-ubyte": ("25c81989df183df01b3e8a0aad5dffbe", "9018921c3c673c538a1fc5bad174d6f9"),
        "t10k-images-idx3-ubyte": ("bef4ecab320f06d8554ea6380940ec79", "8181f5470baa50b63fa0f6fddb340f0a"),
        "t10k-labels-idx1-ubyte": ("bb300cfdad3c16e7a12a480ee83cd310", "15d484375f8d13e6eb1aabb0c3f46965"),
    }
