"""PSNR, SSIM and the distance of reconstructions against exact answers."""

import math

import pytest
import torch

from lit_gen.data import Digits, ImageDataModule
from lit_gen.metrics import DigitsFeatures, psnr, reconstruction_scores, ssim


def test_psnr_of_a_known_error() -> None:
    images = torch.zeros(3, 1, 8, 8)
    others = images + torch.tensor([0.2, 0.02, 5.0])[:, None, None, None]
    expected = [10 * math.log10(4 / 0.04), 10 * math.log10(4 / 0.0004), 10 * math.log10(4 / 1.0)]
    torch.testing.assert_close(psnr(images, others), torch.tensor(expected))
    assert bool(torch.isfinite(psnr(images, images)).all())


@pytest.mark.parametrize("size", [8, 28])
def test_ssim_is_one_for_equal_images_and_that_of_its_formula_for_constant_ones(size: int) -> None:
    torch.manual_seed(0)
    images = torch.rand(4, 1, size, size) * 2 - 1
    torch.testing.assert_close(ssim(images, images), torch.ones(4))
    assert bool((ssim(images, -images) < 0.1).all())
    one, other = torch.full((2, 1, size, size), 0.5), torch.full((2, 1, size, size), 0.25)
    c1, bright, dark = 0.01**2, 0.75, 0.625
    expected = (2 * bright * dark + c1) / (bright**2 + dark**2 + c1)
    torch.testing.assert_close(ssim(one, other), torch.full((2,), expected), rtol=1e-3, atol=0)


def test_scores_of_reconstructions() -> None:
    data, net, device = ImageDataModule(Digits()), DigitsFeatures(), torch.device("cpu")
    perfect = reconstruction_scores(lambda images: images, data, net, device)
    assert abs(perfect["rfd_digits"]) < 1e-6 and perfect["ssim"] == pytest.approx(1) and perfect["psnr"] > 60
    worse = reconstruction_scores(lambda images: 0.9 * images, data, net, device, batch_size=50)
    much_worse = reconstruction_scores(lambda images: images.flip(3), data, net, device)
    assert 0.001 < worse["rfd_digits"] < much_worse["rfd_digits"]
    assert perfect["ssim"] > worse["ssim"] > much_worse["ssim"] and worse["psnr"] > much_worse["psnr"]
    everything = reconstruction_scores(lambda images: 0.9 * images, data, net, device)
    assert worse == pytest.approx(everything, rel=1e-4)
