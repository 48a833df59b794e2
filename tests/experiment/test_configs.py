"""Every YAML under conf/ and sweeps/ is built; the slow tests also train and sample each of them."""

import gzip
import json
import pickle
import struct
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from jsonargparse import Namespace

from lit_gen.cli import commands
from lit_gen.evaluation import evaluate
from lit_gen.experiment.identity import training_identity
from lit_gen.experiment.parser import ExperimentCLI
from lit_gen.runs.directory import Run
from lit_gen.sweeps import Trial
from tests.conftest import DIGITS, OTHER_DATA, ROOT, TINY
from tests.sweeps.example_trials import example_trials

IDENTITIES: dict[str, str] = json.loads((ROOT / "tests" / "behaviour" / "golden" / "identities.json").read_text())
"""Of the experiments, for the fingerprint "images"; computed before the package had its present layout."""
CONF = ROOT / "conf"
SMALL = {
    "ConvCoupling": ["--model.network.channels=8", "--model.network.num_blocks=1"],
    "NADENetwork": ["--model.network.hidden=8"],
    "MaskedMLP": ["--model.network.hidden=[8]"],
    "GatedPixelCNN": [
        "--model.network.channels=12",
        "--model.network.num_layers=1",
        "--model.network.head_channels=12",
    ],
    "ConvEncoder": ["--model.encoder.channels=8", "--model.decoder.channels=8"],
    "ResidualPixelCNN": ["--model.network.channels=8", "--model.network.num_blocks=1"],
    "ConvAutoencoder": ["--model.network.channels=8", "--model.network.num_blocks=1"],
    "TokenTransformer": ["--model.network.width=16", "--model.network.depth=1", "--model.network.num_heads=2"],
    "CausalTransformer": ["--model.network.width=16", "--model.network.depth=1", "--model.network.num_heads=2"],
}


def files(folder: str) -> list[str]:
    return sorted(path.stem for path in (ROOT / folder).glob("*.yaml"))


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small Fashion-MNIST and CIFAR-10 files in the official formats."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for part, n in (("train", 640), ("t10k", 64)):
        images, labels = rng.integers(0, 256, (n, 28, 28), np.uint8), rng.integers(0, 10, n, np.uint8)
        with gzip.open(root / f"{part}-images-idx3-ubyte.gz", "wb") as file:
            file.write(struct.pack(">IIII", 2051, n, 28, 28) + images.tobytes())
        with gzip.open(root / f"{part}-labels-idx1-ubyte.gz", "wb") as file:
            file.write(struct.pack(">II", 2049, n) + labels.tobytes())
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        batch = {"data": rng.integers(0, 256, (128, 3072), np.uint8), "labels": rng.integers(0, 10, 128).tolist()}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    return root


@cache
def experiment(path: Path) -> ExperimentCLI:
    return ExperimentCLI([f"--config={path}"])


def num_batches(cli: ExperimentCLI) -> int:
    """Two, or as many as it takes until each of two networks has had a step."""
    settings = cli.config.model.init_args
    return max(2, settings.get("critic_steps") or 0, settings.get("discriminator_steps") or 0)


def official_source(cli: ExperimentCLI) -> tuple[Namespace, str] | None:
    """The settings of the source of official files, and their key; None if there is none."""
    source, key = cli.config.data.source, "data.source"
    while "source" in source.get("init_args", {}):
        source, key = source.init_args.source, f"{key}.source"
    return (source, key) if source.class_path.rsplit(".")[-1] in ("MNIST", "FashionMNIST", "CIFAR10") else None


