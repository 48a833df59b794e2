"""Names that a configuration may import."""

import pytest

from lit_gen.core.imports import may_be_named


@pytest.mark.parametrize(
    "path", ["torch.nn.Linear", "torch.optim.Adam", "lit_gen.families.diffusion.UNet", "mine.Net", "a.b.C"]
)
def test_paths_that_may_be_named(path: str) -> None:
    assert may_be_named(path)


@pytest.mark.parametrize("path", ["torch.hub.load", "torch.nnx.X", "os.system", "wandb.init", "mine.__main__.Net"])
def test_paths_that_may_not_be_named(path: str) -> None:
    assert not may_be_named(path)
