"""A configuration, whoever wrote it, runs no code but classes of the kind that a key takes."""

import copy
import itertools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from omegaconf import OmegaConf

from lit_gen.cli.main import main
from lit_gen.core.errors import UserError
from lit_gen.experiment.files import check_argument, check_config
from lit_gen.experiment.parser import ExperimentCLI
from lit_gen.families.diffusion import UNet
from tests.conftest import TINY, arguments

HOSTILE_MODULE = """
from pathlib import Path
import torch

def unannotated(path: str): Path(path).touch()
def returns_another(path: str) -> int: Path(path).touch()
def annotated_with_what_is_missing(path: str) -> "Nothing": Path(path).touch()
class NoKind:
    def __init__(self, path: str): Path(path).touch()
class Tensorlike(torch.Tensor):
    def __new__(cls, path: str): Path(path).touch()
class Called:
    def __init__(self, path: str): Path(path).touch()
    def __call__(self, *parts): return self
"""
HOSTILE: dict[str, dict[str, Any]] = {
    "os.system": {"command": "touch {marker}"},
    "subprocess.Popen": {"args": ["touch", "{marker}"]},
    "subprocess.run": {"args": ["touch", "{marker}"]},
    "builtins.open": {"file": "{marker}", "mode": "w"},
    "builtins.exec": {"source": "open('{marker}', 'w')"},
    "pathlib.Path.touch": {"self": "{marker}"},
    "shutil.copyfile": {"src": __file__, "dst": "{marker}"},
    "functools.partial": {"func": "os.system"},
    "lit_gen.runs.directory.subprocess.run": {"args": ["touch", "{marker}"]},
    "lit_gen.cli.main.main": {"arguments": ["report", "runs", "--out", "{marker}"]},
    "lit_gen.core.files.write_atomically": {"path": "{marker}", "content": ""},
    "torch.save": {"obj": 1, "f": "{marker}"},
    **{
        f"hostile.{name}": {"path": "{marker}"}
        for name in (
            "unannotated",
            "returns_another",
            "annotated_with_what_is_missing",
            "NoKind",
            "Tensorlike",
            "Called",
        )
    },
}
KEYS = [
    "model.init_args.network",
    "model.init_args.optimizer",
    "data.source",
    "data.source.init_args.source",
    "sampler",
    "sampler.init_args.grid",
    "evaluation.feature_net",
    "evaluation.likelihood_method",
    "reflow.sampler",
    "first_stage.run_overrides",
    "trainer.callbacks",
    "trainer.logger",
    "trainer.strategy",
    "trainer.profiler",
    "trainer.plugins",
    "trainer.accelerator",
]
PRODUCT = list(itertools.product(KEYS, HOSTILE))
Experiment = dict[str, Any]


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    return ExperimentCLI([*arguments("DDPM", Path("runs")), "--sampler=Heun", "--sampler.grid=Karras"]).resolved()


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What hostile code would make; its module can be imported."""
    (tmp_path / "hostile.py").write_text(HOSTILE_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "marker"


def changed(experiment: Experiment, key: str, value: Any) -> Experiment:
    """The experiment with another value of a dotted key."""
    config = copy.deepcopy(experiment)
    *above, last = key.split(".")
    part = config
    for name in above:
        part = part.setdefault(name, {})
    part[last] = value
    if key.startswith("data.source.init_args"):
        config["data"]["source"]["class_path"] = "Binarised"
    return config


def hostile(path: str, marker: Path) -> dict[str, Any]:
    text = yaml.safe_dump({"class_path": path, "init_args": HOSTILE[path]}).replace("{marker}", str(marker))
    spec: dict[str, Any] = yaml.safe_load(text)
    return spec


def written(config: Experiment, file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(config))
    return file


def as_run(config: Experiment, directory: Path) -> Path:
    """A run directory that might have come from anyone."""
    written(config, directory / "config.yaml")
    facts = {"status": "finished", "identity": "0" * 64, "recipe": "0" * 64, "seed": 0, "wandb_id": "0"}
    (directory / "run.json").write_text(json.dumps(facts))
    (directory / "checkpoints").mkdir()
    torch.save({"images_seen": 1}, directory / "checkpoints" / "last.ckpt")
    return directory


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which a command ends."""
    assert main(words) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("lit-gen: error: "), error
    assert "\n" not in error
    return error


