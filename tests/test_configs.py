"""Every YAML under conf/ and sweeps/ is run."""

import gzip
import itertools
import json
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import yaml

from lit_gen import commands
from lit_gen.config import ExperimentCLI
from lit_gen.runs import Run
from lit_gen.sweeps import load_sweep
from tests.conftest import DIGITS, ROOT, TINY, TINY_UNET

CONF = ROOT / "conf"


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


@pytest.mark.parametrize("name", files("conf/experiment"))
def test_experiment_trains_a_step(name: str, tmp_path: Path, data_root: Path) -> None:
    path = CONF / "experiment" / f"{name}.yaml"
    config = yaml.safe_load(path.read_text())
    # the file as it stands is accepted, and its objects can be built
    cli = ExperimentCLI([f"--config={path}"])
    source = cli.config.data.source.class_path.rsplit(".")[-1]
    # the step runs on the CPU, in float32, with few images and a network of the same kind but small
    batch_size = min(config["data"]["batch_size"], 16)
    words = [
        f"--config={path}",
        f"--run.root={tmp_path}",
        f"--budget.num_images={batch_size}",
        f"--data.batch_size={batch_size}",
        "--trainer.accelerator=cpu",
        "--trainer.precision=32-true",
        "--grid.num_samples=0",
        "--wandb.mode=disabled",
    ]
    if source != "Digits":
        words += [f"--data.source.root={data_root}", "--data.source.checksum=false"]
    if cli.config.model.init_args.get("network") and not name.startswith("digits"):
        words.append("--model.network.channels=8")
    run = commands.fit(words)
    assert run.finished
    assert run.metadata["images_seen"] == batch_size


@pytest.mark.parametrize("name", files("conf/model"))
def test_model_trains_a_step(name: str, tmp_path: Path) -> None:
    path = CONF / "model" / f"{name}.yaml"
    model = yaml.safe_load(path.read_text())["class_path"]
    small = [word for word in TINY[model] if word != f"--model={model}"]
    run = commands.fit([f"--model={path}", *small, *DIGITS, f"--run.root={tmp_path}", "--budget.num_images=64"])
    assert run.finished


@pytest.mark.parametrize("name", files("conf/sampler"))
def test_sampler_draws(name: str, tmp_path: Path) -> None:
    words = ["--model=DDPM", *TINY_UNET, *DIGITS, f"--run.root={tmp_path}", "--budget.num_images=64"]
    sampler = CONF / "sampler" / f"{name}.yaml"
    steps = yaml.safe_load(sampler.read_text())["init_args"]["steps"]
    result = commands.run([*words, f"--sampler={sampler}", "--evaluation.num_samples=4"])
    assert f"-{steps}-" in result.parent.name


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


@pytest.mark.parametrize("name", files("sweeps"))
def test_every_trial_of_a_sweep_is_accepted(name: str) -> None:
    """Each trial's arguments are a valid experiment; one trial for each training is also run, small."""
    sweep = load_sweep([ROOT / "sweeps" / f"{name}.yaml"])
    assert len({trial.id for trial in sweep.trials}) == len(sweep.trials)
    for trial in sweep.trials:
        words = [word.replace("=conf/", f"={CONF}/") for word in trial.arguments]
        cli = ExperimentCLI(words)
        for word in words:
            key, _, value = word.removeprefix("--").partition("=")
            if key == "sampler":
                assert cli.config.sampler.class_path.endswith(f".{value}")


@pytest.mark.parametrize("name", files("sweeps"))
def test_one_trial_for_each_training_of_a_sweep_runs(name: str, tmp_path: Path) -> None:
    sweep = load_sweep([ROOT / "sweeps" / f"{name}.yaml"])
    for _, trials in itertools.groupby(sweep.trials, key=lambda trial: trial.parameters["config"]):
        words = [word.replace("=conf/", f"={CONF}/") for word in next(trials).arguments]
        small = ["--budget.num_images=64", "--evaluation.num_samples=4", "--grid.num_samples=0"]
        result = commands.run([*words, *small, f"--run.root={tmp_path}", "--wandb.mode=disabled"])
        assert Run.open(result.parents[2]).finished
        assert json.loads(result.read_text())["protocol"]["num_samples"] == 4
