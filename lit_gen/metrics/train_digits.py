"""Trains the digits feature net and writes its weights: `python -m lit_gen.metrics.train_digits [FILE]`.

Half a minute on one core, and the same file each time on the same machine. The file's metadata, under the key
"training", holds the accuracy on the test split, as JSON.
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

from lit_gen.data import Digits, ImageDataModule
from lit_gen.metrics.feature_nets import DIGITS_WEIGHTS, DigitsNetwork


def augment(images: Tensor) -> Tensor:
    """Small random rotations (10 degrees), scalings (10 %), shifts (0.6 pixels) and Gaussian noise (12 grey levels).

    Args:
        images: Float (N, 1, 8, 8) in 0 .. 255.
    """
    num = len(images)
    angle, scale = 0.17 * (2 * torch.rand(num) - 1), 1 + 0.1 * (2 * torch.rand(num) - 1)
    shift = 0.15 * (2 * torch.rand(num, 2) - 1)  # the image spans -1 .. 1
    rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(num, 2, 2)
    grid = F.affine_grid(torch.cat([rotation * scale[:, None, None], shift[:, :, None]], 2), [num, 1, 8, 8], False)
    return F.grid_sample(images, grid, align_corners=False) + 12 * torch.randn_like(images)


def train(data: ImageDataModule, num_epochs: int = 60, batch_size: int = 64, seed: int = 0) -> DigitsNetwork:
    """Minimises the cross-entropy on augmented training images."""
    torch.manual_seed(seed)
    network = DigitsNetwork()
    images, labels = load(data, "train")
    optimizer = AdamW(network.parameters(), weight_decay=0.05)
    num_steps = num_epochs * (len(images) // batch_size)
    schedule = OneCycleLR(optimizer, max_lr=3e-3, total_steps=num_steps)
    for _ in range(num_epochs):
        for rows in torch.randperm(len(images)).split(batch_size)[: len(images) // batch_size]:
            _, logits = network(augment(images[rows]))
            loss = F.cross_entropy(logits, labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network


@torch.no_grad()
def accuracy(network: DigitsNetwork, data: ImageDataModule, split: str) -> float:
    """Fraction of a split's images whose largest logit is the label's."""
    images, labels = load(data, split)
    return (network(images)[1].argmax(1) == labels).double().mean().item()


def load(data: ImageDataModule, split: str) -> tuple[Tensor, Tensor]:
    """Images as float (N, 1, 8, 8) in 0 .. 255, and labels (N,)."""
    labels = data.labels(split)
    assert labels is not None
    return torch.tensor(data.images(split)).float(), torch.tensor(labels)


def main(path: Path) -> None:
    """Trains on the whole training split, and scores on the test split."""
    torch.set_num_threads(1)
    data = ImageDataModule(source=Digits())
    network = train(data)
    facts = {
        "test_accuracy": accuracy(network, data, "test"),
        "train_accuracy": accuracy(network, data, "train"),
        "test_fingerprint": data.fingerprint("test"),
        "train_fingerprint": data.fingerprint("train"),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    # one key only: safetensors writes several in random order, and the file's hash is the version of the features
    path.write_bytes(save(network.state_dict(), metadata={"training": json.dumps(facts)}))
    print(f"{path}: {path.stat().st_size} bytes, test accuracy {facts['test_accuracy']:.4f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else DIGITS_WEIGHTS)
