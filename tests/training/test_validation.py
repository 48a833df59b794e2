"""Two processes validate as one does, however few images there are to share."""

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy

from lit_gen.data import Digits, ImageDataModule
from lit_gen.families.base import GenerativeModel
from lit_gen.families.diffusion import EDM, DiT, RectifiedFlow, UNet
from lit_gen.families.gan import WGAN
from lit_gen.families.vae import VAE
from tests.families.random_networks import randomise
from tests.processes import in_two_processes

SHAPE = (1, 8, 8)
BATCH = 16
NUM_VAL = (1, BATCH + 1)  # one image for two processes; and one left for the last batch


def trainer(**settings: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        **settings,
    )


def two_processes() -> dict[str, Any]:
    """Settings of a trainer; a process that waits in vain for the other fails after a minute."""
    return {"strategy": DDPStrategy(process_group_backend="gloo", timeout=timedelta(minutes=1)), "devices": 2}


def unet(shape: tuple[int, int, int], num_classes: int = 0) -> UNet:
    """A network with buffers, which the processes send one another at each pass."""
    return UNet(
        shape,
        num_classes,
        channels=8,
        channel_mult=(1, 1),
        num_blocks=1,
        resample_filter=(1, 3, 3, 1),
        time_embedding="fourier",
    )


def dit(shape: tuple[int, int, int], num_classes: int = 0) -> DiT:
    return DiT(shape, num_classes, width=16, depth=1, num_heads=2)


def stand_still(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.0)


def models() -> list[GenerativeModel]:
    shape: Any = {"image_shape": SHAPE}
    built: list[GenerativeModel] = [
        EDM(network=unet, optimizer=stand_still, **shape),
        RectifiedFlow(network=dit, optimizer=stand_still, num_classes=10, class_conditional=True, **shape),
        VAE(latent_dim=4, optimizer=stand_still, **shape),
        WGAN(latent_dim=4, optimizer=stand_still, critic_optimizer=stand_still, **shape),
    ]
    return [randomise(model) for model in built]


def validations(processes: Callable[[], dict[str, Any]]) -> list[float]:
    """What each model logs for each size of the split, after a training step of length zero."""
    values = []
    for num_val in NUM_VAL:
        for model in models():
            fit = trainer(max_epochs=1, limit_train_batches=1, **processes())
            fit.fit(model, datamodule=ImageDataModule(Digits(), batch_size=BATCH, num_val=num_val))
            (value,) = (value for name, value in fit.callback_metrics.items() if name.startswith("val/"))
            values.append(float(value))
    return values


def write_validations(rank: int, folder: Path) -> None:
    (folder / f"{rank}.json").write_text(json.dumps(validations(two_processes)))


@pytest.mark.slow
def test_two_processes_validate_as_one(tmp_path: Path) -> None:
    in_two_processes(write_validations, tmp_path)
    one = validations(lambda: {"devices": 1})
    assert len(set(one)) == len(one), "each split and model has a mean of its own"
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == pytest.approx(one, rel=1e-5)
