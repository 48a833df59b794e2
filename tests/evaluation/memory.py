"""Peak memory of an evaluation with many real images and wide features; run in a process of its own.

python -m tests.evaluation.memory FOLDER METRIC ...    prints the growth of the peak in MiB while the metrics compute
"""

import resource
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import lit_gen.metrics as all_metrics
from lit_gen.data import ImageDataModule
from lit_gen.data.sources import ImageSet, ImageSource, Part
from lit_gen.evaluation.real_images import DataImages
from lit_gen.evaluation.scoring import Scoring
from lit_gen.metrics.base import SampleMetric
from lit_gen.metrics.feature_nets import FeatureNet

NUM_REAL, NUM_HELD_OUT, WIDTH = 20_000, 2_000, 512
BATCH_SIZE = 250


class Noisy(ImageSource):
    """Random images of four pixels, so that nothing but their features takes memory."""

    name = "noisy"
    image_shape = (1, 2, 2)
    num_classes = 0

    def __init__(self, num_train: int) -> None:
        self.num_train = num_train

    def load(self, part: Part) -> ImageSet:
        num = self.num_train if part == "train" else NUM_HELD_OUT
        images = np.random.default_rng(num).integers(0, 256, (num, *self.image_shape), np.uint8)
        return ImageSet(images, None)


class Wide(FeatureNet):
    """Many random features of the pixels."""

    name, version, width, num_classes, resize = "wide", "0", WIDTH, 10, "none"

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.randn(4, WIDTH + 10, generator=torch.Generator().manual_seed(0))

    def extract(self, images: Tensor) -> tuple[Tensor, Tensor]:
        outputs = (images.float().flatten(1) / 64 @ self.weight).sin()
        return outputs[:, :WIDTH], outputs[:, WIDTH:]


def score(metrics: Sequence[SampleMetric], num_train: int, num_samples: int, folder: Path) -> dict[str, float]:
    """Score random images."""
    real = DataImages(ImageDataModule(Noisy(num_train)), "train", Wide(), folder)
    scoring = Scoring(metrics, real, num_samples, torch.device("cpu"))
    generator = torch.Generator().manual_seed(1)
    for index in torch.arange(num_samples).split(BATCH_SIZE):
        scoring.update(torch.randint(0, 256, (len(index), 1, 2, 2), generator=generator, dtype=torch.uint8), index)
    return {name: estimate.value for name, estimate in scoring.compute().items()}


def peak() -> float:
    """The largest memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(folder: Path, names: Sequence[str], num_samples: int) -> None:
    metrics = [getattr(all_metrics, name)() for name in names]
    score(metrics, 300, 300, folder)  # loads the libraries
    before = peak()
    values = score(metrics, NUM_REAL, num_samples, folder)
    print(f"{peak() - before:.1f}", *(f"{name}={value:.17g}" for name, value in values.items()))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[3:], int(sys.argv[2]))
