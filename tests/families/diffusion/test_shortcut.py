"""Shortcut models: times, targets against the exact map, and averages of the weights."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.distributions.mixtures import GaussianMixture
from lit_gen.families.diffusion import DiT, Rectified, ResidualMLP, Shortcut, UNet
from lit_gen.families.diffusion.flow_maps import MixtureFlowMap

SHAPE = (2, 1, 1)
NETWORKS: dict[type, dict[str, Any]] = {
    UNet: {"channels": 8, "channel_mult": (1,), "num_blocks": 1, "dropout": 0.5},
    DiT: {"width": 8, "depth": 1, "num_heads": 2},
    ResidualMLP: {"width": 16, "depth": 1},
}


def model(network: type = ResidualMLP, shape: tuple[int, int, int] = SHAPE, **options: Any) -> Shortcut:
    """A model whose network and target have different outputs that depend on both times."""
    built = Shortcut(shape, network=lambda shape, classes: network(shape, classes, **NETWORKS[network]), **options)
    for parameter in built.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape)
    return built.double()


def images(num: int, shape: tuple[int, int, int] = SHAPE) -> tuple[Tensor, Tensor]:
    return torch.rand(num, *shape, dtype=torch.float64), torch.randn(num, *shape, dtype=torch.float64)


def test_steps_are_powers_of_two_from_their_multiples() -> None:
    t, other = torch.rand(2, 40_000, dtype=torch.float64)
    start, end = model(bootstrap_share=0.3, num_steps=16).spans(t, other)
    assert torch.equal(start[other >= 0.3], t[other >= 0.3]) and torch.equal(end[other >= 0.3], t[other >= 0.3])
    start, lengths = start[other < 0.3], (start - end)[other < 0.3]
    found, counts = lengths.unique(return_counts=True)
    assert found.tolist() == [1 / 8, 1 / 4, 1 / 2, 1]
    assert (counts - len(lengths) / 4).abs().max() < 4 * (len(lengths) * 3 / 16) ** 0.5
    assert torch.equal((start / lengths).round(), start / lengths) and start.max() == 1 and (start >= lengths).all()
    eighths, of_each = start[lengths == 1 / 8].unique(return_counts=True)
    assert eighths.tolist() == [k / 8 for k in range(1, 9)]
    assert (of_each - of_each.sum() / 8).abs().max() < 4 * float(of_each.sum() * 7 / 64) ** 0.5


@pytest.mark.parametrize("network", list(NETWORKS))
def test_the_loss_is_that_of_the_paper(network: type) -> None:
    """Against the equation with the weights of the target, without dropout there and without its gradient."""
    shape = (1, 8, 8)
    built = model(network, shape, num_steps=8).eval()
    x_0, eps = images(4, shape)
    t, s = torch.tensor([0.5, 1.0, 0.25, 0.7]).double(), torch.tensor([0.0, 0.5, 0.0, 0.7]).double()

    def u(weights: Any, x: Tensor, t: float, s: float) -> Tensor:
        return weights(x[None], 999 * torch.tensor([[t, t - s]], dtype=torch.float64))[0]

    x = [(1 - t[i]) * x_0[i] + t[i] * eps[i] for i in range(4)]
    first = u(built.target, x[0], 0.5, 0.25)
    targets = [(first + u(built.target, x[0] - 0.25 * first, 0.25, 0.0)) / 2]
    first = u(built.target, x[1], 1.0, 0.75)
    targets.append((first + u(built.target, x[1] - 0.25 * first, 0.75, 0.5)) / 2)
    first = u(built.target, x[2], 0.25, 0.25)  # the shortest
    targets += [(first + u(built.target, x[2] - 0.125 * first, 0.125, 0.125)) / 2, eps[3] - x_0[3]]
    own = [u(built.network, x[i], float(t[i]), float(s[i])) for i in range(4)]
    expected = torch.stack([(a - b.detach()).square().mean() for a, b in zip(own, targets, strict=True)])
    error = built.error(x_0, t, s, eps, None, None)
    torch.testing.assert_close(error, expected, rtol=1e-9, atol=1e-9)
    for one, other in zip(
        torch.autograd.grad(error.sum(), list(built.network.parameters())),
        torch.autograd.grad(expected.sum(), list(built.network.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)
    built.train()
    built.error(x_0, t, s, eps, None, None)
    assert built.target.training and all(parameter.grad is None for parameter in built.target.parameters())


def test_the_exact_map_has_no_error() -> None:
    """The mean velocity of the exact flow of a mixture fulfils the equation of two steps, and a wrong one does not."""
    mixture = GaussianMixture(torch.tensor([[1.0, 0.0], [-0.5, 0.7]]), torch.tensor([[0.3, 0.2], [0.1, 0.4]]))
    exact = MixtureFlowMap(mixture, Rectified(), steps=400)

    def velocity(x: Tensor, times: Tensor, labels: Tensor | None) -> Tensor:
        t, span = times[:, 0] / 999, times[:, 1] / 999
        return (x - exact.jump(x, t, t - span, None)) / span.reshape(-1, 1, 1, 1)

    built = model(num_steps=128)
    x_0, eps = images(50)
    t, s = torch.ones(50, dtype=torch.float64), torch.linspace(0, 0.9, 50, dtype=torch.float64)
    built.denoiser.network = built.teacher.denoiser.network = velocity
    assert built.error(x_0, t, s, eps, None, None).max() < 1e-10
    built.denoiser.network = lambda x, times, labels: 1.05 * velocity(x, times, labels)
    assert built.error(x_0, t, s, eps, None, None).min() > 1e-6


def test_the_target_is_an_average_of_the_weights() -> None:
    built = model(target_decay=0.25)
    target, network = (dict(part.named_parameters()) for part in (built.target, built.network))
    kept, new = target["stem.bias"].clone(), network["stem.bias"]
    for decay in (2 / 11, 0.25, 0.25):
        built.average()
        kept = decay * kept + (1 - decay) * new
        torch.testing.assert_close(target["stem.bias"].data, kept.detach(), rtol=1e-12, atol=0)
    assert "target.stem.bias" in built.state_dict() and int(built.num_averaged) == 3
    assert not any(name.startswith("target") for name, p in built.named_parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"bootstrap_share": -0.1}, "model.bootstrap_share"),
        ({"num_steps": 96}, "model.num_steps"),
        ({"num_steps": 1}, "model.num_steps"),
        ({"target_decay": 1.0}, "model.target_decay"),
        ({"clip": 1.0}, "clip"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError, match=key):
        Shortcut(SHAPE, network=ResidualMLP, **options)