def shrunk(path: Path, root: Path, data_root: Path) -> list[str]:
    """The arguments that make an experiment short, on the CPU, in its own precision, with a small network.

    Two batches of few images, or as many as it takes until each of two networks has had a step.
    """
    config = yaml.safe_load(path.read_text())
    cli = experiment(path)
    batch_size = min(config["data"]["batch_size"], 8)
    words = [
        f"--run.root={root}",
        f"--budget.num_images={num_batches(cli) * batch_size}",
        f"--data.batch_size={batch_size}",
        "--trainer.accelerator=cpu",
        "--grid.num_samples=0",
        "--wandb.mode=disabled",
    ]
    if official := official_source(cli):
        words += [f"--{official[1]}.root={data_root}", f"--{official[1]}.checksum=false"]
    network = cli.config.model.init_args.get("network") or cli.config.model.init_args.get("encoder")
    if network and network.class_path.endswith("UNet") and not path.name.startswith("digits"):
        words.append("--model.network.channels=8")
    if network and not path.name.startswith(("digits", "binary_digits")):
        words += SMALL.get(network.class_path.rsplit(".")[-1], [])
    if not path.name.startswith("digits"):
        for part in ("generator", "critic", "discriminator"):
            if "channels" in (cli.config.model.init_args.get(part) or {}).get("init_args", {}):
                words.append(f"--model.{part}.channels=8")
        if cli.config.model.class_path.endswith(".Glow"):
            words.append("--model.num_steps=2")
    if "reflow" in config:
        teacher = ROOT / config["reflow"]["teacher"]
        run = commands.fit([f"--config={teacher}", *shrunk(teacher, root, data_root)])
        words += [f"--reflow.teacher={run.directory}", "--reflow.num_pairs=16", "--reflow.sampler=Euler"]
        words.append("--reflow.sampler.steps=1")
    if "first_stage" in config:
        first = ROOT / config["first_stage"]["run"]
        overrides = [f"--{key}={value}" for key, value in config["first_stage"].get("run_overrides", {}).items()]
        run = commands.fit([f"--config={first}", *overrides, *shrunk(first, root, data_root)])
        words += [f"--first_stage.run={run.directory}", "--first_stage.run_overrides=null"]
    return words


def test_every_experiment_has_an_identity() -> None:
    """A new experiment is added with the identity that it has then."""
    assert {f"{name}.yaml" for name in files("conf/experiment")} == IDENTITIES.keys()


def kind(name: str) -> tuple[Any, ...]:
    """What of an experiment its training goes through: its classes and the stages before it."""
    config = yaml.safe_load((CONF / "experiment" / f"{name}.yaml").read_text())
    settings = config["model"].get("init_args", {}) if isinstance(config["model"], dict) else {}
    parts = [config["model"], *(settings.get(key) for key in ("network", "encoder", "generator"))]
    classes = [part["class_path"] if isinstance(part, dict) else part for part in parts]
    return (*classes, "first_stage" in config, "reflow" in config)


def one_of_each_kind(further: pytest.MarkDecorator) -> list[Any]:
    """The experiments, the small ones on digits first; the further ones of a kind have the mark."""
    names, seen = sorted(files("conf/experiment"), key=lambda name: ("digits" not in name, name)), set()
    params = []
    for name in names:
        params.append(pytest.param(name, marks=[further] if kind(name) in seen else []))
        seen.add(kind(name))
    return params


@pytest.mark.parametrize("name", one_of_each_kind(pytest.mark.slow))
def test_experiment_is_built(name: str, data_root: Path) -> None:
    """At its full size, with the values that the file gives."""
    path = CONF / "experiment" / f"{name}.yaml"
    cli = ExperimentCLI([f"--config={path}"])
    assert training_identity(cli.resolved(), "images") == IDENTITIES[f"{name}.yaml"], "a run is found by its identity"
    if official := official_source(cli):
        official[0].init_args.root, official[0].init_args.checksum = str(data_root), False
    objects, given = cli.objects(), yaml.safe_load(path.read_text())
    assert type(objects.model).__name__ == cli.config.model.class_path.rpartition(".")[2]
    assert sum(weight.numel() for weight in objects.model.parameters()) > 0
    assert objects.data.batch_size == given["data"]["batch_size"]
    assert objects.budget.num_images == given["budget"]["num_images"]
    objects.model.check_data(objects.data)
    objects.model.check_optimizers()
    objects.model.rehearse(objects.sampler)


@pytest.mark.slow
@pytest.mark.parametrize("name", one_of_each_kind(pytest.mark.exhaustive))
def test_experiment_trains(name: str, tmp_path: Path, data_root: Path) -> None:
    path = CONF / "experiment" / f"{name}.yaml"
    run = commands.fit([f"--config={path}", *shrunk(path, tmp_path, data_root)])
    assert run.finished and cost_is_known(run)
    config, saved = (yaml.safe_load(file.read_text()) for file in (path, run.config))
    batches = num_batches(experiment(path))
    assert run.metadata["images_seen"] == batches * min(config["data"]["batch_size"], 8)
    assert saved["trainer"]["precision"] == config.get("trainer", {}).get("precision")


def cost_is_known(run: Run) -> bool:
    """Return whether the FLOPs of a training run were counted; planar and radial flows multiply no matrices."""
    return run.metadata["training_flops"] > 0 or run.metadata["title"] in ("PlanarFlow", "RadialFlow")


def model_words(path: Path, root: Path) -> list[str]:
    """The arguments of a short training of a model's file; networks that the file names stay, with few channels."""
    settings = yaml.safe_load(path.read_text())
    model, own = settings["class_path"], settings.get("init_args", {})
    small = [
        word
        for word in TINY[model]
        if word != f"--model={model}" and not any(word.startswith(f"--model.{key}=") for key in own)
    ]
    return [f"--model={path}", *small, *DIGITS, *OTHER_DATA.get(model, []), f"--run.root={root}"]


