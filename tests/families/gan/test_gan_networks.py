"""Generators and discriminators: sizes, classes, spectral normalisation against singular values, statistics."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lit_gen.core.errors import UserError
from lit_gen.families.gan import (
    Critic,
    DCGANDiscriminator,
    DCGANGenerator,
    Generator,
    MLPCritic,
    MLPGenerator,
    SNGANDiscriminator,
    SNGANGenerator,
)
from lit_gen.families.gan.networks.blocks import Projection, normalise_spectrally, statistics_kept
from lit_gen.families.gan.networks.sngan import DownBlock

SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32)]
GENERATORS = {"Generator": Generator, "DCGANGenerator": DCGANGenerator, "SNGANGenerator": SNGANGenerator}


def discriminators(shape: tuple[int, int, int], num_classes: int) -> dict[str, nn.Module]:
    return {
        "Critic": Critic(shape, num_classes, channels=8),
        "DCGAN": DCGANDiscriminator(shape, num_classes, channels=8),
        "DCGAN batch": DCGANDiscriminator(shape, num_classes, channels=8, norm="batch"),
        "SNGAN": SNGANDiscriminator(shape, num_classes, channels=8, depth=3, num_halvings=1),
    }


def randomised(network: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def check_gradients(network: nn.Module, output: Tensor) -> None:
    (output - torch.randn_like(output)).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("num_classes", [0, 3])
def test_networks_suit_the_size_and_depend_on_the_class(shape: tuple[int, int, int], num_classes: int) -> None:
    torch.manual_seed(0)
    labels = torch.tensor([0, 1, 2, 2]) if num_classes else None
    others = torch.tensor([1, 1, 2, 0]) if num_classes else None
    z, x = torch.randn(4, 5), torch.randn(4, *shape)
    for name, factory in GENERATORS.items():
        generator = randomised(factory(shape, 5, num_classes, channels=8))
        images = generator(z, labels)
        assert images.shape == (4, *shape) and images.abs().max() <= 1, name
        check_gradients(generator, images)
        generator.eval()
        if num_classes:
            changed = (generator(z, labels) - generator(z, others)).flatten(1).abs().amax(1) > 1e-4
            assert changed.tolist() == [True, False, False, True], name
    for name, network in discriminators(shape, num_classes).items():
        discriminator = randomised(network)
        scores = discriminator(x, labels)
        assert scores.shape == (4,), name
        check_gradients(discriminator, scores)
        discriminator.eval()
        if num_classes:
            changed = (discriminator(x, labels) - discriminator(x, others)).abs() > 1e-5
            assert changed.tolist() == [True, False, False, True], name


def test_perceptrons_take_points() -> None:
    torch.manual_seed(0)
    generator, critic = MLPGenerator((2, 1, 1), 3, 4, width=16), MLPCritic((2, 1, 1), 4, width=16)
    points = generator(torch.randn(4, 3), torch.arange(4))
    assert points.shape == (4, 2, 1, 1)
    scores = critic(points, torch.arange(4))
    assert scores.shape == (4,)
    check_gradients(critic, scores)


def test_projection_adds_the_product_with_the_embedding() -> None:
    torch.manual_seed(0)
    head = randomised(Projection(6, 3)).double()
    h, labels = torch.randn(4, 6).double(), torch.tensor([2, 0, 1, 2])
    assert isinstance(head, Projection) and head.embedding is not None
    expected = h @ head.score.weight[0] + head.score.bias + (head.embedding.weight[labels] * h).sum(1)
    torch.testing.assert_close(head(h, labels), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["Critic", "DCGAN", "DCGAN batch", "SNGAN", "MLPCritic"])
def test_scores_of_two_classes_differ_by_the_product_with_their_embeddings(name: str) -> None:
    """D(x, a) - D(x, b) = <e_a - e_b, h(x)>, and D(x, a) - <e_a, h(x)> = w^T h(x) + b."""
    torch.manual_seed(0)
    shape = (1, 8, 8)
    network = randomised((discriminators(shape, 3) | {"MLPCritic": MLPCritic(shape, 3, width=16)})[name])
    network = network.double().eval()
    head = network.get_submodule("head")
    assert isinstance(head, Projection) and head.embedding is not None
    x, a, b = torch.randn(6, *shape).double(), torch.arange(6) % 3, (torch.arange(6) + 1) % 3
    if name == "Critic":
        h = network.get_submodule("trunk.layers")(x).flatten(1)
    elif name == "SNGAN":
        h = network.get_submodule("blocks")(x).relu().sum((2, 3))
    else:
        h = network.get_submodule("layers")(x if name != "MLPCritic" else x.flatten(1)).flatten(1)
    with torch.no_grad():
        e, linear = head.embedding.weight, h @ head.score.weight[0] + head.score.bias
        expected = torch.einsum("nf,nf->n", e[a] - e[b], h)
        assert expected.abs().min() > 1e-3
        torch.testing.assert_close(network(x, a) - network(x, b), expected, rtol=1e-9, atol=1e-11)
        product = torch.einsum("nf,nf->n", e[a], h)
        torch.testing.assert_close(network(x, a) - product, linear, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("build", [DCGANDiscriminator, SNGANDiscriminator, Critic])
def test_normalised_weights_have_singular_values_up_to_one(build: type[nn.Module]) -> None:
    torch.manual_seed(0)
    network = build((1, 8, 8), 3, 16)
    normalise_spectrally(network)
    network = randomised(network).double()
    layers = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear, nn.Embedding))]
    assert len(layers) >= 5 and all(map(parametrize.is_parametrized, layers))
    for layer in 300 * layers:
        layer.weight  # noqa: B018  (each use in training is a step of power iteration)
    network.eval()
    for layer in layers:
        largest = torch.linalg.svdvals(layer.weight.detach().flatten(1))[0].item()
        assert largest == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("build", [nn.ConvTranspose2d, nn.ConvTranspose1d, nn.Conv1d])
def test_convolutions_are_normalised_as_matrices_with_a_row_for_each_output(build: Any) -> None:
    torch.manual_seed(0)
    layer = build(3, 5, 4).double()
    normalise_spectrally(layer)
    for _ in range(3000):
        layer.weight  # noqa: B018
    layer.eval()
    kernel: Tensor = layer.weight.detach()
    matrix = kernel.transpose(0, 1) if build is not nn.Conv1d else kernel
    assert len(matrix) == 5
    assert torch.linalg.svdvals(matrix.flatten(1))[0].item() == pytest.approx(1, abs=1e-6)
    assert torch.linalg.svdvals(matrix.transpose(0, 1).flatten(1))[0].item() != pytest.approx(1, abs=1e-2)


@pytest.mark.parametrize("build", [DCGANDiscriminator, SNGANDiscriminator, Critic])
def test_power_iteration_rests_in_evaluation(build: type[nn.Module]) -> None:
    """A pass in evaluation mode divides by u^T W v and keeps u and v; a pass in training mode updates them."""
    torch.manual_seed(0)
    network = build((1, 8, 8), 3, 16)
    normalise_spectrally(network)
    x, labels = torch.randn(4, 1, 8, 8), torch.arange(4) % 3
    network = randomised(network).eval()
    before = {name: value.clone() for name, value in network.named_buffers()}
    assert {name.rpartition(".")[2] for name in before} == {"_u", "_v"}
    scores = network(x, labels)
    assert torch.equal(network(x, labels), scores)
    assert all(torch.equal(value, before[name]) for name, value in network.named_buffers())
    for module in network.modules():
        if parametrize.is_parametrized(module):
            of_weight = module.parametrizations.weight  # type: ignore[union-attr]
            matrix = of_weight.original.detach().flatten(1)  # type: ignore[union-attr, operator]
            sigma = of_weight[0]._u @ matrix @ of_weight[0]._v  # type: ignore[index, union-attr]
            torch.testing.assert_close(module.weight.detach().flatten(1), matrix / sigma)  # type: ignore[operator]
    network.train()(x, labels)
    moved = {name for name, value in network.named_buffers() if not torch.equal(value, before[name])}
    rows = {name for name, value in before.items() if len(value) == 1}
    assert moved == before.keys() - rows, "u of a single row is 1"


def test_normalising_twice_is_normalising_once() -> None:
    network = DCGANDiscriminator((1, 8, 8), channels=8)
    before = list(network.state_dict())
    normalise_spectrally(network)
    assert list(network.state_dict()) == before
    assert sum(name.endswith("._u") for name in before) == 4


@pytest.mark.parametrize("norm", ["batch", "spectral"])
def test_statistics_are_kept_and_batches_are_normalised_as_ever(norm: str) -> None:
    torch.manual_seed(0)
    network = randomised(DCGANDiscriminator((1, 8, 8), channels=8, norm=norm))  # type: ignore[arg-type]
    x = 1 + torch.randn(5, 1, 8, 8)
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    assert before
    with statistics_kept(network):
        kept = network(x)
    assert all(torch.equal(buffer, before[name]) for name, buffer in network.named_buffers())
    network.eval()
    evaluated = network(x)
    assert all(torch.equal(buffer, before[name]) for name, buffer in network.named_buffers())
    network.train()
    trained = network(x)
    changed = [name for name, buffer in network.named_buffers() if not torch.equal(buffer, before[name])]
    assert len(changed) == len(before) - (norm == "spectral"), "u of a single row is 1"
    if norm == "batch":
        assert torch.equal(kept, trained) and not torch.allclose(kept, evaluated)
    else:
        assert torch.equal(kept, evaluated)


@pytest.mark.parametrize(
    ("build", "shape", "settings", "message"),
    [
        (MLPGenerator, (2, 1, 1), {"depth": 0}, "depth: 0 is not positive"),
        (MLPCritic, (2, 1, 1), {"depth": -1}, "depth: -1 is not positive"),
        (MLPCritic, (2, 1, 1), {"width": 0}, "width: 0 is not positive"),
        (SNGANDiscriminator, (1, 8, 8), {"depth": 0, "num_halvings": 0}, "depth: 0 is not positive"),
        (Critic, (1, 8, 8), {"num_blocks": 0}, "num_blocks: 0 is not positive"),
        (Generator, (1, 8, 8), {"num_blocks": -1}, "num_blocks: -1 is not positive"),
    ],
)
def test_a_network_of_nothing_is_refused(
    build: Any, shape: tuple[int, int, int], settings: dict[str, int], message: str
) -> None:
    inputs = (shape, 4) if build in (Generator, MLPGenerator) else (shape,)
    build(*inputs, **dict.fromkeys(settings, 1))
    with pytest.raises(UserError) as error:
        build(*inputs, **settings)
    assert str(error.value) == message


def test_sizes_that_do_not_suit() -> None:
    with pytest.raises(UserError, match="num_halvings: images of 28x28 cannot be halved 3 times in 4 blocks"):
        SNGANDiscriminator((1, 28, 28), num_halvings=3)
    for build in (DCGANGenerator, SNGANGenerator):
        with pytest.raises(UserError, match="images of 6x8 do not suit"):
            build((1, 6, 8), 4)


@pytest.mark.parametrize(
    ("pool", "first", "widths"), [(True, True, (3, 8)), (True, False, (8, 8)), (False, False, (8, 8))]
)
def test_residual_block_of_the_discriminator_is_the_papers(pool: bool, first: bool, widths: tuple[int, int]) -> None:
    """As in SNGAN's code, both paths end with the average over 2x2 pixels, the skip path after its 1x1 convolution.

    The first block has no first activation. A block that keeps size and width has no convolution on the skip path.
    """
    torch.manual_seed(0)
    block: Any = DownBlock(*widths, pool=pool, first=first).double()
    x = torch.randn(2, widths[0], 6, 4, dtype=torch.float64)

    def averaged(h: Tensor) -> Tensor:
        return (h[..., ::2, ::2] + h[..., 1::2, ::2] + h[..., ::2, 1::2] + h[..., 1::2, 1::2]) / 4 if pool else h

    residual = block.conv2(block.conv1(x if first else x.clamp(min=0)).clamp(min=0))
    direct = x
    if pool:
        direct = torch.einsum("nchw,dc->ndhw", x, block.skip.weight[:, :, 0, 0]) + block.skip.bias[:, None, None]
    torch.testing.assert_close(block(x), averaged(direct) + averaged(residual), rtol=0, atol=1e-12)
