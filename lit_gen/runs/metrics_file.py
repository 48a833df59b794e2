"""Read and validate the metrics.csv of a run, which may be damaged or come from someone else."""

import csv
import io
import re
import reprlib
from pathlib import Path

from lit_gen.core.errors import UserError
from lit_gen.core.files import read_text
from lit_gen.core.records import SCORE, TEXT

MAX_COLUMNS = 256
REMEDY = "restore the file, or delete it and its curves"


def read_metrics(path: Path) -> list[dict[str, str]]:
    """Return the rows of a metrics.csv: `images` and the metrics logged after so many images, as texts of numbers.

    An incomplete last row, as after a kill, is left out.

    Raises:
        UserError: If the file cannot be read or a line does not hold numbers; the message names file and line.
    """
    text = read_text(path)
    whole = text[: text.rfind("\n") + 1]
    try:
        lines = [(number, cells) for number, cells in enumerate(csv.reader(io.StringIO(whole, newline="")), 1) if cells]
    except csv.Error as error:
        raise UserError(f"{path}: not valid CSV ({error}); {REMEDY}") from None
    if not lines:
        return []
    (_, names), *lines = lines
    if "images" not in names or len(set(names)) < len(names) or not all(map(TEXT.fits, names)):
        raise UserError(f"{path}: line 1: expected names with `images` among them, each once; {REMEDY}")
    if len(names) > MAX_COLUMNS:
        raise UserError(f"{path}: {len(names)} columns, the limit is {MAX_COLUMNS}; {REMEDY}")
    rows = []
    for number, cells in lines:
        row = {name: cell for name, cell in zip(names, cells, strict=False) if cell}
        if len(cells) != len(names) or not _is_count(row.get("images", "")) or not all(map(_is_score, row.values())):
            raise UserError(
                f"{path}: line {number}: expected {len(names)} numbers, got {reprlib.repr(cells)}; {REMEDY}"
            )
        rows.append(row)
    return rows


def _is_count(text: str) -> bool:
    return re.fullmatch(r"\d{1,18}", text, re.ASCII) is not None


def _is_score(text: str) -> bool:
    try:
        return SCORE.fits(float(text))
    except ValueError:
        return False
