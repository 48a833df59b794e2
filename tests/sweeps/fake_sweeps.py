"""Sweeps whose trials are those of `fake_run`."""

import json
from collections import Counter
from io import StringIO
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from lit_gen.sweeps import SweepResult, run_sweep

RUNNER = "fake_run:run"


def write(folder: Path, **parameters: object) -> Path:
    path = folder / "s.yaml"
    entries = {
        key: {"values": value} if isinstance(value, list) else {"value": value} for key, value in parameters.items()
    }
    path.write_text(yaml.safe_dump({"name": "demo", "method": "grid", "parameters": entries}, sort_keys=False))
    return path


def sweep(path: Path, root: Path, **options: Any) -> tuple[SweepResult, str]:
    output = StringIO()
    result = run_sweep([path], root, runner=RUNNER, console=Console(file=output, width=200), **options)
    return result, output.getvalue()


def executions(root: Path) -> Counter:
    return Counter(path.name.partition("@")[0] for path in (root / "executions").glob("*"))


def worker_pids(root: Path) -> list[int]:
    return [json.loads(path.read_text())["pid"] for path in (root / "executions").glob("*")]


def read(path: Path) -> dict:
    return json.loads(path.read_text())