def assert_holds(built: ExperimentCLI, path: Path) -> None:
    """The values of a model's file are those of a configuration."""
    settings = built.config.model.init_args
    for key, value in yaml.safe_load(path.read_text()).get("init_args", {}).items():
        if isinstance(value, dict):
            assert settings[key].class_path.endswith(value["class_path"]), key
        elif isinstance(value, str) and hasattr(settings[key], "class_path"):
            assert settings[key].class_path.endswith(value), key
        else:
            assert settings[key] == value, key


@pytest.mark.parametrize("name", files("conf/model"))
def test_model_is_built(name: str, tmp_path: Path) -> None:
    path = CONF / "model" / f"{name}.yaml"
    cli = ExperimentCLI(model_words(path, tmp_path))
    assert_holds(cli, path)
    if "first_stage" not in " ".join(model_words(path, tmp_path)):  # one that follows a stage needs it to be trained
        assert sum(weight.numel() for weight in cli.objects().model.generator.parameters()) > 0


def with_settings_of_its_own(name: str) -> bool:
    """Whether a model's file says more than the class, which tests/families/test_all_families.py trains."""
    return "init_args" in yaml.safe_load((CONF / "model" / f"{name}.yaml").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        name if with_settings_of_its_own(name) else pytest.param(name, marks=pytest.mark.exhaustive)
        for name in files("conf/model")
    ],
)
def test_model_trains_a_step(name: str, tmp_path: Path) -> None:
    path = CONF / "model" / f"{name}.yaml"
    words = model_words(path, tmp_path)
    run = commands.fit([*words, f"--budget.num_images={64 * num_batches(ExperimentCLI(words))}"])
    assert run.finished and cost_is_known(run)
    assert_holds(ExperimentCLI(["--config", str(run.config)]), path)


@pytest.mark.parametrize("name", files("conf/sampler"))
def test_sampler_is_built(name: str) -> None:
    path = CONF / "sampler" / f"{name}.yaml"
    settings = yaml.safe_load(path.read_text())
    words = [f"--config={CONF}/experiment/points_ddpm.yaml", f"--sampler={path}"]
    sampler: Any = ExperimentCLI(words).objects().sampler
    assert type(sampler).__name__ == settings["class_path"]
    written = sampler.to_dict()
    for key, value in settings["init_args"].items():
        held = written[key]["name"] if isinstance(written[key], dict) else written[key]
        assert held == (float(value) if isinstance(held, float) else value), key


@pytest.fixture(scope="module")
def points_ddpm(tmp_path_factory: pytest.TempPathFactory) -> Run:
    small = ["--model.network.width=16", "--model.network.depth=1", "--budget.num_images=64", "--data.batch_size=64"]
    words = [f"--config={CONF}/experiment/points_ddpm.yaml", *small, "--grid.num_samples=0", "--wandb.mode=disabled"]
    return commands.fit([*words, f"--run.root={tmp_path_factory.mktemp('runs')}"])


