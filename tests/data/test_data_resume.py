"""A run resumed from any checkpoint sees the batches that the uninterrupted run would have seen."""

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_gen.core.errors import UserError
from lit_gen.data import Batch, Digits, ImageDataModule

BATCH = 320  # 1,342 training images: 4 batches an epoch

pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed")


class Recorder(LightningModule):
    """Notes each batch it gets; stops with an error before training step `fail_at`."""

    def __init__(self, fail_at: int | None = None, folder: Path | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.fail_at = fail_at
        self.folder = folder
        self.events: list[tuple[Any, ...]] = []

    def _note(self, kind: str, batch: Batch) -> None:
        pixels = hashlib.sha256(batch.images.numpy().tobytes()).hexdigest()
        self.events.append((kind, self.current_epoch, batch.index.tolist(), pixels))

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        if self.fail_at is not None and self.global_step == self.fail_at:
            raise InterruptedError
        self._note("train", batch)
        return self.weight * batch.images.mean()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._note("val", batch)

    def on_fit_end(self) -> None:
        if self.folder is not None:  # processes of their own hand their events back in files
            (self.folder / f"rank{self.global_rank}.json").write_text(json.dumps(self.events))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def data(num_workers: int = 0, **changes: Any) -> ImageDataModule:
    settings = {"batch_size": BATCH, "flip": True, "num_val": 100, "num_workers": num_workers, "seed": 3}
    return ImageDataModule(Digits(), **(settings | changes))


def fit(
    folder: Path,
    module: Recorder,
    datamodule: ImageDataModule,
    ckpt_path: Path | None = None,
    checkpoint: dict[str, Any] | None = None,
    **settings: Any,
) -> list[tuple[Any, ...]]:
    save = {"every_n_train_steps": 1} if checkpoint is None else checkpoint
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".*(does not have many workers|checkpoint directory|logging interval).*"
        )
        warnings.filterwarnings("error", message=".*not resumable.*")
        trainer = Trainer(
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
            callbacks=[ModelCheckpoint(folder, filename="{step}", save_top_k=-1, **save)],
            **settings,
        )
        trainer.fit(module, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=True)
    return module.events