def check_refused(experiment: Experiment, key: str, path: str, marker: Path) -> None:
    value = hostile(path, marker)
    of_list = {"trainer.callbacks": [value], "first_stage.run_overrides": {"data.source": value}}
    file = written(changed(experiment, key, of_list.get(key, value)), marker.parent / "theirs.yaml")
    try:
        ExperimentCLI([f"--config={file}"]).objects()
    except UserError as error:
        assert "\n" not in str(error)
        assert key.replace(".init_args", "").removesuffix(".source").removesuffix("_overrides") in str(error)
    else:  # a value that nothing is made of
        assert key == "first_stage.run_overrides"
        assert not path.startswith(("os.", "subprocess.", "builtins.", "shutil."))
    assert not marker.exists()


@pytest.mark.parametrize(
    ("key", "path"), [PRODUCT[i] for i in range(0, len(PRODUCT), 29)], ids=lambda word: word.replace(".init_args", "")
)
def test_nothing_is_called_that_is_not_of_the_kind_of_its_key(
    key: str, path: str, experiment: Experiment, marker: Path
) -> None:
    check_refused(experiment, key, path, marker)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "path"),
    [
        pytest.param(*pair, marks=[pytest.mark.exhaustive] if sum(divmod(place, len(HOSTILE))) % 3 else [])
        for place, pair in enumerate(PRODUCT)
    ],
    ids=lambda word: word.replace(".init_args", ""),
)
def test_nothing_is_called_by_any_key(key: str, path: str, experiment: Experiment, marker: Path) -> None:
    check_refused(experiment, key, path, marker)


