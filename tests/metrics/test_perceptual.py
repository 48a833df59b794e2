"""Perceptual losses: zero only for what looks the same, with gradients, and the one that is said to be used."""

from pathlib import Path

import pytest
import torch
from torch import nn

from lit_gen.core.errors import UserError
from lit_gen.metrics import DigitsFeatures, FashionFeatures, perceptual
from lit_gen.metrics.perceptual import LPIPS, FeatureLoss, perceptual_loss


def test_the_distance_is_that_of_normalised_layers() -> None:
    torch.manual_seed(0)
    images, others = torch.rand(2, 3, 1, 8, 8) * 2 - 1
    net = DigitsFeatures()
    loss = FeatureLoss(net)
    expected = torch.zeros(())
    for end in (2, 4, 7):  # after each SiLU over pixels
        one, other = (net.network.body[:end](x) for x in (images, others))
        one, other = (x / x.square().sum(1, keepdim=True).sqrt() for x in (one, other))
        expected += (one - other).square().sum(1).mean()
    torch.testing.assert_close(loss(images, others), expected)
    torch.testing.assert_close(loss(images, others), loss(others, images))
    assert loss(images, images) == 0


def test_it_has_gradients_for_images_and_none_for_weights() -> None:
    for loss, size in ((FeatureLoss(DigitsFeatures()), 8), (FeatureLoss(FashionFeatures()), 32)):
        images = (0.5 * torch.randn(2, 1, size, size)).requires_grad_()
        (gradient,) = torch.autograd.grad(loss(images, torch.zeros_like(images)), images)
        margin = (size - loss.size) // 2
        inner = gradient[:, :, margin : size - margin, margin : size - margin]
        assert inner.abs().sum() > 0 and int((inner != 0).sum()) == int((gradient != 0).sum())
        assert not any(parameter.requires_grad for parameter in loss.parameters())
        assert not loss.train().training and not any(module.training for module in loss.modules())


def test_the_kind_that_is_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    names = {(1, 8, 8): "digits features", (1, 28, 28): "fashion_mnist features", (1, 32, 32): "fashion_mnist features"}
    for shape, name in names.items():
        for kind in ("auto", "features"):
            found = perceptual_loss(kind, shape)  # type: ignore[arg-type]
            assert found is not None and found.name == name == found.build().name
    assert perceptual_loss("auto", (3, 32, 32)) is None and perceptual_loss("none", (1, 8, 8)) is None
    with pytest.raises(UserError, match="model.perceptual: features .* 3x32x32"):
        perceptual_loss("features", (3, 32, 32))
    missing = perceptual_loss("lpips", (3, 32, 32))
    assert missing is not None and missing.name == "LPIPS"
    with pytest.raises(UserError, match="model.perceptual: VGG's weights are not at .*download https"):
        missing.build()
    with pytest.raises(UserError, match="model.perceptual: lpips takes images of at least 32x32"):
        perceptual_loss("lpips", (1, 8, 8))


def test_lpips_where_its_weights_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With random weights of VGG's shape, and the fitted weights that come with torchmetrics."""
    from torchmetrics.functional.image import lpips
    from torchvision.models import vgg

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    path = tmp_path / "checkpoints" / "vgg16-397923af.pth"
    path.parent.mkdir()
    path.touch()
    layers = vgg.make_layers(vgg.cfgs["D"], batch_norm=False)
    monkeypatch.setattr(lpips, "_get_tv_model_features", lambda net, pretrained: layers)
    found = perceptual_loss("auto", (1, 32, 32))
    assert found is not None and found.name == "LPIPS"
    loss = found.build()
    assert isinstance(loss, LPIPS) and loss.name == "LPIPS" and perceptual.lpips_is_here()
    torch.manual_seed(0)
    images, others = torch.rand(2, 2, 1, 32, 32) * 2 - 1
    images.requires_grad_()
    distance = loss(images, others)
    (gradient,) = torch.autograd.grad(distance, images)
    assert distance.shape == () and distance > 0 and gradient.abs().max() > 0
    assert loss(others, others) == 0 and not any(p.requires_grad for p in loss.parameters())
    assert isinstance(loss, nn.Module) and not loss.train().training
