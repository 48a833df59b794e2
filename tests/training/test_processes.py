"""Which device a process uses, how many take part, and what the first decides for all."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lit_gen.cli import commands
from lit_gen.core.errors import UserError
from lit_gen.core.trainer_settings import TrainerSettings
from lit_gen.training import processes
from tests.conftest import arguments

LAUNCHERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "TORCHELASTIC_RUN_ID", "SLURM_STEP_NUM_TASKS")


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*LAUNCHERS, "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("devices", "local_rank", "index"),
    [
        *[("auto", 0, 0), ("auto", 1, 1), (1, 0, 0), ("1", 0, 0), (4, 3, 3), (-1, 2, 2), ("-1", 2, 2)],
        *[([1], 0, 1), ("1,", 0, 1), ([5, 2], 0, 5), ([5, 2], 1, 2), ("5, 2", 1, 2)],
    ],
)
def test_a_list_of_devices_names_their_indices(devices: Any, local_rank: int, index: int) -> None:
    assert processes.cuda_index(devices, local_rank) == index


@pytest.mark.parametrize("variable", ["LOCAL_RANK", "SLURM_LOCALID"])
def test_the_device_of_a_process(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = TrainerSettings(accelerator="auto", devices=[3, 1])
    assert processes.device(listed) == torch.device("cpu") or torch.cuda.is_available()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert processes.device(listed) == torch.device("cuda", 3)
    monkeypatch.setenv(variable, "1")
    assert processes.device(listed) == torch.device("cuda", 1)
    assert processes.device(TrainerSettings(accelerator="cpu", devices=[3, 1])) == torch.device("cpu")


def test_mps_is_never_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(processes.MPSAccelerator, "is_available", staticmethod(lambda: False))
    assert [processes.accelerator(asked) for asked in ("auto", "gpu", "cpu")] == ["auto", "gpu", "cpu"]
    monkeypatch.setattr(processes.MPSAccelerator, "is_available", staticmethod(lambda: True))
    assert [processes.accelerator(asked) for asked in ("auto", "cpu", "cuda")] == ["cpu", "cpu", "cuda"]
    for asked in ("mps", "gpu"):
        with pytest.raises(UserError, match=f"trainer.accelerator: {asked} is MPS, .* no float64.*accelerator cpu"):
            processes.accelerator(asked)
    with pytest.raises(UserError, match="trainer.accelerator: mps"):
        commands.fit(arguments("VAE", tmp_path, 64, "--trainer.accelerator=mps"))
    # the Trainer is told the CPU, which it would not choose by itself here
    run = commands.fit(arguments("VAE", tmp_path, 64, "--trainer.accelerator=auto"))
    assert run.metadata["device"].startswith("cpu")


def test_processes_that_were_started_are_those_that_train(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    processes.check_number(1)
    processes.check_number(2)  # Lightning will start the other
    for variables in ({"SLURM_STEP_NUM_TASKS": "2"}, {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2"}):
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            processes.check_number(2)
            for number in (1, 3):
                with pytest.raises(UserError, match=f"trainer.devices: 2 processes were started, .* asks for {number}"):
                    processes.check_number(number)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    with pytest.raises(UserError, match="trainer.devices: 2 processes were started"):
        commands.fit(arguments("VAE", tmp_path, 64))
    assert not list(tmp_path.glob("*/run.json"))


def test_the_first_process(monkeypatch: pytest.MonkeyPatch) -> None:
    assert processes.is_first()
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "0")
            assert processes.is_first()
            patch.setenv(name, "1")
            assert not processes.is_first()
