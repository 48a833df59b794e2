"""Data sets, and the data module that serves all of them.

Images are uint8 `(N, C, H, W)` until a batch is on its device, and there float32 in [-1, 1]. Points in the plane are
float32 images (2, 1, 1) everywhere.

| file | content |
| --- | --- |
| `module` | the data module: splits, labels, batches, fingerprints |
| `batches` | batches in an order that is a function of (seed, epoch) |
| `sources` | the interface of a data set; scikit-learn's digits; .npz files |
| `idx` | MNIST and Fashion-MNIST |
| `cifar` | CIFAR-10 and CIFAR-100 |
| `folder` | folders of images, resized once into a cache |
| `image_files` | the image files below a folder, and their pixels |
| `points` | points in the plane with a known density |
| `binarised` | a data set with black and white pixels only |
| `pairs` | pairs of noise and image, for reflow |
| `encoded` | codes or latents of a first stage |
| `given` | images that other software made |
| `class_order` | the classes of samples, by class frequency |
| `files` | downloads, checksums, and decompression within limits |
"""

from lit_gen.data.batches import Batch
from lit_gen.data.binarised import Binarised
from lit_gen.data.cifar import CIFAR10, CIFAR100
from lit_gen.data.folder import Folder
from lit_gen.data.idx import MNIST, FashionMNIST
from lit_gen.data.module import ImageDataModule
from lit_gen.data.points import Checkerboard, GaussianMixture2D, PointSource, Spiral, TwoMoons
from lit_gen.data.sources import Digits, ImageSource, Npz

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "MNIST",
    "Batch",
    "Binarised",
    "Checkerboard",
    "Digits",
    "FashionMNIST",
    "Folder",
    "GaussianMixture2D",
    "ImageDataModule",
    "ImageSource",
    "Npz",
    "PointSource",
    "Spiral",
    "TwoMoons",
]
