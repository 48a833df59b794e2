"""Give a sampler what it needs of a trained run: a fit to its images, or a grid that is searched once and kept."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import torch

from lit_gen.core.errors import UserError
from lit_gen.core.files import write_atomically
from lit_gen.core.processes import ranks
from lit_gen.core.records import read_record
from lit_gen.data.module import ImageDataModule
from lit_gen.families.base import GenerativeModel
from lit_gen.families.diffusion.samplers.base import GridSampler
from lit_gen.families.diffusion.searched import Leaps, Searched
from lit_gen.families.settings import Sampler
from lit_gen.runs.directory import Run


def prepare_sampler(
    model: GenerativeModel, sampler: Sampler | None, data: ImageDataModule, run: Run, weights: str
) -> None:
    """Prepare a sampler for a model of a run; the search of a grid is kept in the run and done once.

    Args:
        model: The model, with its weights.
        sampler: The sampler; None for the one way of a family that has no other.
        data: The data of the run.
        run: The run; a search is kept in `grids/KEY.json`, where KEY hashes the weights and the settings of the search.
        weights: Name of the weights.
    """
    grid = sampler.grid if isinstance(sampler, GridSampler) else None
    if not isinstance(grid, Searched):
        model.prepare_sampler(sampler, data)
        return
    assert isinstance(sampler, GridSampler)
    path = run.directory / "grids" / f"{_key(sampler, weights, run)}.json"
    grid.leaps = _read(path, grid.fine + 1)
    if grid.leaps is None:
        model.prepare_sampler(sampler, data)
        assert grid.leaps is not None
        if ranks()[0] == 0:
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, json.dumps(_content(grid.leaps)))
    else:
        model.check_sampler(sampler)


def _key(sampler: GridSampler, weights: str, run: Run) -> str:
    """Return the key of a search, which does not depend on the rule of the sampler or its number of steps."""
    settings = {key: value for key, value in sampler.to_dict().items() if key in ("grid", "schedule", "guidance")}
    settings["grid"].pop("coefficient")
    of = {"weights": weights, "images_seen": run.metadata.get("images_seen"), "search": settings}
    return hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()[:10]


def _content(leaps: Leaps) -> dict[str, Any]:
    rows = [row[index + 1 :].tolist() for index, row in enumerate(leaps.costs[:-1])]
    return {"times": leaps.times.tolist(), "costs": rows, "evaluations": leaps.evaluations}


def _read(path: Path, num_times: int) -> Leaps | None:
    """Return a search that was kept; None if there is none, or its file is damaged."""
    if not path.is_file():
        return None
    try:
        kept = read_record(path, "delete it, and the grid is searched again")
        times = torch.tensor(kept["times"], dtype=torch.float64)
        costs = torch.full((num_times, num_times), math.inf, dtype=torch.float64)
        for index, row in enumerate(kept["costs"]):
            costs[index, index + 1 :] = torch.tensor(row, dtype=torch.float64)
        whole = len(times) == num_times and bool((times.diff() < 0).all()) and len(kept["costs"]) == num_times - 1
        finite = bool(torch.isfinite(costs[costs.triu(1) > 0]).all()) and bool((costs >= 0).all())
        return Leaps(times, costs, int(kept["evaluations"])) if whole and finite else None
    except (UserError, KeyError, TypeError, ValueError, RuntimeError, IndexError):
        return None
