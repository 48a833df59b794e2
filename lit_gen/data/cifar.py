"""CIFAR-10 and CIFAR-100 from their official files: Python pickles in a .tar.gz archive, or unpacked.

The pickles are read by an unpickler that knows only numpy arrays, so a forged file cannot run code.
"""

import io
import pickle
import tarfile
import zlib
from gzip import GzipFile
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from lit_gen.core.errors import UserError
from lit_gen.core.files import open_regular, read_regular
from lit_gen.data.files import LIMIT, Bounded, cache_home, check_md5, download, find, listed
from lit_gen.data.sources import ImageSet, ImageSource, Part

_CIFAR100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
willow_tree wolf woman worm
"""

_RECONSTRUCT = np.zeros(0).__reduce__()[0]


def _encode(text: str, encoding: str) -> bytes:
    """Return the bytes that an old pickle protocol stores as latin1 text; refuse any other encoding."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it encodes bytes as {encoding}")
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("_codecs", "encode"): _encode,
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which image batches do not need")
        return _ALLOWED[module, name]


class CifarSource(ImageSource):
    """Colour photographs of 32x32 pixels, 50,000 for training and 10,000 for test.

    Args:
        root: Folder that holds the official .tar.gz or the unpacked folder, and receives downloads. By default, `data/`
            and the cache folder are searched, and downloads go to the cache folder.
        download: Download missing files.
        checksum: Compare the files with their official md5. Set it to false to read custom files.
    """

    url: str
    archive_md5: str
    folder: str
    label_key: str
    md5: dict[Part, dict[str, str]]
    """Files of each part, with the md5 of their content."""

    image_shape = (3, 32, 32)

    def __init__(self, root: str | None = None, download: bool = True, checksum: bool = True) -> None:
        self.root = Path(root).expanduser() if root is not None else None
        self.download = download
        self.checksum = checksum

    @property
    def archive(self) -> str:
        """File name of the official archive."""
        return self.url.rsplit("/", 1)[1]

    def folders(self) -> list[Path]:
        """Return the folders to search for the archive or the unpacked folder, in order."""
        homes = [self.root] if self.root is not None else [Path("data"), cache_home() / "data"]
        return [folder for home in homes for folder in (home, home / self.name)]

    def prepare(self) -> None:
        self._locate()

    def load(self, part: Part) -> ImageSet:
        location = self._locate()
        contents = self._read_archive(location, part) if location.is_file() else self._read_folder(location, part)
        batches = []
        for what, (content, md5) in contents.items():
            if self.checksum:
                check_md5(content, md5, what)
            batches.append(self._read_batch(content, what))
        return ImageSet(*(np.concatenate(arrays) for arrays in zip(*batches, strict=True)))

    def _locate(self) -> Path:
        first_file = next(iter(self.md5["train"]))
        unpacked = find([f"{self.folder}/{first_file}", first_file], self.folders())
        if unpacked is not None:
            return unpacked.parent
        archive = find([self.archive], self.folders())
        if archive is not None:
            return archive
        if not self.download:
            raise UserError(
                f"data.source.root: {self.archive} of {self.name} was not found (searched {listed(self.folders())} for "
                f"it and {self.folder}), and downloads are off; download {self.url} and set --data.source.root to its "
                "folder, or set --data.source.download true"
            )
        archive = (self.root or cache_home() / "data") / self.archive
        download([self.url], archive, self.archive_md5, self.folders())
        return archive

    def _read_folder(self, folder: Path, part: Part) -> dict[str, tuple[bytes, str]]:
        contents = {}
        for name, md5 in self.md5[part].items():
            path = folder / name
            if not path.is_file():
                raise UserError(f"{path}: missing, unlike other files of {self.name}; unpack {self.archive} again")
            contents[str(path)] = (read_regular(path, LIMIT), md5)
        return contents

    def _read_archive(self, archive: Path, part: Part) -> dict[str, tuple[bytes, str]]:
        wanted = {f"{self.folder}/{name}": md5 for name, md5 in self.md5[part].items()}
        contents = {}
        try:
            with open_regular(archive) as file, GzipFile(fileobj=file) as unpacked:
                bounded = cast(BinaryIO, Bounded(cast(BinaryIO, unpacked), LIMIT))
                with tarfile.open(fileobj=bounded, mode="r|") as tar:
                    for member in tar:
                        name = member.name.removeprefix("./")
                        if name in wanted and member.isreg() and not member.issparse():  # no links, no holes
                            contents[name] = (cast(BinaryIO, tar.extractfile(member)).read(), wanted[name])
        except (EOFError, OSError, ValueError, tarfile.TarError, zlib.error) as error:
            raise UserError(f"{archive}: truncated or damaged ({error}); delete it and download it again") from error
        if missing := sorted(wanted.keys() - contents.keys()):
            raise UserError(f"{archive}: lacks {', '.join(missing)}; delete it and download it again")
        return {f"{archive}/{name}": contents[name] for name in wanted}

    def _read_batch(self, content: bytes, what: str) -> tuple[np.ndarray, np.ndarray]:
        try:
            batch = _ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
            pixels, labels = batch["data"], batch[self.label_key]
            if not isinstance(labels, list | np.ndarray) or not all(isinstance(x, int | np.integer) for x in labels):
                raise ValueError(f"its {self.label_key} are not a list of integers")  # lists of lists can be immense
            labels = np.asarray(labels)
        except Exception as error:  # unpickling damaged bytes can raise nearly anything
            raise UserError(f"{what}: not a batch of {self.name} ({error}); delete it and download it again") from error
        if not (isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.shape == (len(labels), 3072)):
            shape, dtype = getattr(pixels, "shape", None), getattr(pixels, "dtype", type(pixels).__name__)
            raise UserError(
                f"{what}: images are {dtype} of shape {shape}, not uint8 of shape ({len(labels)}, 3072); download it "
                "again"
            )
        if not labels.size or labels.dtype.kind != "i" or not (0 <= labels.min() <= labels.max() < self.num_classes):
            raise UserError(
                f"{what}: labels are not all in 0 .. {self.num_classes - 1}; delete it and download it again"
            )
        return pixels.reshape(-1, *self.image_shape), labels.astype(np.int64)


class CIFAR10(CifarSource):
    """Colour photographs of 32x32 pixels in 10 classes: 50,000 for training and 10,000 for test.

    Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009,
    https://www.cs.toronto.edu/~kriz/learning-features-2009-TR.pdf.
    """

    name = "cifar10"
    num_classes = 10
    class_names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    url = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
    archive_md5 = "c58f30108f718f92721af3b95e74349a"
    folder = "cifar-10-batches-py"
    label_key = "labels"
    md5 = {
        "train": {
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        },
        "test": {"test_batch": "40351d587109b95175f43aff81a1287e"},
    }


class CIFAR100(CifarSource):
    """Colour photographs of 32x32 pixels in 100 (fine) classes: 50,000 for training and 10,000 for test.

    Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009,
    https://www.cs.toronto.edu/~kriz/learning-features-2009-TR.pdf.
    """

    name = "cifar100"
    num_classes = 100
    class_names = tuple(_CIFAR100.split())
    url = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"
    archive_md5 = "eb9058c3a382ffc7106e4002c42a8d85"
    folder = "cifar-100-python"
    label_key = "fine_labels"
    md5 = {
        "train": {"train": "16019d7e3df5f24257cddd939b257f8d"},
        "test": {"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
    }
