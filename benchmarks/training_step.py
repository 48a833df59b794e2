"""Our training step over a bare PyTorch loop with the same network, batch and optimizer, in one run.

    python benchmarks/training_step.py [--size 32] [--batch 64] [--steps 30] [--threads 2]

Ours is everything between two batches under the Trainer: gathering the batch, the loss, backward, optimizer, the
average of the weights, logging to CSV and to an offline W&B run. The bare loop only has loss, backward and optimizer on
a batch that is already there. After each step of ours one bare step runs on another network of the same shape, so that
other work on the machine slows both alike; the medians are compared.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from torch import nn

from lit_gen.callbacks import EMA, Budget, Monitor
from lit_gen.commands import _quieten
from lit_gen.data import ImageDataModule, Npz
from lit_gen.models import RectifiedFlow
from lit_gen.networks import UNet
from lit_gen.runs import Run
from lit_gen.tracking import WandbSettings, training_loggers


class Alternate(Callback):
    """After each step of the Trainer, one step of the bare loop."""

    def __init__(self, network: nn.Module, batch: torch.Tensor) -> None:
        self.network, self.batch = network, batch
        self.optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
        self.ours: list[float] = []
        self.bare: list[float] = []
        self.resumed: float | None = None

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        stopped = time.perf_counter()
        if self.resumed is not None:
            self.ours.append(stopped - self.resumed)
        t = torch.rand(len(self.batch))
        eps = torch.randn_like(self.batch)
        a = t[:, None, None, None]
        output = self.network((1 - a) * self.batch + a * eps, 999 * t)
        loss = (output - (eps - self.batch)).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.bare.append(time.perf_counter() - stopped)
        self.resumed = time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    _quieten()
    shape = (1, args.size, args.size)

    def network(image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        mult = (1, 2, 2) if args.size >= 16 else (1, 2)
        return UNet(image_shape, num_classes, channels=32, channel_mult=mult, num_blocks=1)

    with tempfile.TemporaryDirectory() as folder:
        images = np.random.default_rng(0).integers(0, 256, (args.batch * 10, *shape), np.uint8)
        np.savez(Path(folder) / "data.npz", images=images)
        data = ImageDataModule(Npz(f"{folder}/data.npz"), batch_size=args.batch)
        model = RectifiedFlow(image_shape=shape, network=network, optimizer=lambda p: torch.optim.Adam(p, lr=1e-3))
        alternate = Alternate(network(shape, 0), torch.randn(args.batch, *shape))
        run = Run(Path(folder) / "run")
        run.create({})
        trainer = Trainer(
            accelerator="cpu",
            logger=training_loggers(WandbSettings(mode="offline"), run, {}),
            callbacks=[EMA(), Monitor(), Budget(args.batch * (args.steps + 3)), alternate],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            log_every_n_steps=10,
            max_epochs=-1,
        )
        trainer.fit(model, data)
    ours, bare = (statistics.median(times[2:]) for times in (alternate.ours, alternate.bare))
    print(
        f"{args.size}x{args.size}x1, batch {args.batch}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"UNet of {sum(p.numel() for p in model.parameters()):,} parameters, median of {args.steps} steps each"
    )
    print(f"lit_gen    {args.batch / ours:8.1f} images/s")
    print(f"bare loop  {args.batch / bare:8.1f} images/s")
    print(f"time of our step / bare step: {ours / bare:.3f}")


if __name__ == "__main__":
    main()
