"""Causal networks: the receptive field of each parameter, steps against whole images, exact sums."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lit_gen.core.errors import UserError
from lit_gen.families.autoregressive import CausalTransformer, GatedPixelCNN, ResidualPixelCNN
from lit_gen.families.autoregressive.networks.causal import CausalConv
from lit_gen.families.autoregressive.networks.pixelcnn import GatedLayer

Network = GatedPixelCNN | ResidualPixelCNN | CausalTransformer
Shape = tuple[int, int, int]


def gated(shape: Shape, num_params: int, num_classes: int = 0, channelwise: bool = False) -> Network:
    return GatedPixelCNN(
        shape,
        num_params,
        num_classes,
        channelwise,
        channels=18,
        num_layers=4,
        first_kernel_size=5,
        head_channels=40,
        position_features=2,
    )


def narrow(shape: Shape, num_params: int, num_classes: int = 0, channelwise: bool = False) -> Network:
    """Return a network with as many features as input channels, so that no width marks the first layer."""
    width = shape[0] + 1
    network = GatedPixelCNN(shape, num_params, num_classes, channelwise, width, num_layers=4, first_kernel_size=5)
    first = network.layers[0]
    assert isinstance(first, GatedLayer)
    nn.init.constant_(first.h_out.bias, 2)  # so that the rectifier of a group of one feature is open
    return network


def residual(shape: Shape, num_params: int, num_classes: int = 0, channelwise: bool = False) -> Network:
    return ResidualPixelCNN(shape, num_params, num_classes, channelwise, channels=4, num_blocks=2)


def transformer(shape: Shape, num_params: int, num_classes: int = 0, channelwise: bool = False) -> Network:
    return CausalTransformer(shape, num_params, num_classes, channelwise, width=12, depth=2, num_heads=2)


Builder = Callable[..., Network]
BUILDERS = [gated, residual, transformer]
CHANNELWISE = [(gated, False), (gated, True), (residual, False), (transformer, False), (transformer, True)]


def randomised(build: Builder, shape: Shape, num_params: int, **options: object) -> Network:
    """Return the network in float64, with all parameters moved from their initial values."""
    torch.manual_seed(0)
    network = build(shape, num_params, **options).double().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return network


def values(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape).double() / 127.5 - 1


def in_steps(network: Network, images: Tensor, labels: Tensor | None) -> Tensor:
    """Return the parameters (N, P, H, W) of images by one step per pixel or channel."""
    num, channels, height, width = images.shape
    size, maps = channels // network.num_groups, network.num_params // network.num_groups
    params = images.new_zeros(num, network.num_params, height, width)
    drawing, drawn = network.start(num, labels), None
    for row, column, group in itertools.product(range(height), range(width), range(network.num_groups)):
        params[:, group * maps : (group + 1) * maps, row, column] = network.step(drawing, drawn)  # type: ignore[arg-type]
        drawn = images[:, group * size : (group + 1) * size, row, column]
    return params


@torch.no_grad()
@pytest.mark.parametrize("num_classes", [0, 3])
@pytest.mark.parametrize("shape", [(3, 7, 6), (1, 8, 8)])
@pytest.mark.parametrize(("build", "channelwise"), CHANNELWISE)
def test_steps_give_what_the_whole_image_gives(
    build: Builder, channelwise: bool, shape: Shape, num_classes: int
) -> None:
    network = randomised(build, shape, 6, num_classes=num_classes, channelwise=channelwise)
    images, labels = values(2, *shape), torch.tensor([2, 1]) if num_classes else None
    whole = network(images, labels)
    assert whole.shape == (2, 6, *shape[1:]) and whole.std() > 0.1
    torch.testing.assert_close(in_steps(network, images, labels), whole, rtol=0, atol=1e-10)


def sees(network: Network, shape: Shape) -> Tensor:
    """Return which values (C, H, W) each parameter (P, H, W) depends on, by the Jacobian."""
    seen = torch.zeros(6, *shape[1:], *shape, dtype=torch.bool)
    for _ in range(2 if isinstance(network, GatedPixelCNN) else 1):  # a rectifier may be closed at one image
        jacobian = torch.autograd.functional.jacobian(lambda x: network(x, None), values(1, *shape))
        assert isinstance(jacobian, Tensor)
        seen |= jacobian[0, :, :, :, 0] != 0
    return seen


def order(shape: Shape, num_groups: int) -> Tensor:
    """Return the position of each value (C, H, W) in the order, channels of a pixel together or one by one."""
    channels, height, width = shape
    pixels = torch.arange(height * width).view(1, height, width) * num_groups
    return pixels + torch.arange(channels)[:, None, None] * (num_groups > 1)


@pytest.mark.parametrize("shape", [(1, 6, 6), (3, 4, 5)])
@pytest.mark.parametrize(("build", "channelwise"), [*CHANNELWISE[:3], (narrow, True)])
@pytest.mark.slow
def test_each_parameter_sees_all_that_comes_before_and_nothing_else(
    build: Builder, channelwise: bool, shape: Shape
) -> None:
    """There is no leak and no blind spot, and with channelwise G sees R, and B sees R and G, not vice versa."""
    network = randomised(build, shape, 6, channelwise=channelwise)
    place = order(shape, network.num_groups)
    of_params = place.repeat_interleave(6 // shape[0], 0)
    before = place < of_params[..., None, None, None]
    assert torch.equal(sees(network, shape), before)


@pytest.mark.parametrize(("shape", "channelwise"), [((1, 4, 5), False), ((3, 3, 3), False), ((3, 3, 3), True)])
def test_each_token_sees_all_that_come_before_and_nothing_else(shape: Shape, channelwise: bool) -> None:
    """The same as for convolutions, by changes of values: an embedding has no derivative."""
    network = randomised(transformer, shape, 6, channelwise=channelwise)
    images = values(1, *shape)
    place = order(shape, network.num_groups)
    of_params = place.repeat_interleave(6 // shape[0], 0)
    for index in itertools.product(*map(range, shape)):
        changed = images.clone()
        changed[(0, *index)] = -changed[(0, *index)]
        moved = (network(changed) != network(images))[0]
        assert torch.equal(moved, place[index] < of_params), index


@pytest.mark.parametrize("build", BUILDERS)
@torch.no_grad()
def test_probabilities_of_all_binary_images_sum_to_one(build: Builder) -> None:
    images = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=9))).double().view(-1, 1, 3, 3)
    network = randomised(build, (1, 3, 3), 1, num_classes=2)
    for label in (0, 1):
        logits = network(images, torch.full((512,), label))
        log_p = nn.functional.logsigmoid(images * logits).flatten(1).sum(1)
        assert abs(float(log_p.exp().sum()) - 1) < 1e-10
        assert log_p.std() > 0.1


@torch.no_grad()
def test_probabilities_of_all_sequences_of_three_values_sum_to_one() -> None:
    """There are 81 sequences of four tokens; the three logits belong to the bytes 0, 100 and 255."""
    sequences = torch.tensor(list(itertools.product(range(3), repeat=4)))
    images = (torch.tensor([0.0, 100.0, 255.0]).double()[sequences] / 127.5 - 1).view(-1, 1, 2, 2)
    log_p = randomised(transformer, (1, 2, 2), 3)(images).log_softmax(1)
    log_p = log_p.gather(1, sequences.view(-1, 1, 2, 2)).flatten(1).sum(1)
    assert abs(float(log_p.exp().sum()) - 1) < 1e-10


@pytest.mark.parametrize("build", BUILDERS)
@torch.no_grad()
def test_images_of_a_batch_do_not_meet(build: Builder) -> None:
    network = randomised(build, (1, 5, 5), 2, num_classes=3)
    images, labels = values(3, 1, 5, 5), torch.tensor([0, 1, 2])
    alone = torch.cat([network(images[i : i + 1], labels[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(network(images, labels), alone, rtol=0, atol=1e-12)
    other = network(images, torch.tensor([1, 1, 2]))
    assert (other[0] != alone[0]).all(), "the class is told to every pixel"


@torch.no_grad()
def test_first_images_give_every_normalised_layer_mean_zero_and_its_deviation() -> None:
    torch.manual_seed(0)
    network = ResidualPixelCNN((1, 8, 8), 4, channels=6, num_blocks=1).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    images = values(16, 1, 8, 8)
    network.initialise(images)
    network.eval()
    seen: list[tuple[float, float, float]] = []

    def look(module: nn.Module, inputs: object, output: Tensor) -> None:
        assert isinstance(module, CausalConv) and module.scale is not None
        deviation = (output.std((0, 2, 3), correction=0) - module.scale).abs().max()
        seen.append((float(output.mean((0, 2, 3)).abs().max()), float(deviation), module.scale))

    for module in network.modules():
        if isinstance(module, CausalConv):
            module.register_forward_hook(look)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network(images)
    assert len(seen) == sum(isinstance(module, CausalConv) for module in network.modules())
    assert {scale for _, _, scale in seen} == {0.1, 1.0}
    assert max(mean for mean, _, _ in seen) < 1e-10 and max(deviation for _, deviation, _ in seen) < 1e-10
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_what_does_not_suit_is_refused() -> None:
    with pytest.raises(UserError, match="odd"):
        GatedPixelCNN((1, 8, 8), 1, kernel_size=4)
    with pytest.raises(UserError, match="GatedPixelCNN"):
        ResidualPixelCNN((3, 8, 8), 768, channelwise=True)
    with pytest.raises(UserError, match="multiple of num_heads"):
        CausalTransformer((1, 8, 8), 1, width=10, num_heads=4)
