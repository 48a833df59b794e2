"""Blocks that several families share."""

import math

import torch
from torch import nn

from lit_gen.networks.blocks import ResBlock, halvings


def test_residual_sum_keeps_the_variance() -> None:
    torch.manual_seed(0)
    block = ResBlock(8, 8, norm=False)
    for parameter in block.conv2.parameters():
        nn.init.zeros_(parameter)
    x = torch.randn(2, 8, 4, 4)
    torch.testing.assert_close(block(x), x / math.sqrt(2))


def test_halvings() -> None:
    assert halvings((1, 8, 8)) == [(8, 8), (4, 4)]
    assert halvings((3, 32, 32)) == [(32, 32), (16, 16), (8, 8), (4, 4)]
    assert halvings((1, 28, 28)) == [(28, 28), (14, 14), (7, 7)]
    assert halvings((1, 8, 32)) == [(8, 32), (4, 16)]
