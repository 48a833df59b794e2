"""Images: sources of data sets, and the one data module that serves them.

All images are uint8 `(N, C, H, W)` until a batch is on its device, where it becomes float32 in [-1, 1]. Points of the
plane are float32 images (2, 1, 1) everywhere.
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
