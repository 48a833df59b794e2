"""MeanFlow: its loss against finite differences, weights, and guidance."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.families.diffusion import DiT, MeanFlow, ResidualMLP, UNet
from lit_gen.families.diffusion.samplers import Euler, FlowMapSampler

SHAPE = (1, 8, 8)
NETWORKS: dict[type, dict[str, Any]] = {
    UNet: {"channels": 8, "channel_mult": (1,), "num_blocks": 1, "attention_resolutions": (8,)},
    DiT: {"width": 8, "depth": 1, "num_heads": 2},
    ResidualMLP: {"width": 16, "depth": 1},
}


def model(network: type = ResidualMLP, dropout: float = 0.0, **options: Any) -> MeanFlow:
    """Return a model whose network has a non-zero output that depends on both times."""
    settings = NETWORKS[network] | ({"dropout": dropout} if dropout else {})
    built = MeanFlow(SHAPE, network=lambda shape, classes: network(shape, classes, **settings), **options)
    for parameter in built.network.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return built


def batch(num: int = 6) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return images, t, s and eps."""
    t = torch.linspace(0.3, 0.9, num, dtype=torch.float64)
    return torch.rand(num, *SHAPE) * 2 - 1, t, t * torch.linspace(0, 1, num).double(), torch.randn(num, *SHAPE)


@pytest.mark.parametrize("network", list(NETWORKS))
def test_the_loss_is_that_of_the_paper(network: type) -> None:
    """|u - (v - (t - s) du/dt)|^2 with du/dt along the path by finite differences; flow matching at s = t."""
    torch.set_default_dtype(torch.float64)
    try:
        built = model(network)
        images, t, s, eps = batch()
        h = 1e-5

        def u(t: Tensor) -> Tensor:
            x = (1 - t)[:, None, None, None] * images + t[:, None, None, None] * eps
            return built.network(x, 10 * torch.stack([t, t - s], 1))

        du_dt = (u(t + h) - u(t - h)) / (2 * h)
        target = eps - images - (t - s)[:, None, None, None] * du_dt
        expected = (u(t) - target.detach()).square().mean((1, 2, 3))
        error = built.error(images, t, s, eps, None, None)
        assert du_dt.square().mean() > 0.01 * (u(t)).square().mean()
        torch.testing.assert_close(error, expected, rtol=1e-4, atol=1e-6)
        # the gradient does not pass through the target
        mean = torch.autograd.grad(error.mean(), list(built.network.parameters()))
        by_hand = torch.autograd.grad(expected.mean(), list(built.network.parameters()))
        for own, other in zip(mean, by_hand, strict=True):
            torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-4)
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_share_of_the_images_is_flow_matching() -> None:
    t, other = torch.rand(2, 40, dtype=torch.float64)
    later, earlier = MeanFlow(SHAPE, network=ResidualMLP, flow_share=0.25).training_spans(t, other)
    assert int((later == earlier).sum()) == 10 and bool((later >= earlier).all())
    assert torch.equal(later, torch.maximum(t, other)) and torch.equal(earlier[10:], torch.minimum(t, other)[10:])


def test_the_weight_of_an_error() -> None:
    built = MeanFlow(SHAPE, network=ResidualMLP, power=0.5, offset=1e-2)
    error = torch.tensor([0.5, 2.0], requires_grad=True)
    loss = built.reweighted(error, error, error)
    torch.testing.assert_close(loss, 64 * error / (64 * error + 0.01).sqrt())
    (slope,) = torch.autograd.grad(loss.sum(), error)
    torch.testing.assert_close(slope, 64 / (64 * error + 0.01).sqrt().detach(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_u_and_its_derivative_have_one_dropout_mask(dropout: float) -> None:
    built = model(UNet, dropout=dropout).train()
    images, t, s, eps = batch()
    torch.manual_seed(3)
    first = built.error(images, t, s, eps, None, None)
    torch.manual_seed(3)
    assert torch.equal(first, built.error(images, t, s, eps, None, None))
    assert torch.equal(first, built.error(images, t, s, eps, None, None)) == (dropout == 0)


def test_the_guided_target() -> None:
    """omega v + kappa u(class) + (1 - omega - kappa) u(no class); v itself for an image without its class."""
    options: dict[str, Any] = {"num_classes": 3, "class_conditional": True, "label_drop": 0.1}
    built = model(omega=0.8, kappa=0.6, **options)
    images, t, _, eps = batch()
    labels = torch.tensor([0, 1, 2, -1, -1, 1])
    x = (1 - t.float())[:, None, None, None] * images + t.float()[:, None, None, None] * eps
    c = 10 * t.float()
    u, null = built.network(x, c, labels), built.network(x, c, torch.full_like(labels, -1))
    guided = 0.8 * (eps - images) + 0.6 * u - 0.4 * null
    guided[3:5] = (eps - images)[3:5]
    expected = (u - guided).square().mean((1, 2, 3))
    torch.testing.assert_close(built.error(images, t, t, eps, labels, None), expected, rtol=1e-4, atol=1e-5)
    plain = model(**options).error(images, t, t, eps, labels, None)
    assert (plain - expected).abs().max() > 1e-3
    built.sample(Noise(0, range(4)))
    assert built.nfe == 1, "guidance costs nothing in sampling"


def test_bf16_has_the_gradients_of_float32() -> None:
    options: dict[str, Any] = {"num_classes": 3, "class_conditional": True, "label_drop": 0.1, "omega": 2.0}
    built = model(UNet, **options)
    images, t, s, eps = batch()
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    grads = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = built.error(images, t, s, eps, labels, None).mean()
        grads.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(built.network.parameters()))]))
    assert torch.nn.functional.cosine_similarity(grads[0], grads[1], dim=0) > 0.99


def test_one_network_is_a_flow_map_and_a_denoiser() -> None:
    built = model()
    one = built.sample(Noise(0, range(3)))
    eps = Noise(0, range(3)).normal(SHAPE)
    torch.testing.assert_close(one, eps - built.network(eps, torch.full((3, 2), 10.0)))
    built.sample(Noise(0, range(3)), sampler=FlowMapSampler(steps=4, noise=0.5))
    assert built.nfe == 4
    built.sample(Noise(0, range(3)), sampler=Euler(steps=7))
    assert built.nfe == 7


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"p_std": 0.0}, "model.p_std"),
        ({"flow_share": 1.5}, "model.flow_share"),
        ({"offset": 0.0}, "model.power"),
        ({"kappa": 1.0}, "model.omega"),
        ({"omega": 2.0}, "model.omega"),
        ({"network": lambda *_: nn.Linear(1, 1)}, "model.network"),
        ({"uncertainty": True}, "model.uncertainty"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError, match=key):
        MeanFlow(SHAPE, **({"network": ResidualMLP} | options))