@pytest.mark.slow
@pytest.mark.parametrize("name", files("conf/sampler"))
def test_sampler_draws(name: str, points_ddpm: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting the operations of an image, which takes longer than all images of a chain of 1000 steps, is left out."""
    monkeypatch.setattr(evaluate, "flops_per_image", lambda sampling: None)
    sampler = CONF / "sampler" / f"{name}.yaml"
    settings = yaml.safe_load(sampler.read_text())
    steps = [str(settings["init_args"]["steps"])] if "steps" in settings["init_args"] else []
    few = ["--evaluation.num_samples=10", "--evaluation.num_kept=10"]
    result = commands.evaluate([str(points_ddpm.directory), *few, f"--sampler={sampler}"])
    assert result.parent.name.startswith("-".join([settings["class_path"], *steps, ""]))


@pytest.mark.parametrize("name", files("conf/trainer"))
def test_trainer_is_accepted(name: str, tmp_path: Path) -> None:
    path = CONF / "trainer" / f"{name}.yaml"
    words = [*TINY["VAE"], *(word for word in DIGITS if "accelerator" not in word), f"--trainer={path}"]
    on_cpu = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.strategy=auto"]
    run = commands.fit([*words, *on_cpu, f"--run.root={tmp_path}", "--budget.num_images=64"])
    assert run.finished
    given = ExperimentCLI(words).resolved()["trainer"]
    for key, value in yaml.safe_load(path.read_text()).items():
        assert given[key] == value


@pytest.mark.parametrize("name", files("conf/data"))
def test_data_is_accepted(name: str) -> None:
    """The sources themselves are read in tests/data."""
    path = CONF / "data" / f"{name}.yaml"
    cli = ExperimentCLI([*TINY["VAE"], f"--data={path}"])
    given = yaml.safe_load(path.read_text())
    assert cli.config.data.batch_size == given["batch_size"]


@pytest.mark.parametrize("name", files("conf/monitor"))
def test_every_monitor_file_is_built(name: str) -> None:
    given = yaml.safe_load((CONF / "monitor" / f"{name}.yaml").read_text())
    words = [*TINY["EDM"], *DIGITS]
    plain, cli = ExperimentCLI(words), ExperimentCLI([*words, f"--monitor={CONF / 'monitor' / name}.yaml"])
    objects = cli.objects()
    monitor = objects.monitor
    assert (monitor.every, monitor.num_samples) == (given["every"], given["num_samples"])
    assert monitor.sampler is not None and monitor.sampler.to_dict()["name"] == given["sampler"]["class_path"]
    monitor.check(objects.evaluation, objects.model, objects.data)
    assert plain.objects().monitor.every == 0, "none by default"
    assert training_identity(cli.resolved(), "images") == training_identity(plain.resolved(), "images")


@pytest.mark.parametrize("name", files("conf/evaluation"))
def test_protocols_are_accepted(name: str) -> None:
    given = yaml.safe_load((CONF / "evaluation" / f"{name}.yaml").read_text())
    words = [f"--evaluation={CONF / 'evaluation' / name}.yaml", "--evaluation.feature_net=DigitsFeatures"]
    digits = [word for word in DIGITS if "evaluation" not in word]
    evaluation = ExperimentCLI([*TINY["VAE"], *digits, *words]).objects().evaluation
    assert (evaluation.num_samples, evaluation.split) == (1000 if name == "copying" else 50_000, "train")
    assert evaluation.metrics is not None
    named = [metric if isinstance(metric, str) else metric["class_path"] for metric in given["metrics"]]
    assert [type(metric).__name__ for metric in evaluation.metrics] == named
    for metric, entry in zip(evaluation.metrics, given["metrics"], strict=True):
        settings = {} if isinstance(entry, str) else entry["init_args"]
        assert metric.settings().items() >= settings.items()


OF_OTHER_TESTS = ("samplers", "diffusion_digits", "ddpm_uniform", "learning_rate")
"""Beginnings of the names of sweeps whose models and samplers other tests run."""


@cache
def trials(name: str) -> Sequence[Trial]:
    return example_trials(ROOT / "sweeps" / f"{name}.yaml")


def in_repository(words: list[str]) -> list[str]:
    return [word.replace("=conf/", f"={CONF}/") for word in words]


@pytest.mark.parametrize(
    "name",
    [name if name.startswith("quickstart") else pytest.param(name, marks=pytest.mark.slow) for name in files("sweeps")],
)
def test_the_trials_of_a_sweep_are_accepted(name: str) -> None:
    """Trials that together hold every value of every parameter are valid experiments."""
    found = trials(name)
    assert len({trial.id for trial in found}) == len(found)
    unseen = {word for trial in found for word in trial.arguments}
    while unseen:
        trial = max(found, key=lambda trial: len(unseen.intersection(trial.arguments)))
        unseen.difference_update(trial.arguments)
        cli = ExperimentCLI(in_repository(trial.arguments))
        sampler = trial.parameters.get("sampler")
        if sampler is not None:
            path = ROOT / sampler
            named = yaml.safe_load(path.read_text())["class_path"] if path.is_file() else sampler
            assert cli.config.sampler.class_path.endswith(f".{named}")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.exhaustive) if name.startswith(OF_OTHER_TESTS) else name
        for name in files("sweeps")
    ],
)
def test_a_trial_of_a_sweep_runs(name: str, tmp_path: Path, data_root: Path) -> None:
    """The last one; that its other experiments can be trained, the tests above show."""
    trial = trials(name)[-1]
    small = [
        *shrunk(ROOT / trial.parameters["config"], tmp_path, data_root),
        "--evaluation.num_samples=4",
        "--evaluation.inception_splits=1",
    ]
    if ExperimentCLI(in_repository(trial.arguments)).config.evaluation.likelihood:
        small.append("--evaluation.likelihood=2")
    result = commands.run([*in_repository(trial.arguments), *small])
    assert Run.open(result.parents[2]).finished
    assert json.loads(result.read_text())["protocol"]["num_samples"] == 4
