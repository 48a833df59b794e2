"""`lit-gen export` and `lit-gen import`: the same samples and the same scores, from files that run no code."""

import inspect
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi

import lit_gen
from lit_gen.cli import commands, exchange
from lit_gen.cli.main import main
from lit_gen.core.errors import UserError
from lit_gen.runs.directory import Run
from tests.conftest import TINY, arguments

pytestmark = pytest.mark.slow

HEUN = ["--sampler=Heun", "--sampler.steps=2"]
# "LatentEDM" and "TokenPrior" have a first stage; a GAN has a second network, which is not exported
FAMILIES = ["LatentEDM", "TokenPrior", "GAN", "VQGAN", "VAE", "Glow", "PixelCNN", "PointFlow"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = tmp_path_factory.mktemp("runs")
    return commands.fit(arguments("EDM", root, 128, "--model.class_conditional=true"))


@pytest.fixture(scope="module")
def exported(run: Run) -> Path:
    return export(run, run.directory.parent.parent / "exported")


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def imported(folder: Path, root: Path, *words: str) -> Run:
    return exchange.import_model([str(folder), f"--run.root={root}", *words])


def test_an_exported_model_samples_the_same_bits(run: Run, exported: Path) -> None:
    assert sorted(path.name for path in exported.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    ours, theirs = lit_gen.load(run.directory), lit_gen.load(exported)
    samples = [model.sample(6, seed=3, dtype="float") for model in (ours, theirs)]
    assert torch.equal(*samples)
    assert theirs.module.images_seen == 128 and theirs.classes == ours.classes
    with pytest.raises(UserError, match="weights: raw are not"):
        lit_gen.load(exported, "raw")
    with pytest.raises(UserError, match="an exported model and not a run; make a run of it with lit-gen import"):
        lit_gen.evaluate(theirs)


@pytest.mark.slow
def test_an_imported_run_has_the_same_scores(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = read(commands.evaluate([str(run.directory), *HEUN]))
    exported, moved = export(run, tmp_path / "exported"), tmp_path / "moved"
    card = (exported / "README.md").read_text()
    assert "fd_digits" in card and "24 generated" in card
    shutil.copytree(exported, moved)
    made = imported(moved, tmp_path / "first")
    shutil.rmtree(moved)  # the run needs neither the folder nor its place
    shutil.copytree(made.directory, tmp_path / "runs" / "mine")
    again = read(commands.evaluate([str(tmp_path / "runs" / "mine"), *HEUN]))
    for key in ("metrics", "standard_errors", "nfe", "model", "num_parameters", "images_seen", "protocol", "floors"):
        assert again[key] == result[key], key
    assert again["training_seconds"] == result["training_seconds"]
    assert made.metadata["imported"]["identity"] == run.metadata["identity"] != made.metadata["identity"]
    assert main(["sample", str(made.directory), "-n", "2", "--out", str(tmp_path / "samples.png")]) == 0
    assert imported(exported, tmp_path / "first").directory == made.directory
    assert "imported before" in capsys.readouterr().out


def test_settings_and_card_name_the_model_and_no_place_of_this_machine(run: Run, exported: Path) -> None:
    facts = read(exported / "config.json")
    assert facts["config"]["model"]["class_path"] == "lit_gen.families.diffusion.EDM"
    assert facts["sampler"]["name"] == "Heun" and facts["data"]["name"] == "digits"
    assert sum(facts["data"]["class_counts"]) == 1442
    card = (exported / "README.md").read_text()
    for said in (facts["data"]["fingerprint"], "Not evaluated yet", "lit_gen.load", "lit-gen sample", "128"):
        assert said in card
    assert not any(
        str(run.directory.parent.parent) in (exported / name).read_text() for name in ("config.json", "README.md")
    )


def test_the_export_is_whole_or_not_at_all(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="exists and is not an empty folder"):
        export(run, full)
    assert [path.name for path in full.iterdir()] == ["mine.txt"]

    def fail(*_: Any) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(exchange, "model_card", fail)
    with pytest.raises(KeyboardInterrupt):
        export(run, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def export(run: Run, folder: Path, push: str | None = None) -> Path:
    options = SimpleNamespace(run=run.directory, to=folder, weights="ema", push=push, private=True, format="lit_gen")
    return exchange.export_model(options)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_folder_names_no_place_to_write_to(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
    shutil.copytree(exported, folder)
    changed(config__run={"root": str(elsewhere)}, config__wandb={"mode": "online"})(folder)
    monkeypatch.chdir(tmp_path)
    run = exchange.import_model([str(folder)])
    assert run.directory.parent == Path("runs") and not elsewhere.exists()


class Hub:
    """The two calls of huggingface_hub's HfApi, on this machine."""

    def __init__(self) -> None:
        self.files: dict[str, list[str]] = {}

    def create_repo(self, name: str, private: bool, exist_ok: bool) -> str:
        assert private and exist_ok
        if "/" not in name:
            raise ValueError("no such user")
        return f"https://hub.example/{name}"

    def upload_folder(self, repo_id: str, folder_path: str, commit_message: str) -> None:
        self.files[repo_id] = sorted(path.name for path in Path(folder_path).iterdir())


@pytest.mark.slow
def test_push_uploads_the_folder(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = Hub()
    for name in ("create_repo", "upload_folder"):
        real = inspect.signature(getattr(HfApi, name)).parameters
        assert set(inspect.signature(getattr(hub, name)).parameters) - {"name"} <= set(real)
    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(HfApi=lambda: hub))
    export(run, tmp_path / "one", "me/digits")
    assert hub.files == {"me/digits": ["README.md", "config.json", "model.safetensors"]}
    assert "https://hub.example/me/digits" in capsys.readouterr().out
    with pytest.raises(UserError, match="--push: digits: ValueError: no such user; .*two is written"):
        export(run, tmp_path / "two", "digits")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"--push: huggingface_hub is not installed; pip install 'lit_gen\[hub\]'"):
        export(run, tmp_path / "three", "me/digits")
    assert not (tmp_path / "three").exists()


def shorten_weights(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def changed(**values: Any) -> Callable[[Path], None]:
    """Return what replaces dotted keys of config.json."""

    def change(folder: Path) -> None:
        facts = read(folder / "config.json")
        for key, value in values.items():
            *parents, name = key.split("__")
            place = facts
            for parent in parents:
                place = place[parent]
            place[name] = value
        (folder / "config.json").write_text(json.dumps(facts))

    return change


@pytest.mark.parametrize(
    ("damage", "words", "said"),
    [
        (shorten_weights, [], "not a readable safetensors file"),
        pytest.param(changed(format=7), [], "format 7 is unknown", marks=pytest.mark.slow),
        pytest.param(
            changed(images_seen="many"), [], "images_seen: missing or of a wrong type", marks=pytest.mark.slow
        ),
        (changed(config__model__class_path="os.system"), [], "os.system is of the standard library"),
        pytest.param(
            changed(config__model__init_args__network="torch.hub.load"), [], "torch.hub.load", marks=pytest.mark.slow
        ),
        pytest.param(
            changed(config__model__class_path="lit_gen.families.gan.WGAN"), [], "network", marks=pytest.mark.slow
        ),
        (changed(), ["--model.clip=1"], "model.clip: .* fixes it"),
        pytest.param(
            changed(),
            ["--data.source=TwoMoons"],
            "data.source: its images are 2x1x1, but .* makes 1x8x8",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            changed(),
            ["--data.source=Binarised", "--data.source.source=Digits"],
            "was trained on other images",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_damaged_or_unsuitable_folder_is_one_line(
    damage: Callable[[Path], None], words: list[str], said: str, exported: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(exported, folder)
    damage(folder)
    with pytest.raises(UserError, match=said):
        imported(folder, tmp_path / "runs", *words)
    assert not list((tmp_path / "runs").glob("*/run.json"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [name if name == "LatentEDM" else pytest.param(name, marks=pytest.mark.exhaustive) for name in FAMILIES],
)
def test_every_kind_of_family_survives(name: str, tmp_path: Path) -> None:
    assert name in TINY
    run = commands.fit(arguments(name, tmp_path / "runs", 64))
    folder = export(run, tmp_path / "exported")
    ours, theirs = lit_gen.load(run.directory), lit_gen.load(folder)
    assert torch.equal(*(model.sample(4, dtype="float") for model in (ours, theirs)))
    scores = [
        read(commands.evaluate([str(each.directory)]))["metrics"]
        for each in (run, imported(folder, tmp_path / "again"))
    ]
    assert scores[0] == scores[1]
