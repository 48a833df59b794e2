"""Settings of the diffusion models on the command line, and the errors of wrong ones."""

from pathlib import Path
from typing import Any

import pytest

from lit_gen.cli import commands
from lit_gen.cli.main import main
from lit_gen.core.errors import UserError
from lit_gen.experiment.parser import ExperimentCLI
from lit_gen.families.diffusion import (
    DDPM,
    EDM,
    Diffusion,
    EDMPreconditioning,
    EDMSchedule,
    ErrorOf,
    FlowMatching,
    ImprovedDDPM,
    LognormalSigma,
    MinSNR,
    RectifiedFlow,
    ScoreSDE,
    Velocity,
)
from lit_gen.families.diffusion.augment import EDMAugmentation
from tests.conftest import DIGITS, ROOT, TINY_UNET, arguments


def test_a_weight_is_chosen_on_the_command_line():
    words = ["--model=DDPM", *TINY_UNET, *DIGITS, "--model.stratified=true"]
    model = ExperimentCLI([*words, "--model.weight=MinSNR", "--model.weight.gamma=3"]).objects().model
    assert isinstance(model.weight, MinSNR) and model.weight.gamma == 3 and model.stratified
    model = ExperimentCLI([*words, "--model.weight=ErrorOf", "--model.weight.target=Velocity"]).objects().model
    assert isinstance(model.weight, ErrorOf) and isinstance(model.weight.target, Velocity)
    assert ExperimentCLI(words).objects().model.weight is None
    with pytest.raises(UserError, match="gamma"):
        ExperimentCLI([*words, "--model.weight=MinSNR", "--model.weight.gamma=0"]).objects()


@pytest.mark.slow
def test_a_learned_variance_can_be_asked_for_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The default settings given by name give the same images; a model without a learned variance is refused early."""
    named = ["--sampler=DDPM", "--sampler.variance=learned", "--sampler.steps=50"]
    words = arguments("ImprovedDDPM", tmp_path, 64, "--evaluation.num_samples=2")
    own = commands.run(words)
    assert commands.run([*words, *named]) == own, "the same evaluation"
    assert main(["run", *arguments("DDPM", tmp_path / "other", 64, *named)]) == 2
    assert "sampler.variance: this model has no learned variance" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("experiment", "word"),
    [
        *[("digits_edm", word) for word in ("out_channels=3", "out_channels=2", "out_channels=0", "augment_dim=4")],
        *[(name, "out_channels=3") for name in ("digits_edm_dit", "points_edm", "digits_improved_ddpm")],
    ],
)
def test_what_the_model_asks_of_its_network_cannot_be_set(experiment: str, word: str) -> None:
    cli = ExperimentCLI([f"--config={ROOT}/conf/experiment/{experiment}.yaml", f"--model.network.{word}"])
    with pytest.raises(UserError, match=rf"^model\.network\.{word[:-2]}: the model sets .*; remove the key$"):
        cli.objects()


def test_what_the_model_asks_of_its_network_reaches_it() -> None:
    words = [f"--config={ROOT}/conf/experiment/digits_improved_ddpm.yaml", "--model.augment=EDMAugmentation"]
    network: Any = ExperimentCLI(words).objects().model.network
    assert network.out.out_channels == 2 and network.embed_augment.in_features == EDMAugmentation().dim


@pytest.mark.parametrize(
    ("experiment", "key", "value", "range_"),
    [
        ("digits_edm", "model.sigma_data", "-1.0", "a number above 0"),
        ("digits_edm", "model.sigma_data", "0.0", "a number above 0"),
        ("digits_edm", "model.p_std", "0.0", "a number above 0"),
        ("digits_improved_ddpm", "model.vlb_weight", "-1.0", "0 or more"),
        ("digits_edm", "sampler.S_churn", "-1.0", "0 or more"),
        ("digits_edm", "sampler.S_noise", "-5.0", "a number above 0"),
        ("digits_edm", "sampler.S_min", "5.0", "0 <= S_min <= S_max"),
        ("digits_edm", "model.network.skip_scale", "0.0", "a number above 0"),
        ("digits_edm", "model.network.head_channels", "0", "1 or more"),
    ],
)
def test_settings_out_of_range_are_named_in_one_line(experiment: str, key: str, value: str, range_: str) -> None:
    """The message contains the range, and appears before training."""
    words = ["--sampler=Heun", "--sampler.S_max=1", "--model.network.attention_resolutions=[8]", f"--{key}={value}"]
    with pytest.raises(UserError) as refused:
        ExperimentCLI([f"--config={ROOT}/conf/experiment/{experiment}.yaml", *words]).objects()
    message = str(refused.value)
    assert message.startswith(f"{key}: ") and value in message and f"; give {range_}" in message
    assert "\n" not in message


def test_the_preconditioning_needs_a_width_of_the_data() -> None:
    for sigma_data in (0.0, -1.0, float("nan")):
        with pytest.raises(UserError, match=f"^sigma_data: {sigma_data} is not a standard deviation"):
            EDMPreconditioning(sigma_data)


class OwnLoss(Diffusion):
    """A model that leaves three optional settings of its base class unused."""

    unused = frozenset({"weight", "uncertainty", "clip"})

    def __init__(self, image_shape: tuple[int, int, int], **kwargs: Any) -> None:
        super().__init__(image_shape, EDMSchedule(), EDMPreconditioning(), LognormalSigma(), **kwargs)


@pytest.mark.parametrize(
    ("model", "key", "used", "unused"),
    [
        (ScoreSDE, "sigma_min", {"sde": "ve", "sigma_min": 0.5}, {"sde": "vp", "sigma_min": 0.5}),
        (ScoreSDE, "sigma_max", {"sde": "ve", "sigma_max": 3.0}, {"sde": "subvp", "sigma_max": 3.0}),
        (ImprovedDDPM, "vlb_weight", {"vlb_weight": 0.5}, {"objective": "vlb", "vlb_weight": 0.5}),
        (RectifiedFlow, "stratified", {"stratified": True}, {"density": "noise", "stratified": True}),
        (OwnLoss, "weight", {"weight": None, "stratified": True}, {"weight": MinSNR()}),
        (OwnLoss, "uncertainty", {"uncertainty": False, "label_drop": 0.0}, {"uncertainty": True}),
        (OwnLoss, "clip", {"clip": None}, {"clip": 1.0}),
    ],
)
def test_a_setting_that_has_no_effect_is_refused(
    model: type[Diffusion], key: str, used: dict[str, Any], unused: dict[str, Any]
) -> None:
    model(image_shape=(1, 16, 16), **used)
    with pytest.raises(UserError, match=rf"^model\.{key}: .*use.*; remove"):
        model(image_shape=(1, 16, 16), **unused)


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        (EDM, {"clip": 1}),
        (DDPM, {"density": LognormalSigma()}),
        (ScoreSDE, {"schedule": EDMSchedule()}),
        (FlowMatching, {"parameterization": Velocity()}),
        (RectifiedFlow, {"coupling": "ot"}),
        (ImprovedDDPM, {"uncertainty": True}),
    ],
)
def test_a_setting_that_the_class_makes_itself_is_refused(model: type[Diffusion], settings: dict[str, Any]) -> None:
    (key,) = settings
    with pytest.raises(UserError, match=rf"^model\.{key}: {model.__name__} sets it; remove it, or use Diffusion"):
        model(image_shape=(1, 16, 16), **settings)
