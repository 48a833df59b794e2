"""Models in Python, without the command line."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lit_gen.cli import commands
from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.experiment.loading import load, load_model
from lit_gen.experiment.parser import ExperimentCLI
from lit_gen.families import list_models
from lit_gen.families.autoregressive.models.dense import Autoregressive
from lit_gen.families.base import GenerativeModel
from lit_gen.runs.directory import Run
from tests.conftest import arguments

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


def test_a_run_is_loaded_by_its_directory(tmp_path: Path) -> None:
    run: Run = commands.fit(arguments("MADE", tmp_path))
    for weights in ("ema", "raw"):
        model = load(str(run.directory), weights)
        assert not model.training and model.images_seen == 256
        once = model.sample(Noise(1, range(3)))
        again = load_model(run, ExperimentCLI(["--config", str(run.config)]).objects().model, weights)
        assert torch.equal(once, again.sample(Noise(1, range(3))))
    with pytest.raises(UserError, match="not a run directory"):
        load(tmp_path)
