"""FVSBN, NADE and MADE as distributions: exact masses, and samples, under each mask and under their mixture."""

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from lit_gen.cli import commands
from lit_gen.cli.main import main
from lit_gen.core import noise as noise_module
from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.data import Binarised, Digits, ImageDataModule
from lit_gen.distributions.pixels import Bernoulli, Categorical, LogisticMixture, PixelLikelihood
from lit_gen.families.autoregressive import FVSBN, MADE, NADE, MaskedMLP, NADENetwork
from lit_gen.families.autoregressive.models.dense import Autoregressive
from lit_gen.families.settings import Temperature
from tests.conftest import arguments
from tests.families.random_networks import randomise

Shape = tuple[int, int, int]
Builder = Callable[..., Autoregressive]
ONE = partial(MaskedMLP, hidden=[20])
MASKS = partial(MaskedMLP, hidden=[24, 20], direct=False, num_masks=3)
ORDERS = partial(MaskedMLP, hidden=[24, 20], num_masks=3, random_orders=True)
MODELS: dict[str, Builder] = {
    "FVSBN": FVSBN,
    "NADE": partial(NADE, partial(NADENetwork, hidden=6)),
    "MADE": partial(MADE, ONE),
    "MADE, masks": partial(MADE, MASKS),
    "MADE, orders": partial(MADE, ORDERS),
}
EACH = pytest.mark.parametrize("build", [pytest.param(build, id=name) for name, build in MODELS.items()])
FEW = partial(Categorical, num_levels=16)
MIXTURE = partial(LogisticMixture, num_components=2)


def build_random(
    build: Builder, shape: Shape, likelihood: Callable[[], PixelLikelihood] = Bernoulli, num_classes: int = 0
) -> Autoregressive:
    """Return the model in float64 with random parameters."""
    options: dict[str, Any] = {"num_classes": num_classes, "class_conditional": num_classes > 0}
    model = build(likelihood=likelihood, image_shape=shape, **options).double().eval()
    return randomise(model, seed=3)


def every_binary_image(height: int, width: int) -> Tensor:
    pixels = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=height * width))).double()
    return pixels.view(-1, 1, height, width)


def masks_of(model: Autoregressive) -> list[dict[str, int]]:
    """Return the additional arguments of the network for each of its masks."""
    network = model.network
    return [{"mask": mask} for mask in range(network.num_masks)] if isinstance(network, MaskedMLP) else [{}]


@torch.no_grad()
@EACH
@pytest.mark.parametrize(("height", "width"), [(3, 3), (2, 5)])
def test_masses_of_binary_images_sum_to_one(build: Builder, height: int, width: int) -> None:
    """Masses sum to one for each class and mask, hence each order, and for the mixture of all masks."""
    model = build_random(build, (1, height, width), num_classes=2)
    images = every_binary_image(height, width)
    for label in (0, 1):
        labels = torch.full((len(images),), label)
        each = []
        for mask in masks_of(model):
            each.append(model.distribution.likelihood.log_prob(images, model.network(images, labels, **mask)))
            assert abs(float(each[-1].exp().sum()) - 1) < 1e-10
            assert each[-1].std() > 0.3
        log_p = model.log_likelihood(images, Noise(0, range(len(images))), labels)
        assert model.nfe == len(each)
        assert abs(float(log_p.exp().sum()) - 1) < 1e-10
        torch.testing.assert_close(log_p.exp(), torch.stack(each).exp().mean(0), rtol=1e-10, atol=0)
    assert len(each) == 1 or (each[0] - each[1]).abs().max() > 0.1, "masks are different distributions"


@pytest.mark.parametrize("build", [MODELS["NADE"], MODELS["MADE, orders"]])
@pytest.mark.parametrize(("likelihood", "num_levels"), [(FEW, 16), (MIXTURE, 256)])
def test_masses_of_all_images_of_two_grey_pixels_sum_to_one(
    build: Builder, likelihood: Callable[[], PixelLikelihood], num_levels: int
) -> None:
    values = torch.arange(num_levels).double() / ((num_levels - 1) / 2) - 1
    images = torch.cartesian_prod(values, values).view(-1, 1, 1, 2)
    log_p = build_random(build, (1, 1, 2), likelihood).log_likelihood(images, Noise(0, range(len(images))))
    assert abs(float(log_p.exp().sum()) - 1) < 1e-10
    joint = log_p.view(num_levels, num_levels)
    mixed = joint[0, 0] + joint[-1, -1] - joint[0, -1] - joint[-1, 0]
    assert mixed.abs() > 1e-3, "one pixel depends on the other"