@pytest.mark.parametrize(
    ("verb", "path"),
    [
        ("fit", "hostile.unannotated"),
        ("run", "lit_gen.core.files.write_atomically"),
        ("evaluate", "os.system"),
        ("sample", "hostile.returns_another"),
        ("reflow", "subprocess.Popen"),
    ],
)
def test_no_verb_calls_what_a_configuration_names(
    verb: str, path: str, experiment: Experiment, marker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = changed(experiment, "evaluation.feature_net", hostile(path, marker))
    run = as_run(config, marker.parent / "theirs")
    words = [verb, f"--config={run / 'config.yaml'}"] if verb in ("fit", "run") else [verb, str(run)]
    assert f"evaluation.feature_net: {path} is " in refused(words, capsys)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("door", "path"),
    [
        ("reflow.teacher", "hostile.NoKind"),
        ("first_stage.run", "subprocess.Popen"),
        ("sampler.guidance.run", "hostile.unannotated"),
    ],
)
def test_no_run_that_is_named_calls_anything(
    door: str, path: str, experiment: Experiment, marker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = as_run(changed(experiment, "model.init_args.network", hostile(path, marker)), marker.parent / "theirs")
    model, more = {
        "reflow.teacher": ("RectifiedFlow", []),
        "first_stage.run": ("EDM", []),
        "sampler.guidance.run": ("EDM", ["--sampler=Heun", "--sampler.guidance=Guidance"]),
    }[door]
    words = arguments(model, marker.parent / "runs", 64, *more, f"--{door}={run}")
    assert f"model.network: {path} is " in refused(["run", *words], capsys)
    assert not marker.exists()
    assert not (marker.parent / "runs").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.init_args.network", "this.x"),
        ("model.init_args.optimizer", {"class_path": "antigravity.x"}),
        ("sampler", "idlelib.idle.x"),
    ],
)
def test_modules_of_the_standard_library_are_not_even_imported(
    key: str, value: Any, experiment: Experiment, marker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(changed(experiment, key, value), marker.parent / "theirs.yaml")
    with pytest.raises(UserError, match="is of the standard library or of an installed package"):
        ExperimentCLI([f"--config={file}"])
    assert capsys.readouterr().out == ""
    assert not {"this", "antigravity", "idlelib.idle"} & set(sys.modules)


@pytest.mark.parametrize("value", ["os.system", {"class_path": "hostile.Called", "init_args": {"path": "{marker}"}}])
def test_a_callback_of_functions_takes_none(value: Any, experiment: Experiment, marker: Path) -> None:
    if isinstance(value, dict):
        value["init_args"]["path"] = str(marker)
    callback = {"class_path": "lightning.pytorch.callbacks.LambdaCallback", "init_args": {"setup": value}}
    file = written(changed(experiment, "trainer.callbacks", [callback]), marker.parent / "theirs.yaml")
    with pytest.raises(UserError, match=r"trainer.callbacks"):
        ExperimentCLI([f"--config={file}"]).objects()
    assert not marker.exists()


# --- what is of the kind of its key ---


def own_module(folder: Path) -> None:
    (folder / "mine.py").write_text(
        "from __future__ import annotations\n"
        "from collections.abc import Iterable\n"
        "import torch\n"
        "from lightning.pytorch import Callback\n"
        "from lit_gen.metrics import DigitsFeatures, FeatureNet\n"
        "from lit_gen.families.diffusion import UNet\n"
        "class Net(UNet):\n"
        "    def __init__(self, shape: tuple[int, int, int], num_classes: int, extra: int = 0, **kwargs):\n"
        "        super().__init__(shape, num_classes, **kwargs)\n"
        "        self.extra = extra\n"
        "class Watch(Callback):\n"
        "    def __init__(self, every: int = 1): self.every = every\n"
        "def optimizer(params: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:\n"
        "    return torch.optim.SGD(params, lr=0.125)\n"
        "def net(shape: tuple[int, int, int], num_classes: int) -> torch.nn.Module:\n"
        "    return UNet(shape, num_classes, channels=24, channel_mult=(1,), num_blocks=1)\n"
        "def features() -> FeatureNet:\n"
        "    return DigitsFeatures()\n"
    )


def test_classes_and_annotated_functions_of_the_users_own_are_built(marker: Path) -> None:
    own_module(marker.parent)
    words = arguments("DDPM", marker.parent, 64, "--model.optimizer=mine.optimizer")
    words += ["--evaluation.feature_net=mine.features", "--trainer.callbacks=[{class_path: mine.Watch}]"]
    own = [word for word in words if not word.startswith("--model.network")]
    cli = ExperimentCLI([*own, "--model.network=mine.net"])
    objects: Any = cli.objects()
    assert objects.model.optimizer(objects.model.parameters()).param_groups[0]["lr"] == 0.125
    assert next(m for m in objects.model.modules() if isinstance(m, UNet)) is not None
    assert objects.evaluation.feature_net().name == "digits"
    assert type(cli.config_init.trainer.callbacks[0]).__name__ == "Watch"
    tiny = [word.replace("UNet", "mine.Net") for word in TINY["DDPM"]]
    cli = ExperimentCLI([*own, *tiny, "--model.network.extra=7"])
    assert any(getattr(m, "extra", 0) == 7 for m in cli.objects().model.modules())
    saved = written(cli.resolved(), marker.parent / "saved.yaml")
    assert ExperimentCLI([f"--config={saved}"]).resolved() == cli.resolved()


# --- interpolation ---


def interpolated(marker: Path, **values: str) -> ExperimentCLI:
    config = {
        "model": {"class_path": "DDPM", "init_args": {"warmup": values.pop("warmup", 0)}},
        "data": {"source": "Digits"},
        "budget": {"num_images": 640},
        "run": {"root": "somewhere", **({"name": values.pop("name")} if "name" in values else {})},
        "wandb": values,
    }
    return ExperimentCLI([f"--config={written(config, marker.parent / 'theirs.yaml')}"])


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"name": "${oc.env:SECRET}"}, "run.name"),
        ({"name": "x-${oc.env:SECRET,none}-y"}, "run.name"),
        ({"name": "${oc.env:${wandb.group}}", "group": "SECRET"}, "run.name"),
        ({"name": "${oc.decode:'{a: 1}'}"}, "run.name"),
        ({"name": "${oc.select:run.root}"}, "run.name"),
        ({"group": "${mine:1}"}, "wandb.group"),
        ({"group": "${no_such:1}"}, "wandb.group"),
        ({"warmup": "${budget.images}"}, "model.warmup"),
        ({"warmup": "${.....}"}, "model.warmup"),
        ({"name": "${wandb.group}", "group": "${run.name}"}, "run.name"),
        ({"name": "a${b"}, "run.name"),
        ({"name": "${}"}, "run.name"),
        ({"warmup": "${run.root}"}, "model.warmup"),
        ({"warmup": "${data}"}, "model.warmup"),
    ],
)
def test_an_interpolation_names_a_key_and_nothing_else(
    values: dict[str, str], key: str, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "5ecret")
    OmegaConf.register_new_resolver("mine", lambda x: marker.touch())
    try:
        with pytest.raises(UserError) as error:
            interpolated(marker, **values)
    finally:
        assert OmegaConf.clear_resolver("mine"), "those of other code stay as they were"
    assert str(error.value).startswith(f"{key}: ")
    assert "\n" not in str(error.value)
    assert "5ecret" not in str(error.value)
    assert not marker.exists()


def test_no_environment_by_a_text_within_a_text(marker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "5ecret")
    words = arguments("DDPM", marker.parent, 64, '--first_stage.run_overrides={"a": "\\u0024{oc.env:SECRET}"}')
    with pytest.raises(UserError, match=r"^first_stage.run_overrides.a: Unsupported interpolation type oc.env"):
        ExperimentCLI(words)
    with pytest.raises(UserError, match=r"^run.name: Unsupported interpolation type oc.env"):
        ExperimentCLI([*arguments("DDPM", marker.parent), "--run.name=${oc.env:SECRET}"])


