"""Losses, logged values and steps of the two networks of a GAN, computed by hand for linear networks."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.data import Batch
from lit_gen.families.gan import GAN, WGAN, SNGANDiscriminator
from lit_gen.families.gan.augmentation import AdaptiveAugment, Augmentation, DiffAugment
from lit_gen.families.gan.models.adversarial import AdversarialModel

LABELS = torch.tensor([0, 2, 1, 1, 0])
LOSSES = ["minimax", "non_saturating", "hinge", "least_squares", "wasserstein"]


class LinearGenerator(nn.Module):
    """G(z, y) = A z + b_y."""

    def __init__(self, shape: tuple[int, int, int], latent_dim: int, num_classes: int) -> None:
        super().__init__()
        self.shape = shape
        self.matrix = nn.Parameter(torch.randn(math.prod(shape), latent_dim))
        self.offset = nn.Parameter(torch.randn(num_classes, math.prod(shape)))

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        return (z @ self.matrix.T + self.offset[labels]).unflatten(1, self.shape)


class LinearCritic(nn.Module):
    """D(x, y) = <w, x> + b_y."""

    def __init__(self, shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(math.prod(shape), 1, bias=False)
        self.offset = nn.Parameter(torch.randn(num_classes))

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        score: Tensor = self.linear(x.flatten(1)).squeeze(1) + self.offset[labels]
        return score


class Halved(Augmentation):
    """The deterministic transform x / 2 + 1 / 4."""

    def forward(self, images: Tensor) -> Tensor:
        return images / 2 + 0.25


def linear(family: type[AdversarialModel], **settings: Any) -> Any:
    """Return a model of linear networks that trains without a Trainer."""
    torch.manual_seed(0)
    critic = "discriminator" if family is GAN else "critic"
    settings = {"latent_dim": 3, "generator": LinearGenerator, critic: LinearCritic, **settings}
    model: Any = family((1, 2, 2), num_classes=3, class_conditional=True, **settings)  # type: ignore[call-arg]
    model._trainer = SimpleNamespace(world_size=1, strategy=SimpleNamespace(reduce=lambda counts, reduce_op: counts))
    optimizers = model.configure_optimizers()
    model.optimizers = lambda: optimizers
    model.clock.batches_seen = 4
    return model.train()


def images(num: int = 5) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    real, fake = torch.randn(2, num, 1, 2, 2)
    return real, fake


def by_hand(model: Any, x: Tensor) -> Tensor:
    """Return D(x, y) in float64."""
    w, offset = model.critic.linear.weight.detach().double()[0], model.critic.offset.detach().double()
    return x.double().flatten(1) @ w + offset[LABELS]


def losses_by_hand(name: str, real: Tensor, fake: Tensor) -> tuple[float, float]:
    """Return the losses of D and of G, given scores."""
    r, f = real.tolist(), fake.tolist()

    def mean(values: Any) -> float:
        return math.fsum(values) / 5

    def log_sigmoid(score: float) -> float:
        return -math.log(1 + math.exp(-score))

    cross_entropy = -mean(map(log_sigmoid, r)) - mean(log_sigmoid(-s) for s in f)
    return {
        "minimax": (cross_entropy, mean(log_sigmoid(-s) for s in f)),
        "non_saturating": (cross_entropy, -mean(map(log_sigmoid, f))),
        "hinge": (mean(max(0, 1 - s) for s in r) + mean(max(0, 1 + s) for s in f), -mean(f)),
        "least_squares": (
            mean((s - 1) ** 2 for s in r) / 2 + mean(s**2 for s in f) / 2,
            mean((s - 1) ** 2 for s in f) / 2,
        ),
        "wasserstein": (mean(f) - mean(r), -mean(f)),
    }[name]


def logged(model: Any) -> dict[str, float]:
    return {name: float(value) for name, value in model.training_values.items()}


@pytest.mark.parametrize("augmented", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_losses_of_a_gan(loss: str, augmented: bool) -> None:
    """R1 takes the gradient with respect to the image: w / 2 if the discriminator sees x / 2 + 1 / 4."""
    model = linear(GAN, loss=loss, r1=3.0, r1_every=2, augment=Halved() if augmented else None)
    real, fake = images()
    seen = [by_hand(model, x / 2 + 0.25 if augmented else x) for x in (real, fake)]
    of_critic, of_generator = losses_by_hand(loss, *seen)
    slope = model.critic.linear.weight.detach().double() / (2 if augmented else 1)
    r1 = 1.5 * float(slope.square().sum())
    assert model.critic_loss(real, fake, LABELS).item() == pytest.approx(of_critic + 2 * r1, rel=1e-5)
    assert model.generator_loss(fake, LABELS).item() == pytest.approx(of_generator, rel=1e-5)
    threshold = 0.5 if loss == "least_squares" else 0.0
    expected = {"r1_penalty": r1, "real_score": float(seen[0].mean()), "fake_score": float(seen[1].mean())}
    if loss != "wasserstein":
        expected["real_accuracy"] = float((seen[0] > threshold).double().mean())
        expected["fake_accuracy"] = float((seen[1] < threshold).double().mean())
    assert logged(model) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES[:-1])
def test_accuracy_counts_from_the_boundary_of_the_loss(loss: str) -> None:
    model = linear(GAN, loss=loss)
    nn.init.zeros_(model.critic.offset)
    model.critic.linear.weight.data = torch.tensor([[1.0, 0, 0, 0]])
    real, fake = torch.zeros(2, 5, 1, 2, 2)
    real[:, 0, 0, 0] = torch.tensor([-1.0, 0.2, 0.3, 0.7, 2.0])
    fake[:, 0, 0, 0] = torch.tensor([-2.0, -1.0, 0.1, 0.2, 3.0])
    model.critic_loss(real, fake, LABELS)
    accuracies = logged(model)["real_accuracy"], logged(model)["fake_accuracy"]
    assert accuracies == pytest.approx((0.4, 0.8) if loss == "least_squares" else (0.8, 0.4))


@pytest.mark.parametrize("constraint", ["penalty", "clipping", "spectral"])
def test_losses_of_a_wgan(constraint: str) -> None:
    """The gradient of the critic is w everywhere; normalised, a matrix of one row is w / |w|."""
    model = linear(WGAN, constraint=constraint, **({"clip": 0.2} if constraint == "clipping" else {}))
    w = model.critic.linear.weight.detach().double()
    real, fake = images()
    of_real, of_fake = by_hand(model, real), by_hand(model, fake)
    gap = float(of_real.mean() - of_fake.mean())
    penalty = float((w.norm() - 1) ** 2) if constraint == "penalty" else 0.0
    if constraint == "clipping":
        assert w.abs().max() == pytest.approx(0.2)
    if constraint == "spectral":
        assert w.norm() == pytest.approx(1)
    assert model.critic_loss(real, fake, LABELS).item() == pytest.approx(10 * penalty - gap, rel=1e-5)
    assert model.generator_loss(fake, LABELS).item() == pytest.approx(-float(of_fake.mean()), rel=1e-5)
    values = logged(model)
    distance = values.pop("wasserstein")
    of_distance = distance + distance * abs(distance) / 20 if constraint == "penalty" else distance
    assert of_distance == pytest.approx(gap, rel=1e-5)
    assert values == pytest.approx(
        {"critic_gap": gap, **({"gradient_penalty": penalty} if constraint == "penalty" else {})}, rel=1e-5
    )


@pytest.mark.parametrize("loss", [*LOSSES, None])
def test_validation_is_of_images_as_they_are(loss: str | None) -> None:
    """It uses real images, generated images of the latents of their index, and no augmentation. None tests a WGAN."""
    model = linear(GAN, loss=loss, augment=Halved()) if loss else linear(WGAN)
    means: dict[str, Tensor] = {}
    model.log_validation = lambda batch, **values: means.update(values)
    real, _ = images()
    index = torch.arange(5) + 7
    with torch.no_grad():
        model.validation_step(Batch(real, LABELS, index), 0)
        fake = model.generating_network(Noise(0, index).normal((3,)), LABELS)
    of_real, of_fake = by_hand(model, real), by_hand(model, fake)
    if loss is None:
        expected = {"critic_gap": float(of_real.mean() - of_fake.mean())}
    else:
        expected = {"loss": losses_by_hand(loss, of_real, of_fake)[0], "real_score": float(of_real.mean())}
    assert {name: float(value) for name, value in means.items()} == pytest.approx(expected, rel=1e-5)


def sgd(rate: float) -> Any:
    return lambda parameters: torch.optim.SGD(parameters, lr=rate)


@pytest.mark.parametrize("family", [GAN, WGAN])
def test_each_network_takes_its_own_step(family: type[AdversarialModel]) -> None:
    """The critic takes a step of 0.5 up its gap, the generator one of 0.01 up the scores of the new critic.

    The GAN's discriminator sees x / 2 + 1 / 4 in both.
    """
    augmented = family is GAN
    more = {"loss": "wasserstein", "augment": Halved()} if augmented else {"constraint": "clipping", "clip": 100.0}
    key = "discriminator" if augmented else "critic"
    more |= {"optimizer": sgd(0.01), f"{key}_optimizer": sgd(0.5), f"{key}_steps": 2}
    model = linear(family, **more)
    real, _ = images()
    w, matrix = model.critic.linear.weight.detach()[0].clone(), model.generating_network.matrix.detach().clone()
    offset = model.generating_network.offset.detach().clone()
    torch.manual_seed(5)
    first, second = torch.randn(5, 3), torch.randn(5, 3)
    torch.manual_seed(5)
    model.training_step(Batch(real, LABELS, torch.arange(5)), 0)
    scale = 0.5 if augmented else 1.0
    gap = real.flatten(1).mean(0) - (first @ matrix.T + offset[LABELS]).mean(0)
    new = w + 0.5 * scale * gap
    torch.testing.assert_close(model.critic.linear.weight.detach()[0], new)
    moved = model.generating_network.matrix.detach() - matrix
    torch.testing.assert_close(moved, 0.01 * scale * torch.outer(new, second.mean(0)), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES[:-1])
def test_a_training_step_moves_the_adaptive_augmentation(loss: str) -> None:
    """With images=20, five images move p by 1/4: up if all scores are above the boundary of the loss, else down."""
    model = linear(GAN, loss=loss, augment=AdaptiveAugment(images=20, every=1), discriminator_optimizer=sgd(0.0))
    nn.init.zeros_(model.critic.linear.weight)
    boundary = 0.5 if loss == "least_squares" else 0.0
    real, _ = images()
    found = []
    for score in (boundary + 0.1, boundary + 0.1, boundary - 0.1):
        nn.init.constant_(model.critic.offset, score)
        model.training_step(Batch(real, LABELS, torch.arange(5)), 0)
        found.append((float(model.augment.p), logged(model)["augment_p"]))
    assert found == [(0.25, 0.25), (0.5, 0.5), (0.25, 0.25)]


def test_a_loss_without_a_boundary_takes_no_adaptive_augmentation() -> None:
    linear(GAN, loss="wasserstein", augment=DiffAugment())
    with pytest.raises(UserError, match="^model.augment: AdaptiveAugment .* wasserstein loss"):
        linear(GAN, loss="wasserstein", augment=AdaptiveAugment())


def test_titles_are_those_of_the_losses() -> None:
    """LS-GAN, with a hyphen, is a different model, the loss-sensitive GAN. SNGAN needs its network and its loss."""
    titles = {loss: linear(GAN, loss=loss).title for loss in LOSSES}
    expected = ("Minimax-GAN", "GAN", "Hinge-GAN", "LSGAN", "GAN, wasserstein loss")
    assert titles == dict(zip(LOSSES, expected, strict=True))
    titles = {loss: GAN((1, 8, 8), loss=loss, discriminator=SNGANDiscriminator).title for loss in LOSSES}  # type: ignore[arg-type]
    plain = GAN((1, 8, 8), loss="hinge", discriminator=lambda shape, n: SNGANDiscriminator(shape, n, spectral=False))
    assert plain.title == "Hinge-GAN"
    of_loss = {loss: f"SNGAN, {loss.replace('_', ' ')} loss" for loss in LOSSES}
    assert titles == of_loss | {"hinge": "SNGAN"}
