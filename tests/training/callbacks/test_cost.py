"""The operations of training, against closed forms of linear networks."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_gen.cli import commands
from lit_gen.core import processes
from lit_gen.core.noise import Noise
from lit_gen.core.operations import OperationCounter
from lit_gen.data.batches import Batch
from lit_gen.families.base import GenerativeModel
from lit_gen.families.gan import GAN
from lit_gen.training.callbacks.cost import TrainingCost, flops_per_trained_image, kinds_of_steps
from tests.behaviour.test_resume import assert_equal_bits, contents
from tests.conftest import arguments

N, PIXELS, HIDDEN, LATENT = 6, 4, 5, 3
IMAGES = Batch(torch.zeros(N, 1, 2, 2), None, torch.arange(N))


class Linear(GenerativeModel):
    """Two linear layers, whose training computes nothing else."""

    def __init__(self) -> None:
        super().__init__((1, 2, 2))
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, HIDDEN, False), nn.Linear(HIDDEN, PIXELS, False))

    @property
    def generator(self) -> nn.Module:
        return self.net

    def draw(self, noise: Noise, labels: Tensor | None, sampler: Any) -> Tensor:
        raise NotImplementedError

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.net(batch.images).square().mean()


class Maps(nn.Module):
    """Linear generator or discriminator."""

    def __init__(self, inputs: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        self.layer = nn.Linear(inputs, max(1, torch.Size(shape).numel()), False)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.layer(x.flatten(1)).view(len(x), *self.shape)


def gan(**settings: Any) -> GAN:
    return GAN(
        (1, 2, 2),
        generator=lambda shape, latent_dim, num_classes: Maps(latent_dim, shape),
        discriminator=lambda shape, num_classes: Maps(PIXELS, ()),
        latent_dim=LATENT,
        **settings,
    )


def test_a_linear_network_costs_three_times_its_forward_pass() -> None:
    """2 N in out forward, as much for the gradients of the weights, and as much for those of the inputs."""
    net, x = nn.Linear(7, 11, bias=False), torch.zeros(N, 7, requires_grad=True)
    with OperationCounter() as forward:
        loss = net(x).sum()
    with OperationCounter() as backward:
        loss.backward()
    assert (forward.total, backward.total) == (2 * N * 7 * 11, 2 * 2 * N * 7 * 11)


def test_a_step_is_counted_on_a_copy() -> None:
    model, state = Linear(), torch.get_rng_state()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    # the images of the first layer need no gradient
    assert flops_per_trained_image(model, IMAGES) == 2 * PIXELS * HIDDEN * 2 + 2 * HIDDEN * PIXELS * 3
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())
    assert (model.images_seen, model.clock.batches_seen, model._trainer) == (0, 0, None)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_gan_costs_the_mean_of_its_kinds_of_steps(steps: int, accumulate: int) -> None:
    model = gan(discriminator_steps=steps)
    model.split_steps(accumulate)
    g, d = 2 * LATENT * PIXELS, 2 * PIXELS
    critic = g + 2 * 2 * d  # G; D of real and generated images, forward and for the weights
    generator = g + d + d + g  # G, D; back through D to the images, and to the weights of G
    assert flops_per_trained_image(model, IMAGES) == pytest.approx(critic + generator / steps)


def test_the_penalty_of_every_third_step_counts_a_third() -> None:
    plain, often, seldom = (
        flops_per_trained_image(gan(discriminator_steps=2, **r1), IMAGES)
        for r1 in ({}, {"r1": 1.0, "r1_every": 1}, {"r1": 1.0, "r1_every": 3})
    )
    assert often > plain and seldom == pytest.approx(plain + (often - plain) / 3)


@pytest.mark.parametrize(
    ("periods", "kinds"),
    [
        ((), {1: 1.0}),
        ((1,), {1: 1.0}),
        ((5,), {1: 0.8, 5: 0.2}),
        ((2, 3), {1: 1 / 3, 2: 1 / 3, 3: 1 / 6, 6: 1 / 6}),
        ((2, 4), {1: 0.5, 2: 0.25, 4: 0.25}),
    ],
)
def test_steps_of_one_kind_are_multiples_of_the_same_periods(periods: tuple[int, ...], kinds: dict[int, float]) -> None:
    assert kinds_of_steps(periods) == pytest.approx(kinds)


class InPhases(Linear):
    """Trains the second layer alone after 100 images."""

    phase_starts = (0, 100)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        x = self.net[:2](batch.images)
        return self.net[2](x.detach() if self.images_seen > 100 else x).sum()


def test_phases_are_counted_when_they_begin_or_have_begun() -> None:
    early, late = 2 * PIXELS * HIDDEN * 2 + 2 * HIDDEN * PIXELS * 3, 2 * PIXELS * HIDDEN + 2 * HIDDEN * PIXELS * 2
    first: Any = SimpleNamespace()
    for seen in ([0, 50, 100, 150], [150]):  # from the start, and resumed
        cost, model = TrainingCost(), InPhases()
        for images in seen:
            model.clock.images_seen = images
            cost.on_train_batch_start(first, model, IMAGES, 0)
        assert cost.flops(60) == 60 * early
        assert cost.flops(220) == 100 * early + 120 * late


class Odd(Linear):
    """Asks for what no step has without a real Trainer."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * float(self.trainer.max_epochs or 1)


def test_an_unknown_cost_is_unknown() -> None:
    cost, first = TrainingCost(), SimpleNamespace()
    cost.on_train_batch_start(first, Odd(), IMAGES, 0)  # type: ignore[arg-type]
    assert cost.flops(100) is None and TrainingCost().flops(100) is None


class Summed(Linear):
    """Sums over all processes in its step."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        total = processes.all_reduce_sum(torch.ones(()))
        assert total == 1 and processes.ranks() == (0, 1) and processes.gather("a") == ["a"]
        assert processes.from_first("b") == "b" and len(processes.all_gather_cat(torch.ones(2))) == 2
        return super().training_step(batch, batch_idx)


def test_no_process_waits_for_another_while_it_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a group in which every collective operation would fail."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    cost, plain = TrainingCost(), TrainingCost()
    for counter, model in ((cost, Summed()), (plain, Linear())):
        counter.on_train_batch_start(SimpleNamespace(), model, IMAGES, 0)  # type: ignore[arg-type]
    assert cost.flops(60) == plain.flops(60) != 0
    with pytest.raises((ValueError, RuntimeError)):
        processes.all_reduce_sum(torch.ones(()))


@pytest.mark.slow
@pytest.mark.parametrize("model", ["VQGAN", "GAN"])
def test_counting_changes_no_bit(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = commands.fit(arguments(model, tmp_path / "counted", 256))
    assert run.metadata["training_flops"] > 0 and run.metadata["earlier_flops"] == 0
    with monkeypatch.context() as patch:
        patch.setattr(TrainingCost, "on_train_batch_start", lambda *_: None)
        other = commands.fit(arguments(model, tmp_path / "not", 256))
    assert "training_flops" not in other.metadata
    assert_equal_bits(contents(tmp_path / "counted"), contents(tmp_path / "not"))