def without_steps(model: Autoregressive, noise: Noise, labels: Tensor | None, mask: dict[str, int]) -> Tensor:
    """Sample with a forward pass per token, in the order of a mask and with the same random numbers."""
    channels, height, width = model.image_shape
    images = torch.zeros(len(noise), channels, height, width).double()
    network: Any = model.network
    groups = network.num_groups
    order = network.orders[mask["mask"]].tolist() if mask else range(height * width * groups)
    for token in order:
        pixel, group = divmod(token, groups)
        params = network(images, labels, **mask).flatten(2)[:, :, pixel, None, None].unflatten(1, (groups, -1))
        drawn = model.distribution.likelihood.sample(params[:, group], noise)[:, :, 0, 0]
        images.flatten(2).unflatten(1, (groups, -1))[:, group, :, pixel] = drawn
    return images


@torch.no_grad()
@EACH
@pytest.mark.parametrize(("likelihood", "channels"), [(Bernoulli, 1), (FEW, 3), (MIXTURE, 3)])
def test_steps_draw_the_images_of_whole_forward_passes(
    build: Builder, likelihood: Callable[[], PixelLikelihood], channels: int
) -> None:
    model = build_random(build, (channels, 3, 4), likelihood, num_classes=3)
    labels = torch.arange(12) % 3
    drawn = model.draw(Noise(5, range(12)), labels, None)
    assert model.nfe == 12 * (channels if likelihood is FEW else 1)
    masks = masks_of(model)
    chosen = torch.zeros(12, dtype=torch.long)
    if "MADE" in type(model).__name__:
        chosen = (Noise(5, range(12)).uniform(()) * len(masks)).long()
        assert len(chosen.unique()) == len(masks)
    for index in range(0, 12, 3):
        noise = Noise(5, [index])
        noise.draws = int("MADE" in type(model).__name__)  # the first draw chose the mask
        image = without_steps(model, noise, labels[index : index + 1], masks[int(chosen[index])])
        assert torch.equal(drawn[index : index + 1].double(), image)
    assert torch.equal(drawn[[7, 2]], model.draw(Noise(5, [7, 2]), labels[[7, 2]], None)), "whatever else is drawn"


