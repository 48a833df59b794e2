"""Train a feature net of the package: `python -m lit_gen.metrics.train_feature_net NAME [FILE]`.

NAME is `digits` (half a minute on one core) or `fashion_mnist` (about a quarter of an hour). On one machine, the
command always writes the same file. Its metadata holds the accuracy on the test split as JSON, under the key
"training".
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional as F
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR

from lit_gen.core.files import write_atomically
from lit_gen.data.idx import FashionMNIST
from lit_gen.data.module import ImageDataModule
from lit_gen.data.sources import Digits, ImageSource
from lit_gen.metrics.feature_nets import ClassifierFeatures, ClassifierNetwork, DigitsFeatures, FashionFeatures

SOURCES: dict[str, tuple[type[ImageSource], type[ClassifierFeatures], int]] = {
    "digits": (Digits, DigitsFeatures, 60),
    "fashion_mnist": (FashionMNIST, FashionFeatures, 10),
}
"""Data set, feature net and number of epochs, by name."""


def augment(images: Tensor, flip: bool = False) -> Tensor:
    """Apply small random rotations (10 degrees), scalings (10 %), shifts (7.5 %) and noise (12 grey levels).

    Args:
        images: Float tensor (N, 1, H, W) in 0 .. 255.
        flip: Also flip half of the images left to right.
    """
    num = len(images)
    angle, scale = 0.17 * (2 * torch.rand(num) - 1), 1 + 0.1 * (2 * torch.rand(num) - 1)
    shift = 0.15 * (2 * torch.rand(num, 2) - 1)  # the image spans -1 .. 1
    rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(num, 2, 2)
    if flip:
        rotation[torch.rand(num) < 0.5, :, 0] *= -1
    grid = F.affine_grid(torch.cat([rotation * scale[:, None, None], shift[:, :, None]], 2), list(images.shape), False)
    return F.grid_sample(images, grid, align_corners=False) + 12 * torch.randn_like(images)


def train(
    network: ClassifierNetwork, data: ImageDataModule, num_epochs: int, batch_size: int = 64, flip: bool = False
) -> None:
    """Minimise the cross-entropy on augmented training images."""
    images, labels = load(data, "train")
    optimizer = AdamW(network.parameters(), weight_decay=0.05)
    num_steps = num_epochs * (len(images) // batch_size)
    schedule = OneCycleLR(optimizer, max_lr=3e-3, total_steps=num_steps)
    for _ in range(num_epochs):
        for rows in torch.randperm(len(images)).split(batch_size)[: len(images) // batch_size]:
            _, logits = network(augment(images[rows], flip))
            loss = F.cross_entropy(logits, labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


@torch.no_grad()
def accuracy(network: ClassifierNetwork, data: ImageDataModule, split: str) -> float:
    """Return the share of images of a split whose largest logit is that of the label."""
    images, labels = load(data, split)
    found = torch.cat([network(part)[1].argmax(1) for part in images.split(1000)])
    return (found == labels).double().mean().item()


def load(data: ImageDataModule, split: str) -> tuple[Tensor, Tensor]:
    """Return the images as float (N, 1, H, W) in 0 .. 255, and the labels (N,)."""
    labels = data.labels(split)
    assert labels is not None
    return torch.tensor(data.images(split)).float(), torch.tensor(labels)


def main(name: str, path: Path | None = None) -> None:
    """Train on the whole training split, evaluate on the test split, and write the weights."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    source, features, num_epochs = SOURCES[name]
    path = path or features.file
    data = ImageDataModule(source=source())
    network = features.network_class()
    train(network, data, num_epochs, flip=name == "fashion_mnist")
    facts = {
        "test_accuracy": accuracy(network, data, "test"),
        "train_accuracy": accuracy(network, data, "train"),
        "test_fingerprint": data.fingerprint("test"),
        "train_fingerprint": data.fingerprint("train"),
    }
    # one key only: safetensors writes several in random order, and the file's hash is the version of the features
    write_atomically(path, save(network.state_dict(), metadata={"training": json.dumps(facts)}))
    print(f"{path}: {path.stat().st_size} bytes, test accuracy {facts['test_accuracy']:.4f}")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3) or sys.argv[1] not in SOURCES:
        sys.exit(f"usage: python -m lit_gen.metrics.train_feature_net {{{','.join(SOURCES)}}} [FILE]")
    main(sys.argv[1], Path(sys.argv[2]) if len(sys.argv) > 2 else None)
