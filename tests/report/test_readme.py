"""README's leaderboard and its pictures show the same numbers: all are written by docs/update_readme.py."""

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

spec = importlib.util.spec_from_file_location("update_readme", ROOT / "docs" / "update_readme.py")
assert spec is not None and spec.loader is not None
update_readme = importlib.util.module_from_spec(spec)
spec.loader.exec_module(update_readme)

Shown = dict[tuple[str, str, float], float]


def of_table(readme: Path) -> Shown:
    """Distances by model, sampler and evaluations."""
    block = update_readme.MARKED.search(readme.read_text())[0]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in block.splitlines() if line[:2] == "| "]
    names = [re.sub(r" [↓↑]$", "", name) for name in rows[0]]
    records: list[dict[str, str]] = [dict(zip(names, row, strict=True)) for row in rows[2:]]
    return {(row["model"], row["sampler"], float(row["NFE"])): float(row["fd_digits"]) for row in records}


def of_picture(picture: Path) -> Shown:
    """As `of_table`."""
    records: list[dict[str, Any]] = numbers_of(picture)
    assert records, f"{picture.name} holds no numbers; run python docs/update_readme.py runs/sweeps/quickstart"
    return {(row["model"], row["sampler"] or "-", row["nfe"]): row["fd_digits"] for row in records}


def check(readme: Path, picture: Path) -> None:
    """Compare the numbers of a table and a picture: those of the table have four digits."""
    table, drawn = of_table(readme), of_picture(picture)
    assert table.keys() == drawn.keys()
    for key, distance in table.items():
        assert distance == float(f"{drawn[key]:.4g}"), key


@pytest.mark.parametrize("picture", update_readme.PICTURES)
def test_table_and_pictures_of_the_readme_agree(picture: str) -> None:
    check(ROOT / "README.md", ROOT / "docs" / "images" / picture)


def test_one_command_writes_table_and_pictures(tmp_path: Path) -> None:
    for place, (model, nfe) in enumerate([("EDM", 10), ("EDM", 20), ("DDPM", 10)]):
        sampler = DDIM | {"steps": nfe}
        path = write(tmp_path / "runs", content(model, 12.34567 + place // 2, sampler=sampler, nfe=nfe), f"e{nfe}")
        np.savez(path.with_name("samples.npz"), images=np.zeros((2, 1, 8, 8), np.uint8))
    path = write(tmp_path / "runs", content("VAE", 85.215, sampler=None))
    np.savez(path.with_name("samples.npz"), images=np.zeros((2, 1, 8, 8), np.uint8))
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- leaderboard -->\nold\n<!-- end -->\nafter\n")
    update_readme.update(tmp_path / "runs", readme, tmp_path)
    text = readme.read_text()
    assert text.startswith("before\n<!-- leaderboard -->\ndigits abababab") and text.endswith("<!-- end -->\nafter\n")
    assert "sampling seed 0, weights ema, grid Karras." in text
    assert [line[:5] for line in text.splitlines() if line.startswith("| ")][2:] == ["| 1 |", "| 1 |", "| 3 |", "| 4 |"]
    for picture in update_readme.PICTURES:
        assert len(of_picture(tmp_path / picture)) == 4
        check(readme, tmp_path / picture)
    readme.write_text(text.replace("85.22", "85.23").replace("85.21", "85.23"))
    with pytest.raises(AssertionError, match="VAE"):
        check(readme, tmp_path / update_readme.PICTURES[0])
    assert numbers_of(plots.training_curves({"a": [(1.0, 2.0)]}, tmp_path / "c.png")) == []