@EACH
def test_the_numbers_of_all_pixels_are_computed_together(build: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn one by one, they would take longer than the steps of these networks."""
    philox = Mock(wraps=noise_module.philox)
    monkeypatch.setattr(noise_module, "philox", philox)
    model = build_random(build, (1, 5, 6))
    model.sample(Noise(5, range(4)))
    masks = len(masks_of(model))
    assert philox.call_count <= (1 + masks if isinstance(model, MADE) else 1)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.8])
@EACH
def test_frequencies_of_samples_are_the_exact_probabilities(build: Builder, temperature: float) -> None:
    """Compare 4,000 samples with the conditionals of divided logits, by chi-square over all 16 images of 2x2."""
    model = build_random(build, (1, 2, 2))
    images = every_binary_image(2, 2)
    samples = model.sample(Noise(0, range(4000)), sampler=Temperature(temperature))
    with torch.no_grad():
        logits = torch.stack([model.network(images, None, **mask) for mask in masks_of(model)])
        exact = functional.logsigmoid(images * logits / temperature).flatten(2).sum(2).exp().mean(0)
    if temperature == 1:
        torch.testing.assert_close(exact.log(), model.log_likelihood(images, Noise(0, range(16))))
    index = ((samples.flatten(1) > 0) * torch.tensor([8, 4, 2, 1])).sum(1)
    counts, expected = torch.bincount(index, minlength=16), 4000 * exact
    assert expected.min() > 2, "the statistic has its law"
    chi_square = ((counts - expected).square() / expected).sum()
    assert 3.0 < chi_square < 37.7, "15 degrees of freedom: 0.05 % at either side"
    assert ((counts - 250).square() / 250).sum() > 60, "another distribution would be told"


@EACH
def test_completions_are_drawn_given_the_upper_half(build: Builder) -> None:
    """Compare lower halves of 2x2 images with p(x) under mask 0, by chi-square over 500 images of four completions."""
    model = build_random(build, (1, 2, 2))
    upper = torch.tensor([1.0, -1.0]).double()
    images = torch.cat([upper.view(1, 1, 1, 2), torch.full((1, 1, 1, 2), 0.5)], 2).expand(500, 1, 2, 2)
    tiles = model.picture("completions", images, None, Noise(0, range(500)))
    assert tiles.shape == (500, 6, 1, 2, 2) and torch.equal(tiles[:, 0], images)
    assert (tiles[:, :, 0, 0] == upper).all()
    assert (tiles[:, 1, 0, 1] == 0).all() and (tiles[:, 2:, 0, 1].abs() == 1).all()
    lower = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=2))).double()
    every = torch.cat([upper.expand(4, 2), lower], 1).view(4, 1, 2, 2)
    with torch.no_grad():
        mass = model.distribution.likelihood.log_prob(every, model.network(every, None)).exp()
    index = ((tiles[:, 2:, 0, 1] > 0) * torch.tensor([2, 1])).sum(-1).flatten()
    counts, expected = torch.bincount(index, minlength=4), 2000 * mass / mass.sum()
    chi_square = ((counts - expected).square() / expected).sum()
    assert chi_square < 17.7, "3 degrees of freedom: 0.05 %"
    assert ((counts - 500).square() / 500).sum() > 25


@pytest.mark.slow
def test_the_command_completes_with_the_sampler(tmp_path: Path) -> None:
    """A temperature near 0 selects the likelier value of each pixel, so that all four completions are equal."""
    run = commands.fit(arguments("FVSBN", tmp_path, 64, "--grid.num_samples=0"))
    drawn = {}
    for temperature in ("1", "0.8", "1e-6"):
        words = ["--sampler=Temperature", f"--sampler.temperature={temperature}", f"--out={tmp_path / 'picture.png'}"]
        assert main(["sample", str(run.directory), "--picture=completions", "-n=2", *words]) == 0
        drawn[temperature] = np.asarray(Image.open(tmp_path / "picture.png"))
    assert not np.array_equal(drawn["1"], drawn["0.8"])
    columns = [[picture[2:, 2 + 34 * i :][:, :32] for i in range(2, 6)] for picture in drawn.values()]
    assert [np.array_equal(column[0], column[1]) for column in columns] == [False, False, True]
    assert all(np.array_equal(columns[2][0], column) for column in columns[2])


def test_a_training_step_of_several_masks_is_of_one_of_them() -> None:
    model = build_random(MODELS["MADE, orders"], (1, 2, 3))
    images = every_binary_image(2, 3)[:7]
    with torch.no_grad():
        of_mask = [
            model.distribution.likelihood.log_prob(images, model.network(images, None, **m)) for m in masks_of(model)
        ]
        model.train()
        torch.manual_seed(0)
        drawn = [model.distribution(images, None) for _ in range(30)]
    equal = torch.tensor([[torch.equal(log_p, other) for other in of_mask] for log_p in drawn])
    assert (equal.sum(1) == 1).all() and (equal.sum(0) > 3).all()


def test_masks_are_no_part_of_a_checkpoint() -> None:
    model = build_random(MODELS["MADE, orders"], (1, 2, 3))
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


def test_grey_data_need_another_likelihood() -> None:
    grey, binary = ImageDataModule(Digits()), ImageDataModule(Binarised(Digits()))
    for build in (FVSBN, NADE, MADE):
        model = build(image_shape=(1, 8, 8))
        model.check_data(binary)
        with pytest.raises(UserError, match=r"^model.likelihood: Bernoulli .* data.source to Binarised"):
            model.check_data(grey)
    NADE(likelihood=Categorical, image_shape=(1, 8, 8)).check_data(grey)
