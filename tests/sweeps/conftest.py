"""Lets the workers of sweeps find the stand-ins for `lit_gen run`."""

import os
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _path_of_the_workers(monkeypatch):
    here = Path(__file__).parent
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(here), str(here.parents[1]), os.environ.get("PYTHONPATH", "")])
    )
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
