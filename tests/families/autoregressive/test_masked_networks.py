"""Networks of FVSBN, NADE and MADE: receptive fields, the same values by other sums, steps against whole images."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.families.autoregressive import LogisticRegressions, MaskedMLP, NADENetwork
from tests.families.random_networks import randomise

Shape = tuple[int, int, int]
Network = MaskedMLP | NADENetwork
Builder = Callable[..., Network]

NADE = partial(NADENetwork, hidden=5)
MADE = partial(MaskedMLP, hidden=[48], direct=False)
DEEP = partial(MaskedMLP, hidden=[72, 68], direct=False, num_masks=3, random_orders=True)
NATURAL = partial(MaskedMLP, hidden=[68, 72], direct=False, num_masks=3)
SMALL = partial(MaskedMLP, hidden=[4], num_masks=3, random_orders=True)
BUILDERS: dict[str, tuple[Builder, int]] = {
    "FVSBN": (LogisticRegressions, 1),
    "NADE": (NADE, 1),
    "MADE": (MADE, 1),
    "deep, several orders": (DEEP, 3),
    "deep, several masks": (NATURAL, 3),
    "few units, several orders": (SMALL, 3),
}
EACH_MASK = [
    pytest.param(build, mask, id=f"{name} {mask}") for name, (build, n) in BUILDERS.items() for mask in range(n)
]
SHAPES = [((1, 3, 4), False), ((3, 2, 2), True), ((3, 2, 2), False)]


def build_random(build: Builder, shape: Shape, channelwise: bool, num_classes: int = 0) -> Network:
    """Return the network in float64 with random parameters, and two outputs per value."""
    return randomise(build(shape, 2 * shape[0], num_classes, channelwise).double()).eval()


def under(network: Network, mask: int) -> Callable[[Tensor, Tensor | None], Tensor]:
    """Return the network under one mask."""
    return partial(network, mask=mask) if isinstance(network, MaskedMLP) else network


def order_of(network: Network, mask: int) -> list[int]:
    return network.orders[mask].tolist() if isinstance(network, MaskedMLP) else list(range(network.num_tokens))


def values(*shape: int) -> Tensor:
    return 2 * torch.rand(*shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64) - 1


@pytest.mark.parametrize(("shape", "channelwise"), SHAPES)
@pytest.mark.parametrize(("build", "mask"), EACH_MASK)
def test_each_token_sees_all_before_it_and_nothing_else(
    build: Builder, mask: int, shape: Shape, channelwise: bool
) -> None:
    """The Jacobian has no leak and no blind spot. In raster order, with channelwise, G sees R and not vice versa."""
    network = build_random(build, shape, channelwise)
    images = values(32, *shape)  # a rectifier may be closed at one image
    jacobian = torch.autograd.functional.jacobian(lambda x: under(network, mask)(x, None).sum(0), images)
    assert isinstance(jacobian, Tensor)
    seen = (jacobian != 0).any(3)  # (P, H, W, C, H, W)
    channels, height, width = shape
    groups, pixels = network.num_groups, height * width
    seen = seen.view(groups, -1, pixels, groups, channels // groups, pixels)
    seen_by_token = seen.permute(2, 0, 1, 5, 3, 4).flatten(3, 4).flatten(0, 1)  # (T, Q, T, K)
    place = torch.tensor(order_of(network, mask)).argsort()
    before = place[None] < place[:, None]
    assert torch.equal(seen_by_token, before[:, None, :, None].expand_as(seen_by_token))


def test_orders_and_masks_differ() -> None:
    network = DEEP((1, 3, 4), 1)
    assert torch.equal(network.orders[0], torch.arange(12))
    assert all(torch.equal(order.sort().values, torch.arange(12)) for order in network.orders)
    assert len({tuple(order.tolist()) for order in network.orders}) == 3
    natural = NATURAL((1, 3, 4), 1)
    assert all(torch.equal(order, torch.arange(12)) for order in natural.orders)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not torch.equal(natural.degrees(one)[1], natural.degrees(other)[1])
    for mask in range(3):  # each degree from 1 to T - 1, as often as the others or once more
        for degrees in natural.degrees(mask)[1:-1]:
            counts = torch.bincount(degrees, minlength=12)
            assert counts[0] == 0 and counts[1:].min() >= 1 and counts[1:].max() - counts[1:].min() <= 1
    again, drawn_anew = DEEP((1, 3, 4), 1), DEEP((1, 3, 4), 1, mask_seed=1)
    assert torch.equal(network.orders, again.orders) and not torch.equal(network.orders, drawn_anew.orders)


@torch.no_grad()
def test_a_fvsbn_is_a_logistic_regression_for_each_pixel() -> None:
    network = randomise(LogisticRegressions((1, 3, 3), 1, 2).double())
    assert network.direct is not None
    images, labels = values(5, 1, 3, 3).sign(), torch.tensor([0, 1, 1, 0, 1])
    logits = network(images, labels).flatten(1)
    of_class = network.of_class(-1, labels)
    assert isinstance(of_class, Tensor)
    x = images.flatten(1)
    for pixel in range(9):
        weights = network.direct.weight[pixel, :pixel]  # those of the regression on the pixels before
        regression = network.bias[pixel] + x[:, :pixel] @ weights + of_class[:, pixel]
        torch.testing.assert_close(logits[:, pixel], regression, rtol=0, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize(("shape", "channelwise"), SHAPES)
def test_the_recursion_of_nade_is_a_perceptron_for_each_token(shape: Shape, channelwise: bool) -> None:
    network = build_random(NADE, shape, channelwise, num_classes=2)
    assert isinstance(network, NADENetwork) and network.classes is not None
    images, labels = values(4, *shape), torch.tensor([0, 1, 1, 0])
    tokens = network.tokens(images)
    params = []
    for t in range(network.num_tokens):
        before, weights = tokens[:, :t].flatten(1), network.inputs[:t].flatten(0, 1)
        hidden = torch.sigmoid(network.hidden_bias + before @ weights + network.classes(labels))
        params.append(network.bias[t] + hidden @ network.outputs[t])
    torch.testing.assert_close(network(images, labels), network.maps(torch.stack(params, 1)), rtol=0, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("num_classes", [0, 3])
@pytest.mark.parametrize(("shape", "channelwise"), SHAPES)
@pytest.mark.parametrize(("build", "mask"), EACH_MASK)
def test_steps_give_what_the_whole_image_gives(
    build: Builder, mask: int, shape: Shape, channelwise: bool, num_classes: int
) -> None:
    network = build_random(build, shape, channelwise, num_classes)
    images, labels = values(3, *shape), torch.tensor([2, 0, 1]) if num_classes else None
    tokens = network.tokens(images)
    state = network.start(3, labels, mask) if isinstance(network, MaskedMLP) else network.start(3, labels)
    params, drawn = torch.zeros(3, network.num_tokens, network.params_per_token).double(), None
    for token in order_of(network, mask):
        params[:, token] = network.step(state, drawn)  # type: ignore[arg-type]
        drawn = tokens[:, token]
    whole = under(network, mask)(images, labels)
    assert whole.std() > 0.1
    torch.testing.assert_close(network.maps(params), whole, rtol=0, atol=1e-12)


def test_tokens_are_pixels_in_raster_order_or_their_channels() -> None:
    images = torch.arange(2 * 3 * 2 * 2).view(2, 3, 2, 2)
    pixels = LogisticRegressions((3, 2, 2), 6).tokens(images)
    assert torch.equal(pixels, images.flatten(2).transpose(1, 2))
    channels = LogisticRegressions((3, 2, 2), 6, channelwise=True)
    assert torch.equal(channels.tokens(images)[..., 0], images.flatten(2).transpose(1, 2).flatten(1))
    params = torch.arange(12 * 2).view(1, 12, 2)  # two for each of the channels of each pixel
    assert channels.maps(params)[0, :, 0, 1].tolist() == params[0, 3:6].flatten().tolist()


@pytest.mark.parametrize("build", [partial(NADE, dropout=0.5), partial(MADE, dropout=0.5)])
def test_units_are_dropped_in_training_alone(build: Builder) -> None:
    network, images = build_random(build, (1, 3, 4), False), values(2, 1, 3, 4)
    assert torch.equal(network(images), network(images))
    network.train()
    assert not torch.equal(network(images), network(images))
    network.dropout = 0.0
    trained = network(images)
    network.eval()
    assert torch.equal(trained, network(images))


@pytest.mark.parametrize("build", [LogisticRegressions, NADE, SMALL])
def test_a_class_changes_every_parameter(build: Builder) -> None:
    network, images = build_random(build, (1, 3, 4), False, num_classes=2), values(3, 1, 3, 4)
    of = [network(images, torch.full((3,), label)) for label in (0, 1)]
    assert ((of[0] - of[1]).abs() > 1e-6).all()


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: NADENetwork((1, 2, 2), 1, hidden=0), "model.network.hidden"),
        (lambda: MaskedMLP((1, 2, 2), 1, hidden=[4, 0]), "model.network: hidden"),
        (lambda: MaskedMLP((1, 2, 2), 1, num_masks=0), "num_masks"),
        (lambda: MaskedMLP((1, 2, 2), 1, hidden=[], direct=False), "model.network.direct"),
    ],
)
def test_sizes_that_do_not_suit_are_refused(build: Callable[[], Network], named: str) -> None:
    with pytest.raises(UserError, match=named):
        build()
