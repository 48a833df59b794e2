import numpy as np
import pytest
import torch

from lit_gen.core.errors import UserError
from lit_gen.core.pixels import BIN_WIDTH, from_levels, nearest_levels, quantise, to_float
from lit_gen.data import Batch, Digits, ImageDataModule


def test_inverts_the_data_modules_scaling_for_every_grey_level():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    batch = Batch(levels, torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    images = ImageDataModule(source=Digits()).on_after_batch_transfer(batch, 0).images
    assert images.dtype == torch.float32
    assert quantise(images).equal(levels)
    assert quantise(images.double()).equal(levels)


@pytest.mark.parametrize(
    "value, level",
    [(-1.01, 0), (-1.0, 0), (0.0, 128), (-1e-6, 127), (1.0, 255), (1.01, 255), (3e38, 255), (-3e38, 0), (0.5, 191)],
)
def test_saturates_and_rounds_half_levels_up(value, level):
    assert quantise(torch.tensor([value])).item() == level


def test_equals_rounding_to_the_nearest_level():
    x = torch.linspace(-1.5, 1.5, 10_007, dtype=torch.float64)
    assert np.array_equal(quantise(x).numpy(), np.clip(np.floor(127.5 * x.numpy() + 127.5 + 0.5), 0, 255))


def test_half_precision_is_rounded_in_single():
    x = torch.linspace(-1, 1, 513).bfloat16()
    assert quantise(x).equal(quantise(x.float()))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_an_error(bad):
    images = torch.zeros(2, 1, 4, 4)
    images[1, 0, 2, 2] = bad
    with pytest.raises(UserError, match="1 of 32 pixels .* not finite"):
        quantise(images)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_levels_of_floats_are_those_of_bytes(dtype):
    levels = torch.arange(256)
    images = from_levels(levels.to(dtype))
    assert from_levels(levels.float()).equal(to_float(levels.to(torch.uint8)))
    assert images.diff().sub(BIN_WIDTH).abs().max() < 1e-6
    assert nearest_levels(images).equal(levels.to(dtype))
    assert nearest_levels(images + 0.4 * BIN_WIDTH).equal(levels.to(dtype))
