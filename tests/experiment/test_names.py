"""Names of classes in files: every older one is read, and none that stands in a file today is a module's."""

import importlib

import pytest
from jsonargparse._util import get_import_path

from lit_gen.experiment.names import _CURRENT, current, first
from lit_gen.experiment.parser import ExperimentCLI
from tests.conftest import ROOT


@pytest.mark.parametrize(("older", "today"), _CURRENT.items())
def test_a_class_is_found_by_every_name_that_it_had(older: str, today: str) -> None:
    module, _, name = today.rpartition(".")
    cls = getattr(importlib.import_module(module), name)
    assert get_import_path(cls) == today, "the public name, which the parser writes"
    assert current(older) == today == current(today)
    assert first({"a": [today]}) == {"a": [older]} == first({"a": [older]}), "what an identity hashes"


@pytest.mark.parametrize(
    ("older", "today"),
    [
        ("lit_gen.models.gan.GAN", "lit_gen.families.gan.GAN"),
        ("lit_gen.models.ddpm.DDPM", "lit_gen.families.diffusion.DDPM"),
        ("lit_gen.diffusion.samplers.ancestral.DDPM", "lit_gen.families.diffusion.samplers.DDPM"),
        ("lit_gen.networks.unet.UNet", "lit_gen.families.diffusion.UNet"),
        ("lit_gen.data.Digits", "lit_gen.data.Digits"),
        ("lit_gen.nothing.Like", "lit_gen.nothing.Like"),
        ("mine.models.GAN", "mine.models.GAN"),
        ("torch.optim.Adam", "torch.optim.Adam"),
        ("digits", "digits"),
    ],
)
def test_a_module_path_of_before_is_read_and_all_else_stays(older: str, today: str) -> None:
    assert current(older) == today


def test_older_names_are_read_on_the_command_line_and_within_values() -> None:
    words = [f"--config={ROOT}/conf/experiment/digits_edm.yaml", "--sampler=lit_gen.diffusion.DDIM"]
    words += ["--sampler.grid={class_path: lit_gen.diffusion.Karras, init_args: {rho: 5}}"]
    config = ExperimentCLI(words).resolved()
    assert config["sampler"]["class_path"] == "lit_gen.families.diffusion.samplers.DDIM"
    assert config["sampler"]["init_args"]["grid"]["class_path"] == "lit_gen.families.diffusion.Karras"
    assert config["sampler"]["init_args"]["grid"]["init_args"]["rho"] == 5


@pytest.mark.parametrize("name", ["Inception", "DigitsFeatures", "Points", "EfficientNetLite0"])
@pytest.mark.parametrize("package", ["", "lit_gen.metrics.", "lit_gen.metrics.feature_nets."])
def test_a_feature_net_has_one_name_in_files(package: str, name: str) -> None:
    words = ["--model=EDM", "--model.network=UNet", "--data.source=Digits", f"--evaluation.feature_net={package}{name}"]
    named = ExperimentCLI(words).resolved()["evaluation"]["feature_net"]
    assert named == f"lit_gen.metrics.{name}" or named["class_path"] == f"lit_gen.metrics.{name}"