def train_events(events: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return [event for event in events if event[0] == "train"]


def steps_and_validations(events: list[tuple[Any, ...]]) -> list[str]:
    return [kind for kind, *_ in events]


def checkpoints(folder: Path) -> list[tuple[int, Path]]:
    return sorted((int(path.stem.split("=")[1]), path) for path in folder.glob("*.ckpt"))


@pytest.mark.parametrize(
    "settings",
    [
        {"max_epochs": 3},
        {"max_steps": 10, "max_epochs": -1},
        {"max_epochs": 3, "limit_train_batches": 3},
        {"max_epochs": 2, "val_check_interval": 2},
        {"max_epochs": 2, "reload_dataloaders_every_n_epochs": 1},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_resume_from_every_step(tmp_path: Path, settings: dict[str, Any]) -> None:
    whole = fit(tmp_path / "a", Recorder(), data(), **settings)
    trained = train_events(whole)
    saved = checkpoints(tmp_path / "a")
    assert [step for step, _ in saved] == list(range(1, len(trained) + 1))
    assert len({event[3] for event in trained}) == len(trained)  # no batch comes twice
    for step, path in saved:
        rest = fit(tmp_path / "b", Recorder(), data(), path, **settings)
        assert train_events(rest) == trained[step:], f"resumed after step {step}"


def test_resume_from_every_step_in_parts(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"max_epochs": 3, "accumulate_grad_batches": 2}
    trained = train_events(fit(tmp_path / "a", Recorder(), data(), **settings))
    whole = train_events(fit(tmp_path / "whole", Recorder(), data(), max_epochs=3))
    assert [one[2] + other[2] for one, other in zip(trained[::2], trained[1::2], strict=True)] == [e[2] for e in whole]
    saved = checkpoints(tmp_path / "a")
    assert [step for step, _ in saved] == list(range(1, len(whole) + 1))
    for step, path in saved:
        rest = fit(tmp_path / "b", Recorder(), data(), path, **settings)
        assert train_events(rest) == trained[2 * step :], f"resumed after step {step}"


@pytest.mark.parametrize(
    "when", [{"save_on_train_epoch_end": True, "every_n_epochs": 1}, {"save_on_train_epoch_end": False}]
)
def test_resume_from_the_end_of_epochs_and_validations(tmp_path: Path, when: dict[str, Any]) -> None:
    settings: dict[str, Any] = (
        {"max_epochs": 3, "val_check_interval": 3} if "every_n_epochs" not in when else {"max_epochs": 3}
    )
    trained = train_events(fit(tmp_path / "a", Recorder(), data(), checkpoint=when, **settings))
    saved = checkpoints(tmp_path / "a")
    assert len(saved) == 3
    for step, path in saved:
        rest = fit(tmp_path / "b", Recorder(), data(), path, checkpoint=when, **settings)
        assert train_events(rest) == trained[step:], f"resumed after step {step}"


@pytest.mark.parametrize("val_check_interval", [1.0, 2])
def test_validations_come_after_the_same_steps(tmp_path: Path, val_check_interval: float) -> None:
    settings: dict[str, Any] = {"max_epochs": 2, "val_check_interval": val_check_interval}
    whole = fit(tmp_path / "a", Recorder(), data(), **settings)
    for step, path in checkpoints(tmp_path / "a"):
        if step in (1, 3, 5, 7):  # no validation is due right after these
            done = [i for i, kind in enumerate(steps_and_validations(whole)) if kind == "train"][step - 1] + 1
            rest = fit(tmp_path / "b", Recorder(), data(), path, **settings)
            assert steps_and_validations(rest) == steps_and_validations(whole)[done:], f"resumed after step {step}"


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_killed_run_goes_on_with_workers(tmp_path: Path, num_workers: int) -> None:
    """Checkpoints every third step; the run dies at step 7, in the middle of the second epoch, one step after one."""
    whole = train_events(fit(tmp_path / "a", Recorder(), data(), max_epochs=3))
    every_third = {"every_n_train_steps": 3}
    killed = Recorder(fail_at=7)
    with pytest.raises(InterruptedError):
        fit(tmp_path / "b", killed, data(num_workers), checkpoint=every_third, max_epochs=3)
    step, path = checkpoints(tmp_path / "b")[-1]
    assert step == 6
    rest = fit(tmp_path / "b", Recorder(), data(num_workers), path, checkpoint=every_third, max_epochs=3)
    assert train_events(killed.events)[:step] + train_events(rest) == whole


def test_epochs_differ_and_seeds_differ(tmp_path: Path) -> None:
    first = train_events(fit(tmp_path, Recorder(), data(), max_epochs=2))
    other = train_events(fit(tmp_path, Recorder(), data(seed=4), max_epochs=1))
    assert first[0][2] != first[4][2]
    assert first[0][2] != other[0][2]


def test_another_batch_size_is_refused(tmp_path: Path) -> None:
    fit(tmp_path, Recorder(), data(), max_epochs=1)
    with pytest.raises(UserError, match=r"batch_size 320 -> 160.*resume with the settings"):
        fit(tmp_path, Recorder(), data(batch_size=160), checkpoints(tmp_path)[1][1], max_epochs=2)


def test_another_number_of_parts_is_refused(tmp_path: Path) -> None:
    fit(tmp_path, Recorder(), data(), max_epochs=1)
    (_, path), *_ = checkpoints(tmp_path)
    refused = r"accumulate_grad_batches 1 -> 2.*resume with the settings under data and trainer"
    with pytest.raises(UserError, match=refused):
        fit(tmp_path, Recorder(), data(), path, max_epochs=2, accumulate_grad_batches=2)
    loader = data().train_dataloader()
    loader.load_state_dict({key: value for key, value in loader.state_dict().items() if "accumulate" not in key})


@pytest.mark.slow
def test_two_processes_share_the_order_of_one_and_resume(tmp_path: Path) -> None:
    two: dict[str, Any] = {"strategy": "ddp_fork", "devices": 2, "max_epochs": 2}

    def run(name: str, ckpt_path: Path | None = None) -> list[list[list[Any]]]:
        (tmp_path / name).mkdir()
        fit(tmp_path / "checkpoints" / name, Recorder(folder=tmp_path / name), data(), ckpt_path, **two)
        return [json.loads((tmp_path / name / f"rank{rank}.json").read_text()) for rank in (0, 1)]

    def indices(events: list[list[Any]], kind: str) -> list[list[int]]:
        return [event[2] for event in events if event[0] == kind]

    one = fit(tmp_path / "one", Recorder(), data(), max_epochs=2)
    ranks = run("two")
    for kind in ("train", "val"):
        shares = zip(*(indices(events, kind) for events in ranks), strict=True)
        assert [first + second for first, second in shares] == indices([list(event) for event in one], kind)
    step, path = checkpoints(tmp_path / "checkpoints" / "two")[2]
    for rest, whole in zip(run("resumed", path), ranks, strict=True):
        assert [event for event in rest if event[0] == "train"] == [e for e in whole if e[0] == "train"][step:]