def test_keys_are_filled_in(marker: Path) -> None:
    config = interpolated(marker, warmup="${budget.num_images}", name="at-${.root}-${data.batch_size}").config
    assert (config.model.init_args.warmup, config.run.name) == (640, "at-somewhere-128")


# --- files ---

BOMB = "\n".join(["a0: &a0 [x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10))])


def a_fifo(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (a_fifo, "not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
        (lambda path: path.write_text(BOMB), "100,000 keys and values"),
        (lambda path: path.write_text("a: &a [*a]"), "contains itself"),
        (lambda path: path.write_text("[" * 3000), "50 nested lists and mappings"),
        (lambda path: path.write_text("class_path: DDPM\nclass_path: EDM"), "line 2: class_path is given twice"),
        (lambda path: path.write_bytes(b"class_path: \xff"), "not UTF-8"),
        (lambda path: path.write_text("#" * 2**20 + "\n"), "1,048,576 bytes"),
        (lambda path: path.write_text("a: !!python/object/apply:os.getcwd []"), "not valid YAML"),
        (lambda path: path.write_text("{class_path: DDPM, other: bad.yaml}"), "includes itself"),
    ],
)
@pytest.mark.parametrize("how", ["config", "group", "within", "argument"])
def test_a_file_that_cannot_be_a_configuration_is_named(
    how: str, make: Callable[[Path], object], reason: str, marker: Path
) -> None:
    make(bad := marker.parent / "bad.yaml")
    config = {"model": "bad.yaml"} if how == "group" else {"model": {"init_args": {"network": "bad.yaml"}}}
    good = written(config, marker.parent / "good.yaml")
    with pytest.raises(UserError) as error:
        check_argument(f"--model={bad}") if how == "argument" else check_config(bad if how == "config" else good)
    assert reason in str(error.value)
    assert "bad.yaml" in str(error.value)
    assert "\n" not in str(error.value)


def test_the_parser_does_not_see_such_a_file(marker: Path) -> None:
    os.mkfifo(marker.parent / "pipe")
    for words in (["--config=pipe"], ["--sampler=pipe"], ["--model=DDPM", "--model.network=pipe"]):
        with pytest.raises(UserError, match="pipe is not a regular file|pipe: not a regular file"):
            ExperimentCLI(words)
    with pytest.raises(UserError, match=r"^nothing.yaml: not found"):
        ExperimentCLI(["--config=nothing.yaml"])
    with pytest.raises(UserError, match=r"not a regular file"):
        ExperimentCLI([f"--config={marker.parent}"])


def test_bombs_within_a_value_are_not_expanded(marker: Path) -> None:
    for key in ("data.batch_size", "run.name", "sampler", "first_stage.run_overrides", "model.network.channel_mult"):
        value = "{" + BOMB.replace("\n", ", ") + "}"
        try:
            ExperimentCLI([*arguments("DDPM", marker.parent), f"--{key}={value}"])
        except UserError as error:
            assert len(str(error)) < 5000


def test_classes_within_each_other_have_an_end(marker: Path) -> None:
    """The parser doubles its work with each, so it must not see many, in one file or in several."""
    source: Any = "Digits"
    for _ in range(20):
        source = {"class_path": "Binarised", "init_args": {"source": source}}
    file = written({"model": "DDPM", "data": {"source": source}}, marker.parent / "deep.yaml")
    for number in range(30):
        written({"class_path": "Binarised", "init_args": {"source": f"s{number + 1}.yaml"}}, Path(f"s{number}.yaml"))
    chain = written({"model": "DDPM", "data": {"source": "s0.yaml"}}, marker.parent / "chain.yaml")
    for words in ([f"--config={file}"], [f"--config={chain}"], ["--data.source=s0.yaml"]):
        with pytest.raises(UserError, match="more than 16 levels, the limit"):
            ExperimentCLI(words)


@pytest.mark.parametrize("key", ["first_stage.run", "reflow.teacher"])
def test_an_experiment_that_builds_on_itself_is_refused(
    key: str, marker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, section = {"first_stage.run": ("EDM", "first_stage"), "reflow.teacher": ("RectifiedFlow", "reflow")}[key]
    config = ExperimentCLI(arguments(model, marker.parent / "runs", 64)).resolved()
    for name, other in {"a": "b", "b": "a"}.items():
        config[section][key.partition(".")[2]] = f"{other}.yaml"
        written(config, marker.parent / f"{name}.yaml")
    assert "leads back to itself" in refused(["fit", "--config=a.yaml"], capsys)
    assert not (marker.parent / "runs").exists()
