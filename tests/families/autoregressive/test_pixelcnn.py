"""PixelCNN, PixelCNN++ and the image transformer as distributions: exact masses, and samples."""

import itertools
import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.data import Batch, Digits, ImageDataModule
from lit_gen.distributions.pixels import Bernoulli, Categorical, Gaussian, LogisticMixture, PixelLikelihood
from lit_gen.families.autoregressive import (
    CausalTransformer,
    GatedPixelCNN,
    ImageTransformer,
    PixelCNN,
    PixelCNNPlusPlus,
    ResidualPixelCNN,
)
from lit_gen.families.autoregressive.models.dense import Autoregressive
from lit_gen.families.settings import Temperature

Shape = tuple[int, int, int]
GATED = partial(GatedPixelCNN, channels=12, num_layers=2, first_kernel_size=5, head_channels=24, position_features=2)
RESIDUAL = partial(ResidualPixelCNN, channels=4, num_blocks=1)
TRANSFORMER = partial(CausalTransformer, width=12, depth=2, num_heads=2)


def pixelcnn(
    shape: Shape, likelihood: Callable[[], PixelLikelihood] = Bernoulli, num_classes: int = 0
) -> Autoregressive:
    model = PixelCNN(GATED, likelihood, image_shape=shape, num_classes=num_classes, class_conditional=num_classes > 0)
    return randomised(model)


def pixelcnn_pp(
    shape: Shape, likelihood: Callable[[], PixelLikelihood] = Bernoulli, num_classes: int = 0
) -> Autoregressive:
    model = PixelCNNPlusPlus(
        RESIDUAL, likelihood, image_shape=shape, num_classes=num_classes, class_conditional=num_classes > 0
    )
    return randomised(model)


def transformer(
    shape: Shape, likelihood: Callable[[], PixelLikelihood] = Bernoulli, num_classes: int = 0
) -> Autoregressive:
    model = ImageTransformer(
        TRANSFORMER, likelihood, image_shape=shape, num_classes=num_classes, class_conditional=num_classes > 0
    )
    return randomised(model)


def randomised(model: Autoregressive) -> Autoregressive:
    """Return the model in float64, with all parameters moved from their initial values."""
    torch.manual_seed(1)
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


Builder = Callable[..., Autoregressive]
MODELS: list[Builder] = [pixelcnn, pixelcnn_pp, transformer]
MIXTURE = partial(LogisticMixture, num_components=3)
FEW = partial(Categorical, num_levels=16)
SAMPLED = [
    (pixelcnn, Bernoulli, 1),
    (pixelcnn, Categorical, 3),
    (pixelcnn, MIXTURE, 3),
    (pixelcnn_pp, MIXTURE, 3),
    (pixelcnn_pp, Bernoulli, 1),
    (transformer, Categorical, 3),
    (transformer, MIXTURE, 3),
]


def every_binary_image(height: int, width: int) -> Tensor:
    pixels = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=height * width))).double()
    return pixels.view(-1, 1, height, width)


def without_steps(model: Autoregressive, noise: Noise, labels: Tensor | None) -> Tensor:
    """Sample with a forward pass per pixel or channel, with the same random numbers."""
    channels, height, width = model.image_shape
    images = torch.zeros(len(noise), channels, height, width).double()
    num_groups = model.network.num_groups
    assert isinstance(num_groups, int)
    for row, column, group in itertools.product(range(height), range(width), range(num_groups)):
        params = model.network(images, labels)[:, :, row : row + 1, column : column + 1]
        params = params.unflatten(1, (num_groups, -1))[:, group]
        drawn = model.distribution.likelihood.sample(params, noise)[:, :, 0, 0]
        images.unflatten(1, (num_groups, -1))[:, group, :, row, column] = drawn
    return images


@torch.no_grad()
@pytest.mark.parametrize(("build", "likelihood", "channels"), SAMPLED)
def test_steps_draw_the_images_of_whole_forward_passes(
    build: Builder, likelihood: Callable[[], PixelLikelihood], channels: int
) -> None:
    model = build((channels, 5, 4), likelihood, num_classes=3)
    labels = torch.tensor([0, 2, 1])
    drawn = model.draw(Noise(5, range(3)), labels, None)
    assert torch.equal(drawn.double(), without_steps(model, Noise(5, range(3)), labels))
    assert model.nfe == 20 * (channels if likelihood is Categorical else 1)
    assert torch.equal(drawn[1:2], model.draw(Noise(5, [1]), labels[1:2], None)), "whatever is drawn beside it"


