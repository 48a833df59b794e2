"""Compare our training step with a bare PyTorch loop that has the same network, batch size and optimizer.

    python benchmarks/training_step.py [--size 32] [--batch 64] [--steps 60] [--threads 2]

Our step includes everything between two batches under the Trainer, with the callbacks and loggers of `lit-gen fit`:
gathering the batch, loss, backward pass, optimizer, average of the weights, progress, logging to CSV and to an offline
W&B run every 10 steps, a checkpoint every 60 steps and a new epoch every 50. A run with the default settings logs every
20 steps and saves every 100,000 images; it also samples grids, which are not measured here. The bare loop consists of
loss, backward pass and optimizer on a fixed batch.

After each of our steps, one bare step runs on another network of the same shape, so that other load slows both equally.
The median of the ratios of such neighbours describes a typical step. The ratio of the means also includes logging,
checkpoints, epochs and every disturbance.
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

from lit_gen.data import ImageDataModule, Npz
from lit_gen.experiment.trainer import quieten
from lit_gen.families.diffusion import RectifiedFlow, UNet
from lit_gen.runs.directory import Run
from lit_gen.runs.tracking import Tracking, WandbSettings
from lit_gen.training.callbacks import (
    EMA,
    Budget,
    BudgetSettings,
    Checkpoint,
    CheckpointSettings,
    EMASettings,
    Monitor,
    TrainingProgress,
)

LOG_EVERY = 10
SAVE_EVERY = 60
EPOCH = 50
WARM_UP = LOG_EVERY + 1  # the first logging step and the first checkpoint import modules


class Alternate(Callback):
    """Callback that runs one step of the bare loop after each step of the Trainer."""

    def __init__(self, network: nn.Module, batch: torch.Tensor, checkpoint: Checkpoint) -> None:
        self.network, self.batch, self.checkpoint = network, batch, checkpoint
        self.optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
        self.pairs: list[tuple[float, float]] = []
        self.resumed = 0.0

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not self.pairs:
            self.checkpoint.save(trainer, pl_module)
        stopped = time.perf_counter()
        t = torch.rand(len(self.batch))
        eps = torch.randn_like(self.batch)
        a = t[:, None, None, None]
        output = self.network((1 - a) * self.batch + a * eps, 999 * t)
        loss = (output - (eps - self.batch)).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        bare = time.perf_counter() - stopped
        self.pairs.append((stopped - self.resumed, bare))
        self.resumed = time.perf_counter()


def main() -> None:
    """Print the speeds of both loops and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    quieten()
    shape = (1, args.size, args.size)

    def network(image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        mult = (1, 2, 2) if args.size >= 16 else (1, 2)
        return UNet(image_shape, num_classes, channels=32, channel_mult=mult, num_blocks=1)

    with tempfile.TemporaryDirectory() as folder:
        images = np.random.default_rng(0).integers(0, 256, (args.batch * EPOCH, *shape), np.uint8)
        np.savez(Path(folder) / "data.npz", images=images)
        data = ImageDataModule(Npz(f"{folder}/data.npz"), batch_size=args.batch)
        model = RectifiedFlow(image_shape=shape, network=network, optimizer=lambda p: torch.optim.Adam(p, lr=1e-3))
        run = Run(Path(folder) / "run")
        run.create({})
        checkpoint = Checkpoint(CheckpointSettings(args.batch * SAVE_EVERY), run.checkpoint)
        alternate = Alternate(network(shape, 0), torch.randn(args.batch, *shape), checkpoint)
        num_images = args.batch * (WARM_UP + args.steps)
        trainer = Trainer(
            accelerator="cpu",
            logger=Tracking(WandbSettings(mode="offline")).loggers(run, {}),
            callbacks=[
                Monitor(),
                TrainingProgress(num_images),
                EMA(EMASettings()),
                Budget(BudgetSettings(num_images)),
                checkpoint,
                alternate,
            ],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            log_every_n_steps=LOG_EVERY,
            max_epochs=-1,
        )
        trainer.fit(model, data)
    ours, bare = zip(*alternate.pairs[WARM_UP:], strict=True)
    ratio = statistics.median(a / b for a, b in zip(ours, bare, strict=True))
    print(
        f"{args.size}x{args.size}x1, batch {args.batch}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"UNet of {sum(p.numel() for p in model.parameters()):,} parameters, {len(ours)} steps each"
    )
    print(f"lit_gen    {args.batch / statistics.median(ours):8.1f} images/s (median)")
    print(f"bare loop  {args.batch / statistics.median(bare):8.1f} images/s (median)")
    print(f"time of our step / bare step: {ratio:.3f} (median of neighbours), {sum(ours) / sum(bare):.3f} (means)")


if __name__ == "__main__":
    main()
