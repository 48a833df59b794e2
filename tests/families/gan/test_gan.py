"""Two networks trained in alternation: what each step leaves unchanged, its gradients, and where training stops."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_gen.cli import commands
from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.data import Batch, Digits, ImageDataModule, TwoMoons
from lit_gen.experiment.parser import ExperimentCLI
from lit_gen.families.gan import (
    GAN,
    WGAN,
    Critic,
    DCGANDiscriminator,
    DCGANGenerator,
    Generator,
    MLPCritic,
    MLPGenerator,
)
from lit_gen.families.gan.augmentation import AdaptiveAugment, DiffAugment
from lit_gen.families.gan.models.adversarial import AdversarialModel
from lit_gen.families.gan.truncation import Truncation
from tests.conftest import arguments
from tests.families.gan.test_gan_losses import Halved

State = dict[str, Tensor]


def generator(shape: tuple[int, int, int], latent_dim: int, num_classes: int) -> nn.Module:
    return DCGANGenerator(shape, latent_dim, num_classes, channels=8)


def residual(shape: tuple[int, int, int], latent_dim: int, num_classes: int) -> nn.Module:
    return Generator(shape, latent_dim, num_classes, channels=8)


def discriminator(norm: Any) -> Any:
    return lambda shape, num_classes: DCGANDiscriminator(shape, num_classes, channels=8, norm=norm)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def copied(network: nn.Module) -> State:
    return {name: value.clone() for name, value in network.state_dict().items()}


def moved(before: State, after: State) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


class Recorded:
    """Training steps of a model without a Trainer, with the gradients and weights of each optimizer step recorded."""

    def __init__(self, model: AdversarialModel, world_size: int = 1, reduce: Any = None) -> None:
        self.model = model
        self.optimizers = [sgd(model.generating_network.parameters()), sgd(model.critic.parameters())]
        strategy = SimpleNamespace(reduce=reduce)
        fake: Any = model
        fake._trainer = SimpleNamespace(world_size=world_size, strategy=strategy)
        fake.optimizers = lambda: self.optimizers
        self.gradients: dict[int, list[Tensor]] = {}
        self.states: dict[int, tuple[State, State]] = {}
        self.random: dict[int, Tensor] = {}
        for which, optimizer in enumerate(self.optimizers):
            optimizer.register_step_post_hook(lambda optimizer, *_, which=which: self.keep(which))

    def keep(self, which: int) -> None:
        network = (self.model.generating_network, self.model.critic)[which]
        self.gradients[which] = [p.grad.clone() for p in network.parameters() if p.grad is not None]
        self.states[which] = copied(self.model.generating_network), copied(self.model.critic)
        self.random[which] = torch.get_rng_state()

    def step(self, batches_seen: int = 2) -> None:
        self.model.clock.batches_seen = batches_seen
        torch.manual_seed(5)
        images = torch.rand(16, 1, 8, 8) * 2 - 1
        self.model.training_step(Batch(images, torch.arange(16) % 3, torch.arange(16)), 0)


def gan(norm: str = "batch", **more: Any) -> GAN:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"latent_dim": 4, "generator": generator, "discriminator": discriminator(norm), **more}
    model = GAN((1, 8, 8), num_classes=3, class_conditional=True, **settings)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.train()


@pytest.mark.parametrize("norm", ["batch", "spectral"])
def test_each_step_moves_parameters_and_statistics_of_one_network_alone(norm: str) -> None:
    model = gan(norm, r1=1.0 if norm == "spectral" else 0.0, r1_every=1)
    recorded = Recorded(model)
    start = copied(model.generating_network), copied(model.critic)
    recorded.step()
    after_critic, after_generator = recorded.states[1], recorded.states[0]
    assert not moved(start[0], after_critic[0])
    parameters = {name for name, _ in model.critic.named_parameters()}
    changed = moved(start[1], after_critic[1])
    assert parameters <= changed
    assert any(name.endswith("running_mean" if norm == "batch" else "._u") for name in changed)
    assert not moved(after_critic[1], after_generator[1])
    assert moved(after_critic[0], after_generator[0]) == set(start[0])
    counts = [value for name, value in after_generator[0].items() if name.endswith("num_batches_tracked")]
    assert counts and all(count == 1 for count in counts), "the generator's own pass, not that for the critic"
    end = copied(model.generating_network), copied(model.critic)
    model.sample(Noise(0, range(4)))
    model.eval()
    model.critic(torch.randn(4, 1, 8, 8), torch.arange(4) % 3)
    assert not moved(end[0], model.generating_network.state_dict()) and not moved(end[1], model.critic.state_dict())


def test_a_critic_step_is_one_step_of_power_iteration() -> None:
    model = gan("spectral", r1=1.0, r1_every=1, discriminator_steps=2)
    weight = model.critic.layers[2].parametrizations.weight  # type: ignore[union-attr, index]
    matrix, v = weight.original.detach().flatten(1), weight[0]._v.clone()  # type: ignore[union-attr]
    u = nn.functional.normalize(matrix @ v, dim=0)
    Recorded(model).step(batches_seen=1)
    torch.testing.assert_close(weight[0]._u, u)  # type: ignore[union-attr]


def test_the_generator_learns_from_the_critic_that_was_just_updated_in_bf16_too() -> None:
    model = gan("none")
    recorded = Recorded(model)
    before = copied(model.generating_network)
    with torch.autocast("cpu", torch.bfloat16):
        recorded.step()
    expected = gan("none")
    expected.generating_network.load_state_dict(before)
    expected.critic.load_state_dict(recorded.states[1][1])
    torch.set_rng_state(recorded.random[1])
    with torch.autocast("cpu", torch.bfloat16):
        labels = torch.arange(16) % 3
        loss = expected.generator_loss(expected.generating_network(expected.latents(16), labels), labels)
    gradients = torch.autograd.grad(loss, list(expected.generating_network.parameters()))
    for own, exact in zip(recorded.gradients[0], gradients, strict=True):
        torch.testing.assert_close(own, exact, rtol=1e-6, atol=1e-8)
    stale = gan("none")
    assert moved(stale.critic.state_dict(), recorded.states[1][1])


def test_gradients_are_averaged_over_processes_once() -> None:
    calls = []

    def reduce(value: Tensor, reduce_op: str) -> Tensor:
        calls.append(reduce_op)
        return 0.25 * value

    one, two = gan("none"), gan("none")
    alone, together = Recorded(one), Recorded(two, world_size=2, reduce=reduce)
    alone.step()
    together.step()
    for own, other in zip(alone.gradients[1], together.gradients[1], strict=True):
        torch.testing.assert_close(0.25 * own, other)
    # the gradients of two networks, and mean and variance of two normalised layers
    assert calls == ["mean"] * (2 + 2 * 2)


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("settings", [{}, {"r1": 3.0, "r1_every": 1}, {"loss": "hinge", "augment": Halved()}])
def test_a_step_in_parts_is_that_of_the_whole_batch(settings: dict[str, Any], parts: int) -> None:
    """The gradients of both networks and the logged losses agree."""
    # without batch normalisation, which acts on each micro-batch
    whole, split = (Recorded(gan("none", generator=residual, **settings)) for _ in range(2))
    split.model.accumulate = parts
    whole.step()
    split.step()
    for which in (0, 1):
        assert sum(float(exact.norm()) for exact in whole.gradients[which]) > 0.1
        for own, exact in zip(split.gradients[which], whole.gradients[which], strict=True):
            torch.testing.assert_close(own, exact, rtol=1e-4, atol=1e-6)
    for name in ("loss", "generator_loss"):
        torch.testing.assert_close(split.model.training_values[name], whole.model.training_values[name])


def test_two_parameters_may_have_one_gradient() -> None:
    """Autograd returns one tensor for both terms of a sum; adding to it in place would count it twice."""

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))

    model, network = gan("none"), Sum()
    Recorded(model)
    model.accumulate = 2
    losses = (((network.one + network.other) * slope,) for slope in (3.0, 5.0))
    (descent,) = model.differentiate(losses, network)
    assert [float(gradient) for gradient in descent.gradients] == [4.0, 4.0] and descent.loss == 0


def test_clipping_bounds_the_norm_of_each_gradient() -> None:
    model = gan("none", gradient_clip=1e-3)
    for network in (model.generating_network, model.critic):
        for parameter in network.parameters():
            parameter.grad = torch.ones_like(parameter)
        model.on_before_optimizer_step(sgd(network.parameters()))
        norm = torch.stack([p.grad.norm() for p in network.parameters() if p.grad is not None]).norm()
        assert norm.item() == pytest.approx(1e-3, rel=1e-3)


def test_r1_is_lazy_and_weighs_as_much() -> None:
    """Every third step adds three times gamma / 2 |grad D|^2, and the others nothing."""
    losses = {}
    for r1, batches in ((0.0, 3), (2.0, 2), (2.0, 3)):
        model = gan("none", r1=r1, r1_every=3)
        Recorded(model).step(batches)
        losses[r1, batches] = model.training_values
    plain, skipped, lazy = losses.values()
    assert torch.equal(torch.as_tensor(skipped["loss"]), torch.as_tensor(plain["loss"]))
    assert "r1_penalty" not in skipped
    difference = float(lazy["loss"]) - float(plain["loss"])
    assert difference == pytest.approx(3 * float(lazy["r1_penalty"]), rel=1e-4) and difference > 0


def test_clipped_weights_stay_in_bounds() -> None:
    torch.manual_seed(0)
    model = WGAN((1, 8, 8), latent_dim=4, constraint="clipping", clip=0.02, critic_steps=1, generator=generator)
    assert all(p.abs().max() <= 0.02 for p in model.critic.parameters())
    recorded = Recorded(model.train())
    recorded.step()
    bound = torch.tensor(0.02)
    assert all(p.abs().max() <= bound for p in model.critic.parameters())
    assert any((p.abs() == bound).any() for p in model.critic.parameters())
    assert any(p.abs().max() > 0.05 for p in model.generating_network.parameters())


def test_a_spectral_wgan_normalises_its_critic_and_a_penalty_refuses_batch_norm() -> None:
    model = WGAN((1, 8, 8), latent_dim=4, constraint="spectral")
    assert sum(name.endswith("._u") for name, _ in model.critic.named_buffers()) > 5
    with pytest.raises(UserError, match="^model.critic: .*single images, which batch normalisation mixes"):
        WGAN((1, 8, 8), critic=discriminator("batch"))


def test_r1_refuses_batch_norm() -> None:
    with pytest.raises(UserError, match="^model.r1: .*single images, which batch normalisation mixes"):
        gan("batch", r1=10.0)
    assert gan("batch").r1 == 0 and gan("spectral", r1=10.0).r1 == gan("none", r1=10.0).r1 == 10


def test_truncation_draws_nearer_to_the_middle() -> None:
    model = gan()
    whole = model.sample(Noise(0, range(64)))
    near = model.sample(Noise(0, range(64)), sampler=Truncation(0.1))
    assert near.std(0).mean() < 0.5 * whole.std(0).mean()


@pytest.mark.slow
def test_averages_are_those_of_the_closed_form_and_buffers_come_along(tmp_path: Path) -> None:
    words = ["--ema.decay=0.15", "--model.discriminator_steps=1"]
    initial: Any = ExperimentCLI(arguments("GAN", tmp_path, 64, *words)).objects().model
    average = {name: value.double() for name, value in initial.generator.state_dict().items()}
    for batches in (1, 2):
        checkpoint = torch.load(
            commands.fit(arguments("GAN", tmp_path / str(batches), 64 * batches, *words)).checkpoint, weights_only=True
        )
        beta = 0.1 if batches == 1 else 0.15  # warms up as (1 + n) / (10 + n)
        raw = {name: checkpoint["state_dict"][f"generating_network.{name}"] for name in average}
        average = {name: beta * value + (1 - beta) * raw[name].double() for name, value in average.items()}
    assert len(checkpoint["optimizer_states"]) == 2 and all(s["state"] for s in checkpoint["optimizer_states"])
    weights = checkpoint["ema"]["weights"]
    assert weights.keys() == average.keys()
    assert any("running_var" in name for name in weights)
    for name, value in weights.items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), average[name], rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(value, raw[name])


@pytest.mark.parametrize("network", ["critic", "generator"])
def test_a_loss_that_is_no_number_stops_the_run(network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = getattr(GAN, f"{network}_loss")

    def broken(self: GAN, *inputs: Any) -> Tensor:
        loss: Tensor = original(self, *inputs)
        return loss * math.nan if self.clock.batches_seen == 4 else loss

    monkeypatch.setattr(GAN, f"{network}_loss", broken)
    named = "generator loss" if network == "generator" else "loss"
    words = ["--trainer.log_every_n_steps=1", "--checkpoint.every=64", "--run.name=broken"]
    with pytest.raises(UserError, match=f"the {named} is nan after 256 images; nothing was saved yet .*gradient_clip"):
        commands.fit(arguments("GAN", tmp_path / "unsaved", 64 * 8, *words, "--checkpoint.every=0"))
    kept = r"\S*last.ckpt keeps the last good weights: .*--model.gradient_clip"
    with pytest.raises(UserError, match=f"the {named} is nan after 256 images; {kept}"):
        commands.fit(arguments("GAN", tmp_path, 64 * 8, *words))
    (path,) = tmp_path.glob("*/checkpoints/last.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["images_seen"] == 192
    assert all(torch.isfinite(value).all() for value in checkpoint["state_dict"].values())


def test_a_collapse_shows_beside_the_grid(tmp_path: Path) -> None:
    import csv

    run = commands.fit(arguments("GAN", tmp_path, 64 * 4, "--grid.every=128", "--grid.num_samples=4"))
    rows = [row for row in csv.DictReader((run.directory / "metrics.csv").open()) if row.get("samples/coverage")]
    assert len(rows) == 2
    assert float(rows[-1]["samples/coverage"]) < 0.1, "it has learned nothing in four batches"
    assert float(rows[-1]["samples/duplicate_rate"]) > 0.5


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        (GAN, {"latent_dim": 0}, "model.latent_dim: 0 is .*at least 1"),
        (GAN, {"discriminator_steps": 0}, "model.discriminator_steps: 0 is .*at least 1"),
        (WGAN, {"critic_steps": 0}, "model.critic_steps: 0 is .*at least 1"),
        (GAN, {"gradient_clip": 0.0}, "model.gradient_clip: 0.0 is not positive.*null"),
        (GAN, {"r1": -1.0}, "model.r1: -1.0 is negative"),
        (GAN, {"r1": 1.0, "r1_every": 0}, "model.r1_every: 0 is .*at least 1"),
        (WGAN, {"penalty": 0.0}, "model.penalty: 0.0 is not positive"),
        (WGAN, {"constraint": "clipping", "clip": 0.0}, "model.clip: 0.0 is not positive"),
        (
            WGAN,
            {"constraint": "clipping", "penalty": 5.0},
            "model.penalty: 5.0 is not used by the constraint clipping; .* set model.constraint to penalty",
        ),
        (
            WGAN,
            {"constraint": "spectral", "clip": 0.1},
            "model.clip: 0.1 is not used by the constraint spectral; .* set model.constraint to clipping",
        ),
    ],
)
def test_bad_settings_name_their_key(family: type[AdversarialModel], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        family((1, 8, 8), **settings)


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        (
            GAN,
            {"discriminator": DCGANGenerator},
            "model.discriminator: DCGANGenerator does not take inputs of shape (2, 1, 8, 8): ",
        ),
        (WGAN, {"critic": MLPGenerator}, "model.critic: MLPGenerator does not take inputs of shape (2, 1, 8, 8): "),
        (
            WGAN,
            {"critic": lambda shape, _: nn.Flatten()},
            "model.critic: Flatten does not take inputs of shape (2, 1, 8, 8): ",
        ),
        (
            GAN,
            {"generator": lambda *_: MLPCritic((4, 1, 1))},
            "model.generator: MLPCritic returns an output of shape (),",
        ),
        (WGAN, {"critic": lambda shape, _: Critic(shape, num_blocks=0)}, "model.critic: num_blocks: 0 is not positive"),
    ],
)
def test_a_network_that_is_no_generator_or_critic_is_named(
    family: type[AdversarialModel], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as error:
        family((1, 8, 8), latent_dim=4, **settings)  # type: ignore[call-arg]
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_a_network_of_another_kind_is_named_on_the_command_line() -> None:
    with pytest.raises(UserError) as error:
        ExperimentCLI(["--model=GAN", "--model.generator=DCGANDiscriminator", "--data.source=Digits"])
    message = "model.generator: DCGANDiscriminator cannot be called as a generator; choose another class"
    assert str(error.value) == message


@pytest.mark.parametrize(("family", "critic"), [("GAN", "discriminator"), ("WGAN", "critic")])
def test_settings_that_an_optimizer_refuses_name_it_before_anything_is_written(
    family: str, critic: str, tmp_path: Path
) -> None:
    for word, message in (
        ("optimizer.lr=-1", "model.optimizer: Invalid learning rate: -1.0; choose another value"),
        (f"{critic}_optimizer.betas=[1.5,0.9]", f"model.{critic}_optimizer: Invalid beta parameter at index 0: 1.5; "),
    ):
        with pytest.raises(UserError) as error:
            commands.fit(arguments(family, tmp_path, 64, f"--model.{word}"))
        assert str(error.value).startswith(message)
    assert not list(tmp_path.iterdir())


def test_trying_the_networks_leaves_no_trace() -> None:
    torch.manual_seed(0)
    model = GAN((1, 8, 8), latent_dim=4, generator=generator, discriminator=discriminator("batch"))
    after = torch.get_rng_state()
    torch.manual_seed(0)
    parts = generator((1, 8, 8), 4, 0), discriminator("batch")((1, 8, 8), 0)
    assert torch.equal(after, torch.get_rng_state())
    for tried, fresh in zip((model.generating_network, model.critic), parts, strict=True):
        assert not moved(fresh.state_dict(), tried.state_dict())
        assert all(module.training for module in tried.modules())


@pytest.mark.parametrize("augment", [DiffAugment, AdaptiveAugment])
def test_points_are_not_augmented_as_images(augment: type[DiffAugment]) -> None:
    model = GAN((1, 8, 8), latent_dim=4, augment=augment(), generator=generator, discriminator=discriminator("none"))
    model.check_data(ImageDataModule(Digits()))
    with pytest.raises(UserError, match=f"^model.augment: {augment.__name__} transforms images, but two_moons holds"):
        model.check_data(ImageDataModule(TwoMoons()))
    gan().check_data(ImageDataModule(TwoMoons()))
