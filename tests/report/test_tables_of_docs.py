"""The tables of the docs and their pictures show the same numbers: docs/update_tables.py writes them all."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_gen.cli.main import main
from lit_gen.pictures.figures import numbers_of
from lit_gen.report import plots
from tests.conftest import ROOT
from tests.report.test_leaderboard import DDIM, content, write

spec = importlib.util.spec_from_file_location("update_tables", ROOT / "docs" / "update_tables.py")
assert spec is not None and spec.loader is not None
update_tables = importlib.util.module_from_spec(spec)
spec.loader.exec_module(update_tables)

Key = tuple[str, str, float]


def of_table(page: Path) -> dict[Key, str]:
    """Return the distances of the table by model, sampler and evaluations."""
    block = update_tables.TABLE.search(page.read_text())["block"]
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
    assert records, f"{picture.name} holds no numbers; run python docs/update_tables.py"
    metric = next(name for name in records[0] if name.startswith("fd_digits"))
    return {(row["model"], row["sampler"] or "-", row["nfe"]): row[metric] for row in records}


def check(page: Path, picture: Path) -> None:
    """Assert that a table and a picture hold the same numbers, to the digits of the table."""
    table, drawn = of_table(page), of_picture(picture)
    assert table.keys() == drawn.keys()
    for key, distance in table.items():
        decimals = len(distance.partition(".")[2])
        assert distance == f"{drawn[key]:.{decimals}f}", key


@pytest.mark.parametrize("picture", ["quickstart_samples.png", "quickstart_distance_vs_nfe.png"])
def test_table_and_pictures_agree(picture: str) -> None:
    check(ROOT / "docs" / "index.md", ROOT / "docs" / "images" / picture)


def test_one_command_writes_table_and_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place, (model, nfe) in enumerate([("EDM", 10), ("EDM", 20), ("DDPM", 10)]):
        sampler = DDIM | {"steps": nfe}
        path = write(tmp_path / "runs", content(model, 12.34567 + place // 2, sampler=sampler, nfe=nfe), f"e{nfe}")
        np.savez(path.with_name("samples.npz"), images=np.zeros((2, 1, 8, 8), np.uint8))
    path = write(tmp_path / "runs", content("VAE", 85.215, sampler=None))
    np.savez(path.with_name("samples.npz"), images=np.zeros((2, 1, 8, 8), np.uint8))
    monkeypatch.chdir(tmp_path)
    columns = "--columns '#,model,sampler,NFE,fd_digits'"
    mark = f"<!-- lit-gen leaderboard runs --markdown {columns} --figure b.png --samples a.png -->"
    other = "<!-- lit-gen leaderboard elsewhere --budgets 5 -->\nkept\n<!-- end -->"
    page = tmp_path / "index.md"
    page.write_text(f"before\n{mark}\nold\n<!-- end -->\nbetween\n{other}\nafter\n")
    update_tables.main([str(page)])
    text = page.read_text()
    assert text.startswith(f"before\n{mark}\ndigits abababab") and text.endswith(
        f"<!-- end -->\nbetween\n{other}\nafter\n"
    )
    assert "; training seed 0; sampling seed 0; weights ema; grid Karras\n\n| # |" in text
    assert [line[:5] for line in text.splitlines() if line.startswith("| ")][2:] == ["| 1 |", "| 1 |", "| 3 |", "| 4 |"]
    for picture in ("a.png", "b.png"):
        assert len(of_picture(tmp_path / picture)) == 4
        check(page, tmp_path / picture)
    page.write_text(text.replace("85.22", "85.23").replace("85.21", "85.23"))
    with pytest.raises(AssertionError, match="VAE"):
        check(page, tmp_path / "a.png")
    assert numbers_of(plots.training_curves({"a": [(1.0, 2.0)]}, tmp_path / "c.png")) == []


def test_columns_that_are_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, content("EDM", 12.0), "e")
    assert main(["leaderboard", str(tmp_path), "--markdown", "--columns", "model,speed"]) == 2
    assert "--columns: speed is not a column; choose of #, model, sampler" in capsys.readouterr().err
    assert main(["leaderboard", str(tmp_path), "--columns", "model"]) == 2
    assert "--columns: only a Markdown table takes them" in capsys.readouterr().err
    assert main(["leaderboard", str(tmp_path), "--samples", "a.jpg"]) == 2
    assert "--samples: a.jpg does not end in .png" in capsys.readouterr().err
