"""`lit-gen compare`: two runs, side by side."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_gen.cli.main import main
from lit_gen.runs.differences import Difference, differences, flatten
from lit_gen.runs.directory import Run


def test_keys_are_those_of_the_command_line() -> None:
    config = {
        "model": {"class_path": "EDM", "init_args": {"network": {"class_path": "UNet", "init_args": {"channels": 8}}}},
        "budget": {"seconds": None},
        "list": [{"a": 1}],
        "empty": {},
    }
    expected = {"model": "EDM", "model.network": "UNet", "model.network.channels": 8, "budget.seconds": None}
    assert flatten(config) == expected | {"list": [{"a": 1}], "empty": {}}
    other = {"model": {"class_path": "VAE"}, "budget": {"seconds": 1.0}}
    assert differences(config, other, "model") == [
        Difference("model", "EDM", "VAE"),
        Difference("model.network", "UNet", "-"),
        Difference("model.network.channels", 8, "-"),
    ]


def made(folder: Path, clip: float, torch: str, loss: float) -> Run:
    """Write a run that was not trained."""
    run = Run(folder)
    (folder / "checkpoints").mkdir(parents=True)
    run.checkpoint.touch()
    config = {"model": {"class_path": "M", "init_args": {"clip": clip, "width": 8}}, "run": {"root": str(folder)}}
    run.config.write_text(yaml.safe_dump(config))
    facts: dict[str, Any] = {"identity": folder.name, "recipe": folder.name, "seed": 0, "status": "finished"}
    facts |= {"wandb_id": "x", "packages": {"torch": torch, "numpy": "2.2"}, "images_seen": 64, "git_commit": "abc"}
    run.metadata_path.write_text(json.dumps(facts))
    (folder / "metrics.csv").write_text(f"images,train/loss,train/same\n32,9,1\n64,{loss},2\n")
    return run


def test_what_differs_is_shown_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = made(tmp_path / "one", 1.0, "2.14.1", 0.5), made(tmp_path / "other", 2.0, "2.15.0", 0.25)
    assert main(["compare", str(one.directory), str(other.directory)]) == 0
    text = capsys.readouterr().out
    lines = [line.split() for line in text.splitlines()]
    for line in (["model.clip", "1.0", "2.0"], ["packages.torch", "2.14.1", "2.15.0"], ["train/loss", "0.5", "0.25"]):
        assert line in lines
    assert "one and other: not evaluated" in text
    assert not any(
        key in text for key in ("model.width", "numpy", "git_commit", "train/same", "run.root", "images_seen")
    )
    assert main(["compare", str(one.directory), str(other.directory), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["settings"] == [["model.clip", 1.0, 2.0]]
    shutil.copytree(one.directory, tmp_path / "copy")
    assert main(["compare", str(one.directory), str(tmp_path / "copy")]) == 0
    assert capsys.readouterr().out.count("no difference") == 5
    for words, said in (
        ([str(one.directory), str(one.directory)], "is given twice"),
        ([str(one.directory)], "takes two runs, not 1"),
        ([str(one.directory), str(tmp_path)], "not a run directory"),
    ):
        assert main(["compare", *words]) == 2
        assert said in capsys.readouterr().err
