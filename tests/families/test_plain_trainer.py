"""Models under a plain Trainer of Lightning, without any callback, parser or run directory."""

from typing import Any

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lit_gen.api import Batch, GenerativeModel, Noise, Sampler, UserError
from lit_gen.data import Digits, ImageDataModule
from lit_gen.families.gan import WGAN, Critic, Generator
from lit_gen.families.vae import VAE


class Means(GenerativeModel):
    """A family of one's own: N(mean, 1) for each pixel."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.mean = nn.Linear(1, 64, bias=False)

    @property
    def generator(self) -> nn.Module:
        return self.mean

    def configure_optimizers(self) -> Any:
        return self.warmup_schedule(torch.optim.SGD(self.parameters(), 16.0))

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        loss = (batch.images.flatten(1) - self.mean.weight[:, 0]).square().mean()
        self.log_training(loss=loss.detach())
        return loss

    def draw(self, noise: Noise, labels: torch.Tensor | None, sampler: Sampler | None) -> torch.Tensor:
        return self.mean.weight[:, 0].view(self.image_shape) + noise.normal(self.image_shape)


def trainer(**settings: Any) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )


def test_a_family_of_ones_own_learns() -> None:
    data = ImageDataModule(Digits(), batch_size=64, num_val=0)
    model = Means(image_shape=data.image_shape, warmup=128)
    trainer(max_steps=20).fit(model, data)
    truth = torch.from_numpy(data.images("train")).float().mean(0).flatten() / 127.5 - 1
    assert model.images_seen == 1280
    assert float((model.mean.weight[:, 0].detach() - truth).abs().mean()) < 0.1 * float(truth.abs().mean())
    assert model.sample(Noise(0, range(3))).shape == (3, 1, 8, 8)


@pytest.mark.parametrize("make", [VAE, lambda **s: WGAN(generator=Generator, critic=Critic, critic_steps=1, **s)])
def test_loaders_of_ones_own_do(make: Any) -> None:
    """Batches of a plain DataLoader, and no data module."""
    images = torch.from_numpy(Digits().load("train").images[:32]).float() / 127.5 - 1
    loader = loader_of(images, 16)
    model = make(image_shape=(1, 8, 8))
    trainer(max_epochs=1).fit(model, loader)
    assert model.images_seen == 32 and model.sample(Noise(0, range(2))).isfinite().all()


def loader_of(images: torch.Tensor, batch_size: int) -> DataLoader[Any]:
    dataset: Any = [Batch(image, None, torch.tensor(i)) for i, image in enumerate(images)]

    def collate(batches: list[Batch]) -> Batch:
        return Batch(torch.stack([b.images for b in batches]), None, torch.stack([b.index for b in batches]))

    return DataLoader(dataset, batch_size, collate_fn=collate)


def test_a_warm_up_needs_the_data_module() -> None:
    loader = loader_of(torch.zeros(1, 1, 8, 8), 1)
    with pytest.raises(UserError, match="^model.warmup: 100 images cannot be counted in batches of a plain loader; "):
        trainer(max_steps=1).fit(Means(image_shape=(1, 8, 8), warmup=100), loader)
