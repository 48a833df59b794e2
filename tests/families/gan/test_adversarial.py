"""Losses, penalties and augmentations of adversarial training against exact answers."""

import math

import pytest
import torch
from scipy.stats import truncnorm
from torch import Tensor, nn

from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.families.gan.augmentation import AdaptiveAugment, DiffAugment, color, cutout, translation
from lit_gen.families.gan.losses import LOSSES, gradient_penalty, r1_penalty, wasserstein_of_gap
from lit_gen.families.gan.truncation import Truncation
from lit_gen.metrics import density_and_coverage, duplicate_rate

LN2 = math.log(2)
AT_ZERO = {
    "minimax": (2 * LN2, -LN2),
    "non_saturating": (2 * LN2, LN2),
    "hinge": (2.0, 0.0),
    "least_squares": (0.5, 0.5),
    "wasserstein": (0.0, 0.0),
}


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def expected_gradients(name: str, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return N times the gradients of D's loss by the scores of real and generated images, and of G's by the latter."""
    one = torch.ones_like(real)
    cross_entropy = (-sigmoid(-real), sigmoid(fake))
    return {
        "minimax": (*cross_entropy, -sigmoid(fake)),
        "non_saturating": (*cross_entropy, -sigmoid(-fake)),
        "hinge": (-(real < 1).double(), (fake > -1).double(), -one),
        "least_squares": (real - 1, fake, fake - 1),
        "wasserstein": (-one, one, -one),
    }[name]


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_gradients_are_those_of_the_table(name: str) -> None:
    of_discriminator, of_generator = LOSSES[name]
    zero = torch.zeros(5).double()
    assert of_discriminator(zero, zero).item() == pytest.approx(AT_ZERO[name][0], abs=1e-12)
    assert of_generator(zero).item() == pytest.approx(AT_ZERO[name][1], abs=1e-12)
    torch.manual_seed(0)
    real, fake = (2 * torch.randn(2, 50).double()).requires_grad_().unbind()
    by_real, by_fake = torch.autograd.grad(of_discriminator(real, fake), [real, fake])
    (of_g,) = torch.autograd.grad(of_generator(fake), fake)
    expected = expected_gradients(name, real.detach(), fake.detach())
    for gradient, exact in zip((by_real, by_fake, of_g), expected, strict=True):
        torch.testing.assert_close(50 * gradient, exact, rtol=1e-12, atol=1e-12)


def test_only_the_minimax_loss_saturates_where_the_discriminator_is_sure() -> None:
    sure = torch.tensor([-10.0], dtype=torch.float64, requires_grad=True)
    slopes = {name: torch.autograd.grad(LOSSES[name][1](sure), sure)[0].item() for name in LOSSES}
    assert all(slope < 0 for slope in slopes.values()), "all raise the score"
    assert slopes["minimax"] == pytest.approx(-4.54e-5, rel=1e-3)
    assert slopes["non_saturating"] == pytest.approx(-1, rel=1e-3)


def test_r1_of_a_linear_discriminator_is_exact() -> None:
    torch.manual_seed(0)
    w = torch.randn(3, 4, 4).double().requires_grad_()
    x = torch.randn(7, 3, 4, 4).double().requires_grad_()
    penalty = r1_penalty((w * x).flatten(1).sum(1), x, gamma=5.0)
    torch.testing.assert_close(penalty, 2.5 * w.square().sum(), rtol=1e-12, atol=0)
    (gradient,) = torch.autograd.grad(penalty, w)
    torch.testing.assert_close(gradient, 5 * w.detach(), rtol=1e-12, atol=0)


def test_penalty_takes_labels() -> None:
    torch.manual_seed(0)
    embedding = nn.Embedding(3, 8).double()
    labels = torch.tensor([0, 2, 2, 1])

    def critic(x: Tensor, y: Tensor) -> Tensor:
        return (embedding(y) * x.flatten(1)).sum(1)

    real, fake = torch.randn(2, 4, 2, 2, 2).double()
    norms = embedding.weight.detach().norm(dim=1)[labels]
    penalty = gradient_penalty(critic, real, fake, labels)
    torch.testing.assert_close(penalty.detach(), (norms - 1).square().mean(), rtol=1e-12, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("shift", [2.0, 5.0])
def test_gap_of_a_penalised_critic_is_that_of_the_dual(shift: float) -> None:
    """The best critic under a penalty of weight 100 has the gap W + W^2 / 200 in one dimension.

    Under its full weight from the start, the critic stays where its slope is of the wrong sign: that is a minimum too.
    """
    torch.manual_seed(0)
    fake = torch.randn(64, 1)
    real = fake + shift
    critic = nn.Sequential(nn.Linear(1, 16), nn.SiLU(), nn.Linear(16, 16), nn.SiLU(), nn.Linear(16, 1))
    optimizer = torch.optim.Adam(critic.parameters(), lr=1e-2, betas=(0.5, 0.9))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, 800)
    gaps = []
    for step in range(800):
        optimizer.zero_grad()
        gap = critic(real).mean() - critic(fake).mean()
        ((100 if step > 50 else 1) * gradient_penalty(critic, real, fake) - gap).backward()
        optimizer.step()
        schedule.step()
        gaps.append(gap.detach())
    measured = torch.stack(gaps[-50:]).mean()
    assert measured.item() == pytest.approx(shift + shift**2 / 200, rel=5e-4), "and not W itself"
    assert wasserstein_of_gap(measured, 100).item() == pytest.approx(shift, rel=5e-4)


def test_distance_of_a_gap() -> None:
    distance = torch.tensor([0.0, 0.3, 7.0, -2.0]).double()
    gap = distance + distance * distance.abs() / 20
    torch.testing.assert_close(wasserstein_of_gap(gap, 10), distance, rtol=1e-12, atol=1e-12)


# --- augmentation ---


def test_translations_are_shifts_by_at_most_an_eighth() -> None:
    torch.manual_seed(0)
    x = torch.rand(1, 2, 8, 16) + 1
    padded = nn.functional.pad(x, (2, 2, 1, 1))
    shifts = [padded[0, :, i : i + 8, j : j + 16] for i in range(3) for j in range(5)]
    out = translation(x.expand(300, -1, -1, -1))
    found = {next(k for k, s in enumerate(shifts) if torch.equal(image, s)) for image in out}
    assert found == set(range(15))


def test_cutout_is_a_rectangle_of_half_the_size() -> None:
    torch.manual_seed(0)
    out = cutout(torch.ones(400, 3, 8, 8))
    holes = out == 0
    assert torch.equal(holes, holes[:, :1].expand_as(holes))
    rows, columns = holes[:, 0].any(2).sum(1), holes[:, 0].any(1).sum(1)
    assert torch.equal(rows * columns, holes[:, 0].sum((1, 2)))
    assert set(rows.tolist()) == set(columns.tolist()) == {2, 3, 4}


def test_color_keeps_the_order_of_grey_values_and_moves_them_in_range() -> None:
    torch.manual_seed(0)
    x = torch.randn(2000, 1, 4, 4).double()
    out = color(x)
    mean, mean_out = x.mean((1, 2, 3)), out.mean((1, 2, 3))
    brightness = mean_out - mean
    assert -0.5 <= brightness.min() < -0.48 and 0.48 < brightness.max() <= 0.5
    contrast = (out - mean_out[:, None, None, None]) / (x - mean[:, None, None, None])
    torch.testing.assert_close(contrast, contrast[:, :, :1, :1].expand_as(contrast))
    assert 0.5 <= contrast.min() < 0.52 and 1.48 < contrast.max() <= 1.5


def test_saturation_scales_the_distance_from_grey() -> None:
    torch.manual_seed(0)
    x = torch.randn(500, 3, 1, 1).double()
    out = color(x)
    grey, grey_out = x.mean(1, keepdim=True), out.mean(1, keepdim=True)
    factor = (out - grey_out) / (x - grey)  # saturation times contrast
    torch.testing.assert_close(factor, factor[:, :1].expand_as(factor))
    assert factor.min() < 0.1 and 2 < factor.max() <= 3


def test_augmentation_is_differentiable() -> None:
    x = torch.randn(2, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    augment = DiffAugment()

    def fixed(images: Tensor) -> Tensor:
        torch.manual_seed(1)
        return augment(images)

    assert torch.autograd.gradcheck(fixed, x)
    assert torch.autograd.gradgradcheck(lambda images: fixed(images).square().sum(), x)


def test_adaptive_augmentation_follows_the_sign_of_real_scores() -> None:
    augment = AdaptiveAugment(target=0.5, images=100, every=2)
    x = torch.randn(2000, 1, 8, 8)
    assert torch.equal(augment(x), x), "p = 0"
    sure, unsure = torch.tensor([1.0] * 8 + [-1.0]), torch.tensor([1.0] * 2 + [-1.0])

    def observe(*scores: Tensor) -> list[float]:
        values = []
        for s in scores:
            augment.observe(s, lambda counts: 2 * counts)  # two processes alike
            values.append(round(float(augment.p), 6))
        return values

    assert observe(sure, sure) == [0.0, 0.36], "36 images were seen"
    torch.manual_seed(0)
    # in a shift by a pixel or none along two axes, 8 of 9 images move
    moved = AdaptiveAugment(("translation",), images=100)
    moved.position.fill_(36)
    share = (moved(x) != x).flatten(1).any(1).float().mean()
    assert share.item() == pytest.approx(0.36 * 8 / 9, abs=0.03)
    assert observe(unsure, unsure) == [0.36, 0.24]
    assert observe(sure, unsure) == [0.24, 0.48], "sign of 9 of 12 is 0.67"
    assert observe(*[sure] * 6)[-1] == 1.0
    assert observe(*[-sure] * 10)[-1] == 0.0
    assert all(not buffer.is_floating_point() for buffer in augment.buffers()), "exact in any precision"
    with pytest.raises(UserError, match="augment.policy"):
        DiffAugment(("colour",))  # type: ignore[arg-type]


# --- truncation, and what shows a collapse ---


def test_truncated_latents_are_of_the_truncated_normal() -> None:
    noise = Noise(3, range(500))
    z = Truncation(0.7).latents(noise, 8).double()
    u = Noise(3, range(500)).uniform((8,), torch.float64)
    exact = torch.from_numpy(truncnorm(-0.7, 0.7).ppf(u.numpy()))
    torch.testing.assert_close(z, exact, rtol=0, atol=1e-6)
    assert torch.equal(Truncation(0.7).latents(Noise(3, [7]), 8).double(), z[7:8])
    clipped = Truncation(0.7, "clip").latents(Noise(3, range(500)), 8)
    assert torch.equal(clipped, Noise(3, range(500)).normal((8,)).clamp(-0.7, 0.7))
    assert Truncation(0.7).to_dict() == {"name": "Truncation", "threshold": 0.7, "method": "resample"}
    with pytest.raises(UserError, match="sampler.threshold"):
        Truncation(0.0)


def test_adaptive_augmentation_moves_once_for_all_parts_of_a_step() -> None:
    torch.manual_seed(0)
    whole, parts = (AdaptiveAugment(images=300, every=2) for _ in range(2))
    parts.over_micro_batches.num_micro_batches = 3
    for _ in range(7):
        scores = torch.randn(12) + 2
        whole.observe(scores, lambda counts: counts)
        for part in scores.split(4):
            parts.observe(part, lambda counts: counts)
    assert whole.steps == 7 and whole.position > 0
    for name, value in whole.state_dict().items():
        assert torch.equal(parts.state_dict()[name], value), name


def test_density_coverage_and_duplicates() -> None:
    torch.manual_seed(0)
    real = torch.randn(200, 3)
    assert density_and_coverage(real, real)[1] == 1
    assert density_and_coverage(real, real + 100) == (0.0, 0.0)
    density, coverage = density_and_coverage(real, real[:1].expand(50, -1))
    assert coverage < 0.1 and density > 0
    at_mode = density_and_coverage(real, torch.zeros(50, 3))[0]
    assert at_mode > 1, "density is not bounded by 1"
    # points on a line, one apart: the ball of the 2nd neighbour holds 3 points, at the ends 3
    line = torch.arange(10.0)[:, None]
    assert density_and_coverage(line, line, k=2)[0] == pytest.approx((8 * 3 + 2 * 3) / 20)
    assert duplicate_rate(line, line) == 0
    assert duplicate_rate(line, torch.tensor([[0.0], [0.4], [5.0], [7.0]])) == 0.5
    assert duplicate_rate(line, torch.zeros(6, 1)) == 1
    # most of these repeat: the limit is half the distance of those that differ
    repeated = torch.randn(3, 64).repeat(30, 1)
    assert duplicate_rate(repeated, repeated) == 1 and duplicate_rate(repeated, torch.randn(90, 64)) == 0
    assert duplicate_rate(repeated[::3], repeated[:1].expand(40, -1)) == 1
