"""Models in Python, without the command line."""

from typing import Any

import pytest

from lit_gen.core.errors import UserError
from lit_gen.families import list_models
from lit_gen.families.autoregressive.models.dense import Autoregressive
from lit_gen.families.base import GenerativeModel

FAMILIES: dict[str, type[GenerativeModel]] = {
    name: model for name, model in list_models().items() if name not in ("Diffusion", "TokenPrior")
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_is_made_of_the_shape_of_its_images(name: str) -> None:
    shape = (2, 1, 1) if name == "PointFlow" else (1, 16, 16)
    family: Any = FAMILIES[name]
    if issubclass(family, Autoregressive):  # whose first argument is the network
        with pytest.raises(
            UserError, match=rf"^{name}: no image_shape; give it by its name, as in {name}\(image_shape="
        ):
            family(shape)
        return
    model = family(shape)
    assert model.image_shape == shape
    assert sum(parameter.numel() for parameter in model.generator.parameters()) > 0


@pytest.mark.parametrize("name", FAMILIES)
def test_a_checkpoint_alone_is_refused_with_what_to_do(name: str) -> None:
    with pytest.raises(
        UserError, match=rf"^{name}\.load_from_checkpoint: a/last\.ckpt holds .*; load its run with lit_g"
    ):
        FAMILIES[name].load_from_checkpoint("a/last.ckpt")
