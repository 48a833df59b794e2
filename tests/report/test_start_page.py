"""The leaderboard of docs/index.md and its pictures show the same numbers: docs/update_start.py writes them all."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_gen.pictures.figures import numbers_of
from lit_gen.report import plots
from tests.conftest import ROOT
from tests.report.test_leaderboard import DDIM, content, write

spec = importlib.util.spec_from_file_location("update_start", ROOT / "docs" / "update_start.py")
assert spec is not None and spec.loader is not None
update_start = importlib.util.module_from_spec(spec)
spec.loader.exec_module(update_start)

Key = tuple[str, str, float]


def of_table(page: Path) -> dict[Key, str]:
    """Return the distances of the table by model, sampler and evaluations."""
    block = update_start.MARKED.search(page.read_text())[0]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in block.splitlines() if line[:2] == "| "]
    names = [re.sub(r" [↓↑]$", "", name) for name in rows[0]]
    records: list[dict[str, str]] = [dict(zip(names, row, strict=True)) for row in rows[2:]]
    metric = next(name for name in names if name.startswith("fd_digits"))
    rows_of_runs = [row for row in records if row["#"] != "-"]
    assert all(row["#"] == "-" or "±" in row[metric] for row in records) or "held_out" not in metric
    return {(row["model"], row["sampler"], float(row["NFE"])): row[metric].split(" ± ")[0] for row in rows_of_runs}


def of_picture(picture: Path) -> dict[Key, float]:
    """Return the distances of a picture by model, sampler and evaluations."""
    records: list[dict[str, Any]] = numbers_of(picture)
    assert records, f"{picture.name} holds no numbers; run python docs/update_start.py runs/sweeps/quickstart"
    metric = next(name for name in records[0] if name.startswith("fd_digits"))
    return {(row["model"], row["sampler"] or "-", row["nfe"]): row[metric] for row in records}


def check(page: Path, picture: Path) -> None:
    """Assert that a table and a picture hold the same numbers, to the digits of the table."""
    table, drawn = of_table(page), of_picture(picture)
    assert table.keys() == drawn.keys()
    for key, distance in table.items():
        decimals = len(distance.partition(".")[2])
        assert distance == f"{drawn[key]:.{decimals}f}", key


@pytest.mark.parametrize("picture", update_start.PICTURES)
def test_table_and_pictures_agree(picture: str) -> None:
    check(ROOT / "docs" / "index.md", ROOT / "docs" / "images" / picture)


def test_one_command_writes_table_and_pictures(tmp_path: Path) -> None:
    for place, (model, nfe) in enumerate([("EDM", 10), ("EDM", 20), ("DDPM", 10)]):
        sampler = DDIM | {"steps": nfe}
        path = write(tmp_path / "runs", content(model, 12.34567 + place // 2, sampler=sampler, nfe=nfe), f"e{nfe}")
        np.savez(path.with_name("samples.npz"), images=np.zeros((2, 1, 8, 8), np.uint8))
    path = write(tmp_path / "runs", content("VAE", 85.215, sampler=None))
    np.savez(path.with_name("samples.npz"), images=np.zeros((2, 1, 8, 8), np.uint8))
    page = tmp_path / "index.md"
    page.write_text("before\n<!-- leaderboard -->\nold\n<!-- end -->\nafter\n")
    update_start.update(tmp_path / "runs", page, tmp_path)
    text = page.read_text()
    assert text.startswith("before\n<!-- leaderboard -->\ndigits abababab") and text.endswith("<!-- end -->\nafter\n")
    assert "sampling seed 0, weights ema, grid Karras." in text
    assert [line[:5] for line in text.splitlines() if line.startswith("| ")][2:] == ["| 1 |", "| 1 |", "| 3 |", "| 4 |"]
    for picture in update_start.PICTURES:
        assert len(of_picture(tmp_path / picture)) == 4
        check(page, tmp_path / picture)
    page.write_text(text.replace("85.22", "85.23").replace("85.21", "85.23"))
    with pytest.raises(AssertionError, match="VAE"):
        check(page, tmp_path / update_start.PICTURES[0])
    assert numbers_of(plots.training_curves({"a": [(1.0, 2.0)]}, tmp_path / "c.png")) == []