@pytest.mark.parametrize("build", MODELS)
def test_frequencies_of_samples_are_the_exact_probabilities(build: Builder) -> None:
    """Compare 4,000 samples at temperatures 1 and 2 with their masses, by chi-square over all 16 images of 2x2."""
    model = build((1, 2, 2))
    images = every_binary_image(2, 2)
    for temperature in (1.0, 2.0):
        samples = model.sample(Noise(0, range(4000)), sampler=Temperature(temperature))
        with torch.no_grad():
            log_p = functional.logsigmoid(images * model.network(images, None) / temperature).flatten(1).sum(1)
        if temperature == 1:
            torch.testing.assert_close(log_p, model.log_likelihood(images, Noise(0, range(16))))
        index = ((samples.flatten(1) > 0) * torch.tensor([8, 4, 2, 1])).sum(1)
        counts, expected = torch.bincount(index, minlength=16), 4000 * log_p.exp()
        chi_square = ((counts - expected).square() / expected).sum()
        assert 3.0 < chi_square < 37.7, "15 degrees of freedom: 0.05 % at either side"
        uniform = ((counts - 250).square() / 250).sum()
        assert uniform > 60, "another distribution would be told"


@pytest.mark.parametrize("build", MODELS)
def test_masses_of_binary_images_sum_to_one_for_each_class(build: Builder) -> None:
    model = build((1, 3, 3), num_classes=2)
    images = every_binary_image(3, 3)
    both = [model.log_likelihood(images, Noise(0, range(512)), torch.full((512,), label)) for label in (0, 1)]
    for log_p in both:
        assert abs(float(log_p.exp().sum()) - 1) < 1e-10
    assert (both[0] - both[1]).abs().max() > 0.1


@pytest.mark.parametrize(
    ("build", "likelihood", "num_levels"),
    [(pixelcnn, FEW, 16), (transformer, FEW, 16), pytest.param(pixelcnn_pp, MIXTURE, 256, marks=pytest.mark.slow)],
)
def test_masses_of_all_images_of_two_grey_pixels_sum_to_one(
    build: Builder, likelihood: Callable[[], PixelLikelihood], num_levels: int
) -> None:
    values = torch.arange(num_levels).double() / ((num_levels - 1) / 2) - 1
    images = torch.cartesian_prod(values, values).view(-1, 1, 1, 2)
    log_p = build((1, 1, 2), likelihood).log_likelihood(images, Noise(0, range(len(images))))
    assert abs(float(log_p.exp().sum()) - 1) < 1e-10


@pytest.mark.parametrize(("build", "likelihood"), [(pixelcnn, FEW), (transformer, FEW), (pixelcnn_pp, MIXTURE)])
def test_each_colour_depends_on_the_others(build: Builder, likelihood: Callable[[], PixelLikelihood]) -> None:
    """log p has a mixed second difference in any two channels, unlike that of independent channels."""
    model = build((3, 1, 1), likelihood)
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=3))).double()
    log_p = model.log_likelihood(signs.view(-1, 3, 1, 1) * 0.6, Noise(0, range(8)))
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert (log_p * signs[:, first] * signs[:, second]).sum().abs() > 1e-3


@pytest.mark.parametrize("build", MODELS)
def test_completions_keep_what_is_given(build: Builder) -> None:
    model = build((1, 4, 4))
    images = every_binary_image(4, 4)[[5, 40000]]
    tiles = model.picture("completions", images, None, Noise(0, range(2)))
    assert tiles.shape == (2, 6, 1, 4, 4)
    assert torch.equal(tiles[:, 0], images)
    assert (tiles[:, 1:, :, :2] == images[:, None, :, :2]).all()
    assert (tiles[:, 1, :, 2:] == 0).all() and (tiles[:, 2:, :, 2:].abs() == 1).all()
    assert len({tuple(tile.flatten().tolist()) for tile in tiles[0, 2:]}) > 1


def test_data_and_likelihood_that_do_not_suit_are_refused() -> None:
    digits = ImageDataModule(Digits())
    with pytest.raises(UserError, match="^model.likelihood: Gaussian is a density"):
        pixelcnn((1, 8, 8), Gaussian).check_data(digits)
    with pytest.raises(UserError, match="^model.likelihood: Bernoulli"):
        pixelcnn((1, 8, 8), Bernoulli).check_data(digits)
    pixelcnn((1, 8, 8), Categorical).check_data(digits)


def test_the_loss_is_bits_per_dimension(monkeypatch: pytest.MonkeyPatch) -> None:
    model = pixelcnn((1, 4, 4))
    images = every_binary_image(4, 4)[[5, 40000]]
    monkeypatch.setattr(model, "log_training", lambda **values: None)
    loss = model.training_step(Batch(images, None, torch.arange(2)), 0)
    log_p = model.log_likelihood(images, Noise(0, range(2)))
    torch.testing.assert_close(loss.detach(), -log_p.mean() / (16 * math.log(2)))
