"""What tests share: a quiet W&B, few threads, small trainings."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
os.environ.setdefault("WANDB_MODE", "disabled")
if "PYTEST_XDIST_WORKER" in os.environ:  # as many tests at a time as there are cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

TINY_UNET = [
    "--model.network=UNet",
    "--model.network.channels=16",
    "--model.network.channel_mult=[1]",
    "--model.network.num_blocks=1",
]
TINY_COUPLING = ["--model.network=ConvCoupling", "--model.network.channels=8", "--model.network.num_blocks=1"]
TINY = {
    "DDPM": ["--model=DDPM", *TINY_UNET],
    "EDM": ["--model=EDM", *TINY_UNET],
    "RectifiedFlow": ["--model=RectifiedFlow", *TINY_UNET],
    "FlowMatching": ["--model=FlowMatching", *TINY_UNET],
    "ImprovedDDPM": ["--model=ImprovedDDPM", *TINY_UNET],
    "Diffusion": [
        "--model=Diffusion",
        "--model.schedule=Cosine",
        "--model.parameterization=V",
        "--model.density=UniformTime",
        *TINY_UNET,
    ],
    "ScoreSDE": ["--model=ScoreSDE", *TINY_UNET],
    "MeanFlow": ["--model=MeanFlow", *TINY_UNET],
    "Shortcut": ["--model=Shortcut", *TINY_UNET],
    "ConsistencyTraining": ["--model=ConsistencyTraining", *TINY_UNET],
    "NICE": ["--model=NICE", "--model.network=MLPCoupling", "--model.network.width=16"],
    "RealNVP": ["--model=RealNVP", "--model.num_couplings=2", *TINY_COUPLING],
    "Glow": ["--model=Glow", "--model.num_steps=2", *TINY_COUPLING],
    "PointFlow": ["--model=PointFlow", "--model.num_layers=2"],
    "FVSBN": ["--model=FVSBN"],
    "NADE": ["--model=NADE", "--model.network=NADENetwork", "--model.network.hidden=8"],
    "MADE": [
        "--model=MADE",
        "--model.network=MaskedMLP",
        "--model.network.hidden=[8]",
        "--model.network.num_masks=2",
        "--model.network.random_orders=true",
    ],
    "VAE": [
        "--model=VAE",
        "--model.latent_dim=4",
        "--model.encoder=ConvEncoder",
        "--model.encoder.channels=8",
        "--model.decoder=ConvDecoder",
        "--model.decoder.channels=8",
    ],
    "PixelCNN": [
        "--model=PixelCNN",
        "--model.network=GatedPixelCNN",
        "--model.network.channels=8",
        "--model.network.num_layers=1",
        "--model.network.head_channels=8",
    ],
    "PixelCNNPlusPlus": [
        "--model=PixelCNNPlusPlus",
        "--model.network=ResidualPixelCNN",
        "--model.network.channels=4",
        "--model.network.num_blocks=1",
        "--model.network.num_levels=2",
    ],
    "ImageTransformer": [
        "--model=ImageTransformer",
        "--model.network=CausalTransformer",
        "--model.network.width=16",
        "--model.network.depth=1",
        "--model.network.num_heads=2",
    ],
    "VQGAN": [
        "--model=VQGAN",
        "--model.latent_dim=8",
        "--model.network=ConvAutoencoder",
        "--model.network.channels=8",
        "--model.quantiser=VectorQuantiser",
        "--model.quantiser.num_codes=32",
        "--model.quantiser.ema=false",
        "--model.discriminator=PatchDiscriminator",
        "--model.discriminator.channels=8",
        "--model.discriminator.num_halvings=1",
        "--model.discriminator_start=64",
        "--model.discriminator_warmup=64",
    ],
    "VQVAE": [
        "--model=VQVAE",
        "--model.latent_dim=8",
        "--model.network=ConvAutoencoder",
        "--model.network.channels=8",
        "--model.quantiser=VectorQuantiser",
        "--model.quantiser.num_codes=32",
    ],
    "KLAutoencoder": [
        "--model=KLAutoencoder",
        "--model.latent_dim=3",
        "--model.network=GaussianConvAutoencoder",
        "--model.network.channels=8",
    ],
    "GAN": [
        "--model=GAN",
        "--model.latent_dim=4",
        "--model.discriminator_steps=2",
        "--model.r1=0.1",
        "--model.r1_every=3",
        "--model.augment=AdaptiveAugment",
        "--model.augment.images=1000",
        "--model.class_conditional=true",
        "--model.generator=DCGANGenerator",
        "--model.generator.channels=8",
        "--model.discriminator=DCGANDiscriminator",
        "--model.discriminator.channels=8",
    ],
    "TokenPrior": [
        "--model=TokenPrior",
        "--model.network=TokenTransformer",
        "--model.network.width=16",
        "--model.network.depth=1",
    ],
    "LatentEDM": ["--model=EDM", *TINY_UNET],
    "WGAN": [
        "--model=WGAN",
        "--model.latent_dim=4",
        "--model.critic_steps=2",
        "--model.generator=Generator",
        "--model.generator.channels=8",
        "--model.critic=Critic",
        "--model.critic.channels=8",
    ],
}
DIGITS = [
    "--data.source=Digits",
    "--data.batch_size=64",
    "--trainer.accelerator=cpu",
    "--evaluation.feature_net=DigitsFeatures",
    "--evaluation.num_samples=24",
    "--evaluation.batch_size=8",
    "--evaluation.inception_splits=1",
    "--wandb.mode=disabled",
]


BINARY_DIGITS = ["--data.source=Binarised", "--data.source.source=Digits"]
TINY_FIRST_STAGE = [f"--first_stage.run={ROOT / 'tests' / 'tiny_vqvae.yaml'}"]
OTHER_DATA: dict[str, list[str]] = {
    "FVSBN": BINARY_DIGITS,
    "NADE": BINARY_DIGITS,
    "MADE": BINARY_DIGITS,
    "PointFlow": ["--data.source=TwoMoons", "--evaluation.feature_net=Points", "--evaluation.split=test"],
    "TokenPrior": TINY_FIRST_STAGE,
    "LatentEDM": TINY_FIRST_STAGE,
}
"""What a family trains on where it is not digits as they are."""


def arguments(model: str, root: Path, num_images: int = 64 * 4, *more: str) -> list[str]:
    """The arguments of a training on digits that takes a second."""
    return [
        *TINY[model],
        *DIGITS,
        *OTHER_DATA.get(model, []),
        f"--run.root={root}",
        f"--budget.num_images={num_images}",
        *more,
    ]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests that need the internet run only where they are asked for by name."""
    if "network" not in config.option.markexpr:
        skip = pytest.mark.skip(reason="needs the internet: pytest -m network")
        for item in items:
            if "network" in item.keywords:
                item.add_marker(skip)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Draw the same initial values whatever ran before."""
    import torch  # which reads OMP_NUM_THREADS

    torch.manual_seed(0)


@pytest.fixture
def lit_gen(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the command in a process of its own, in an empty folder."""

    def call(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "lit_gen", *words],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            capture_output=True,
            text=True,
            timeout=600,
        )

    return call
