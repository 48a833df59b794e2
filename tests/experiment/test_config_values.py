"""A value that a key cannot take is one line that names the key, whatever the value."""

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lit_gen.cli import main as cli
from lit_gen.core.errors import UserError
from lit_gen.experiment.parser import ExperimentCLI
from tests.conftest import ROOT, arguments

WORDS = [*arguments("DDPM", Path("runs"), 64, "--model.num_timesteps=20"), "--sampler=Heun", "--sampler.grid=Karras"]
VALUES = [
    "null",
    "",
    "abc",
    "1e999",
    ".nan",
    "-1",
    "[]",
    "{}",
    "0",
    "-0.5",
    "a.b",
    "[1, 2]",
    "{a: 1}",
    "${x}",
    "- x",
    str(2**40),
]
LOOPS = ("model.network.num_blocks", "data.num_workers")
"""Of these a huge number takes its time, as it should."""
KEYS = (
    *("seed_everything", "model.betas", "model.num_timesteps", "model.optimizer", "model.optimizer.lr", "model.warmup"),
    *("model.optimizer.betas", "model.network", "model.network.channels", "model.network.channel_mult", "model.weight"),
    *("model.network.dropout", "model.label_drop", "data.source", "data.batch_size", "data.num_val", "data.flip"),
    *(
        "sampler",
        "sampler.steps",
        "sampler.nfe",
        "sampler.grid",
        "sampler.grid.rho",
        "sampler.S_churn",
        "sampler.guidance",
    ),
    *(
        "evaluation.feature_net",
        "evaluation.num_samples",
        "evaluation.seed",
        "evaluation.split",
        "evaluation.likelihood",
    ),
    *(
        "evaluation.weights",
        "evaluation.batch_size",
        "reflow.num_pairs",
        "reflow.sampler",
        "reflow.seed",
        "reflow.teacher",
    ),
    *("first_stage.run", "first_stage.batch_size", "run.root", "run.name", "wandb.mode", "budget.num_images"),
    *("budget.seconds", "checkpoint.every", "ema.decay", "ema.stds", "grid.every", "grid.num_samples", "grid.seed"),
    *("trainer.max_steps", "trainer.callbacks", "trainer.precision", "trainer.gradient_clip_val", "trainer.devices"),
)
CASES = [(key, value) for key in KEYS for value in VALUES if not (key in LOOPS and len(value) > 6)]


def check(key: str, value: str) -> None:
    try:
        ExperimentCLI([*WORDS, f"--{key}={value}"]).objects()
    except UserError as error:
        section = key.partition(".")[0]
        assert str(error).startswith(section), error
        assert "\n" not in str(error)
        assert "Traceback" not in str(error)


@pytest.mark.parametrize(("key", "value"), CASES[::37])
def test_any_value_is_taken_or_refused_in_one_line(key: str, value: str) -> None:
    check(key, value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "value"),
    [
        case if number % 7 == 0 else pytest.param(*case, marks=pytest.mark.exhaustive)
        for number, case in enumerate(CASES)
    ],
)
def test_every_value_of_every_key_is_taken_or_refused_in_one_line(key: str, value: str) -> None:
    check(key, value)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("evaluation.num_samples", "null", "null is not accepted; expected int"),
        ("budget.num_images", "", "an empty value is not accepted; expected int"),
        ("model.optimizer.lr", "", "an empty value is not accepted; expected float"),
        ("model.optimizer.lr", "abc", "abc is not accepted; expected float"),
        ("model.num_timesteps", "null", "null is not accepted; expected int"),
        ("model.betas", "null", "null is not accepted; expected one of linear, cosine"),
        ("model.optimizer.weight_decay", ".nan", "nan is not a number"),
        ("sampler.guidance.weight", "null", "null is not accepted; expected float"),
        ("seed_everything", "-1", "-1 is not a seed; give a whole number from 0 to 4294967295"),
        ("seed_everything", str(2**32), f"{2**32} is not a seed"),
        ("evaluation.seed", str(2**32), f"{2**32} is not a seed"),
        ("evaluation.num_repeats", "0", "0 is too few; give at least 1"),
        ("evaluation.least_of", "0", "0 is too few; give at least 1"),
        ("evaluation.num_repeats", "x", "x is not accepted; expected int"),
        (
            "evaluation.num_repeats",
            str(2**32 + 1),
            f"{2**32 + 1} repeats from seed 0 pass the largest, {2**32 - 1}; give",
        ),
        ("grid.seed", "-7", "-7 is not a seed"),
        ("model.network.channels", "7", "channels: 7 is not a positive multiple of 8"),
    ],
)
def test_what_is_wrong_is_said_of_the_key_alone(key: str, value: str, reason: str) -> None:
    more = ["--sampler.guidance=Guidance"] if "guidance" in key else []
    with pytest.raises(UserError) as error:
        ExperimentCLI([*WORDS, *more, f"--{key}={value}"]).objects()
    named = "model.network" if key == "model.network.channels" and value == "7" else key
    assert str(error.value).startswith(f"{named}: {reason}")


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_every_seed_in_range_is_taken(seed: int) -> None:
    assert ExperimentCLI([*WORDS, f"--seed_everything={seed}", f"--evaluation.seed={seed}"]).objects().data.seed == seed


