"""The gradient penalty and the two steps of a WGAN against exact answers."""

import csv
from pathlib import Path

import pytest
import torch
from torch import nn

from lit_gen.cli import commands
from lit_gen.core.noise import Noise
from lit_gen.data import ImageDataModule, TwoMoons
from lit_gen.experiment.loading import load_model
from lit_gen.experiment.parser import ExperimentCLI
from lit_gen.families.gan.losses import gradient_penalty
from lit_gen.metrics import wasserstein
from tests.conftest import arguments


class Linear(nn.Module):
    """D(x) = <w, x> on images; its gradient is w everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(3, 4, 4).double())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.w * x).flatten(1).sum(1)


def test_penalty_of_a_linear_critic_is_exact() -> None:
    torch.manual_seed(0)
    critic = Linear()
    real, fake = torch.randn(2, 7, 3, 4, 4).double()
    penalty = gradient_penalty(critic, real, fake)
    norm = critic.w.detach().norm()
    torch.testing.assert_close(penalty.detach(), (norm - 1) ** 2, rtol=1e-12, atol=0)
    penalty.backward()
    expected = 2 * (norm - 1) * critic.w.detach() / norm
    torch.testing.assert_close(critic.w.grad, expected, rtol=1e-12, atol=0)


def test_penalty_is_taken_between_real_and_generated() -> None:
    torch.manual_seed(0)
    seen = []

    class Square(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x.detach())
            return 0.5 * x.flatten(1).square().sum(1)

    real, fake = torch.randn(2, 1000, 1, 2, 2).double()
    penalty = gradient_penalty(Square(), real, fake)
    (between,) = seen
    u = ((between - fake) / (real - fake)).flatten(1)
    torch.testing.assert_close(u, u[:, :1].expand_as(u))
    assert u.min() > 0 and u.max() < 1 and abs(u.mean() - 0.5) < 0.05
    torch.testing.assert_close(penalty, (between.flatten(1).norm(dim=1) - 1).square().mean())


@pytest.mark.slow
def test_of_points_the_exact_distance_is_logged(tmp_path: Path) -> None:
    """It is the distance between 1000 samples and 1000 training points, a reference for the critic's estimate."""
    words = ["--model=WGAN", "--model.latent_dim=2", "--model.generator=MLPGenerator", "--model.critic=MLPCritic"]
    words += ["--data.source=TwoMoons", "--data.batch_size=32", "--trainer.accelerator=cpu", "--wandb.mode=disabled"]
    words += ["--evaluation.feature_net=Points", "--evaluation.split=test", "--budget.num_images=64"]
    run = commands.fit([*words, f"--run.root={tmp_path}"])
    logged = [row["samples/wasserstein"] for row in csv.DictReader((run.directory / "metrics.csv").open())]
    data = ImageDataModule(TwoMoons())
    real = data.examples("train", 1000).images.flatten(1)
    cli = ExperimentCLI([f"--config={run.config}"])
    model = load_model(run, cli.objects().model, "ema")
    fake = model.sample(Noise(0, range(1000), torch.device("cpu"))).flatten(1)
    [number] = [float(value) for value in logged if value]
    assert number == pytest.approx(wasserstein(real, fake, order=1), rel=1e-6)


def test_each_step_moves_one_network_alone(tmp_path: Path) -> None:
    """The first of two batches is only a critic step; the second is also a generator step."""
    weights = []
    for batches in (1, 2):
        run = commands.fit(arguments("WGAN", tmp_path / str(batches), 64 * batches))
        weights.append(torch.load(run.checkpoint, weights_only=True)["state_dict"])
    torch.manual_seed(0)
    start = arguments("WGAN", tmp_path, 64)
    from lit_gen.experiment.parser import ExperimentCLI

    initial = ExperimentCLI(start).objects().model.state_dict()

    def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], part: str) -> bool:
        return any(not torch.equal(before[key], after[key]) for key in before if key.startswith(part))

    assert not moved(initial, weights[0], "generating_network.")
    assert moved(initial, weights[0], "critic.")
    assert moved(weights[0], weights[1], "generating_network.")
