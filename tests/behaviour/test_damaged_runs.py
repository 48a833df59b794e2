"""Checkpoints, run.json, snapshots and kept likelihoods that are damaged: one line names file and field."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lit_gen.core.errors import UserError
from lit_gen.evaluation.result_file import LikelihoodRecord, LikelihoodScores, load_likelihood, save_likelihood
from lit_gen.experiment.loading import read_checkpoint
from lit_gen.runs.directory import Run
from lit_gen.runs.weights import Width, find_snapshots, reconstruct

WEIGHTS = {"a": torch.ones(3), "b": torch.tensor(2)}
CHECKPOINT: dict[str, Any] = {
    "images_seen": 64,
    "batches_seen": 1,
    "state_dict": WEIGHTS,
    "ema": {"num_updates": 1, "weights": WEIGHTS, "power": {0.1: WEIGHTS}},
    "world_size": 1,
    "optimizer_states": [{"state": {}}],
    "loops": {},
}


WRONG_CHECKPOINTS: dict[str, list[Any]] = {
    "images_seen": [None, -1, 1.5, True, "64", 2**63, torch.tensor(64)],
    "state_dict": [
        *(None, [], {"a": 1.0}, {0: torch.ones(1)}, {"a": torch.tensor([1.0, float("nan")])}),
        *({"a": torch.ones(2, dtype=torch.complex64)}, {"a": torch.ones(2).to_sparse()}),
        {"a": torch.ones(2, device="meta")},
    ],
    "ema": [[], {"weights": [1]}, {"weights": {"a": "b"}}, {"num_updates": "1"}],
    "world_size": [0, "1", None],
    "optimizer_states": [{}, [1]],
    "loops": [[], 3],
}
WRONG_RUNS: dict[str, list[Any]] = {
    "identity": [None, 3, [], "\x1b[31m"],
    "seed": [None, "0", -1, 10**30],
    "training_seconds": ["60", -1.0, float("nan"), 1e999, []],
    "training_flops": ["1e9", -1.0],
    "images_seen": [1.5, "64", -3],
    "title": [None, {}, "a\nb", "x" * 5000],
    "data": [[], "digits", {"name": 3}, {"image_shape": [1, 2**40, 8]}, {"num_classes": 10**9}],
    "packages": [[], {"torch": None}, "torch"],
    "git_dirty": ["no", 3],
}


def cases(wrong: dict[str, list[Any]]) -> list[Any]:
    return [pytest.param(key, value, id=f"{key}{place}") for key in wrong for place, value in enumerate(wrong[key])]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "run")
    run.create({}, identity="a" * 64, recipe="b" * 64, seed=0, title="VAE", data={"name": "digits"})
    run.checkpoint.parent.mkdir(parents=True, exist_ok=True)
    torch.save(CHECKPOINT, run.checkpoint)
    return run


@pytest.mark.parametrize(("key", "value"), cases(WRONG_CHECKPOINTS))
def test_a_checkpoint_of_other_things_is_refused(run: Run, key: str, value: Any) -> None:
    assert read_checkpoint(run)["images_seen"] == 64
    torch.save(CHECKPOINT | {key: value}, run.checkpoint)
    with pytest.raises(UserError, match=rf"last\.ckpt: .*{key}|not a readable checkpoint") as error:
        read_checkpoint(run)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_older_checkpoints_are_read(run: Run) -> None:
    """With infinite buffers, such as masks have, and without what came later."""
    older = {"images_seen": 0, "state_dict": {"mask": torch.tensor([0.0, -torch.inf])}}
    torch.save(older, run.checkpoint)
    assert read_checkpoint(run)["state_dict"]["mask"][1] == -torch.inf
    for other in ([older], "text", torch.ones(1)):
        torch.save(other, run.checkpoint)
        with pytest.raises(UserError, match="not a lit-gen checkpoint"):
            read_checkpoint(run)


@pytest.mark.parametrize(("key", "value"), cases(WRONG_RUNS))
def test_a_wrong_field_of_run_json_is_named(run: Run, key: str, value: Any) -> None:
    good = run.metadata
    assert good["title"] == "VAE" and not run.finished
    run.metadata_path.write_text(json.dumps(good | {key: value}))
    with pytest.raises(UserError, match=rf"run\.json: .*({key}|not valid JSON)") as error:
        run.finished  # noqa: B018
    assert "\n" not in str(error.value) and "\x1b" not in str(error.value) and len(str(error.value)) < 500
    for needed in ("identity", "recipe", "seed", "status"):
        run.metadata_path.write_text(json.dumps({name: of for name, of in good.items() if name != needed}))
        with pytest.raises(UserError, match=rf"run\.json: {needed}: missing"):
            run.metadata  # noqa: B018


def test_a_run_json_that_is_no_file_is_named(run: Run) -> None:
    run.metadata_path.unlink()
    assert run.metadata == {}
    os.mkfifo(run.metadata_path)
    with pytest.raises(UserError, match="not a regular file"):
        run.metadata  # noqa: B018


def test_snapshots_that_are_none_are_left_alone(run: Run) -> None:
    folder = run.snapshots
    folder.mkdir(parents=True)
    for images in (64, 128):
        save_file({"w": torch.full((2,), float(images))}, folder / f"{images:09d}-0.1.safetensors")
    for name in ("0-0.1", "000000192-nan", "000000192-inf", "x-0.1", "000000192-0.1.0", "9" * 30 + "-0.1"):
        shutil.copy(folder / "000000064-0.1.safetensors", folder / f"{name}.safetensors")
    os.mkfifo(folder / "000000256-0.1.safetensors")
    assert [(snapshot.images, snapshot.std) for snapshot in find_snapshots(run)] == [(64, 0.1), (128, 0.1)]
    path, _ = reconstruct(run, Width(0.1))
    assert path.is_file()
    save_file({"w": torch.ones(3)}, folder / "000000064-0.1.safetensors")
    with pytest.raises(UserError, match="another network"):
        reconstruct(run, Width(0.1))
    save_file({"w": torch.ones(2)}, folder / "000000192-9.5.safetensors")
    with pytest.raises(UserError, match=r"000000192-9\.5\.safetensors: 9.5 is not"):
        find_snapshots(run)


def test_a_kept_likelihood_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "likelihood-0.json"
    record = {"protocol": {"kind": "exact", "num_images": 4, "method": None}, "nfe": 1.0}
    metrics = {"bits_per_dim": 2.5, "bits_per_dim_stderr": float("nan")}
    save_likelihood(path, LikelihoodScores(metrics=metrics, likelihood=LikelihoodRecord.from_dict(record)))
    assert load_likelihood(path).likelihood.to_dict() == record
    damages: list[Any] = [{}, {"metrics": {}}, {"metrics": {"a": "b"}, "likelihood": record}]
    for wrong in [*damages, {"metrics": {}, "likelihood": None}]:
        path.write_text(json.dumps(wrong))
        with pytest.raises(UserError, match=r"likelihood-0\.json: (metrics|likelihood)"):
            load_likelihood(path)