def test_values_of_a_file_are_named_as_well(tmp_path: Path) -> None:
    """A wrong value deep in a file was said to be a wrong class of the model."""
    file = tmp_path / "wrong.yaml"
    for text, message in {
        "optimizer: {class_path: torch.optim.Adam, init_args: {lr: abc}}": "model.optimizer.lr: abc is not accepted",
        "network: {class_path: UNet, init_args: {channels: abc}}": "model.network.channels: abc is not accepted",
        "network: {class_path: UNet, init_args: {chanels: 8}}": "model.network.chanels: no such key",
        "network: null": "model.network: null is not accepted; expected Module",
        "warmup: null": "model.warmup: null is not accepted; expected int",
    }.items():
        file.write_text(f"model: {{class_path: DDPM, init_args: {{{text}}}}}\ndata: {{source: Digits}}\n")
        with pytest.raises(UserError, match=f"^{message}"):
            ExperimentCLI([f"--config={file}"])
    file.write_text(f"model: {ROOT / 'conf/model/ddpm.yaml'}\nwandb: {{no_such: 1}}\n")
    with pytest.raises(UserError, match=r"^wandb.no_such: no such key"):
        ExperimentCLI([f"--config={file}"])


def test_verbs_refuse_what_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit = ["fit", *arguments("DDPM", tmp_path / "runs")]
    for words, key in {
        (*fit, "--trainer.overfit_batches=2"): "trainer.overfit_batches",
        (*fit, "--trainer.overfit_batches=0.5"): "trainer.overfit_batches",
        ("sample", "no-run", "--seed=-1"): "--seed",
        ("sample", "no-run", f"--seed={2**32}"): "--seed",
        ("sweep", "sweeps/quickstart.yaml", "--seed=-3", "--dry-run"): "--seed",
    }.items():
        assert cli.main(words) == 2
        error = capsys.readouterr().err.strip()
        assert error.startswith(f"lit-gen: error: {key}: ")
        assert "\n" not in error
    assert not (tmp_path / "runs").exists()


def leaves(config: dict[str, Any], key: str = "") -> Iterator[str]:
    for name, value in config.items():
        inner = key if name == "init_args" else f"{key}.{name}".lstrip(".")
        if isinstance(value, dict) and value:
            yield from leaves(value, inner)
        elif name != "class_path":
            yield inner


def test_the_keys_are_keys() -> None:
    config = ExperimentCLI(WORDS).resolved()
    classes = {"model.optimizer", "model.network", "data.source", "sampler", "sampler.grid", "evaluation.feature_net"}
    assert set(KEYS) <= {*leaves(config), *classes}


def test_a_factory_can_be_pickled_and_names_its_key() -> None:
    """Processes that are spawned get the model by pickle."""
    model = ExperimentCLI([*WORDS, "--model.optimizer.lr=-1"]).objects().model
    optimizer = pickle.loads(pickle.dumps(model.optimizer))
    with pytest.raises(UserError, match=r"^model.optimizer: Invalid learning rate: -1"):
        optimizer(model.parameters())
