"""A page of 500 rows of 20 runs has at most 3 MB, and takes a few seconds."""

import itertools
import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from lit_gen.report.page import write_page
from lit_gen.report.results import load_results
from tests.report.test_leaderboard import DDIM, content, write

pytestmark = pytest.mark.slow

NUM_RUNS, SAMPLERS, BUDGETS = 20, ("DDIM", "DDPM", "Heun", "Euler", "UniPC"), (5, 10, 20, 40, 80)


def write_many(root: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(NUM_RUNS):
        for name, nfe in itertools.product(SAMPLERS, BUDGETS):
            sampler = DDIM | {"name": name, "steps": nfe}
            data = content(f"Model{number}", 20 * rng.random() + 1, sampler=sampler, nfe=nfe)
            data["metrics"] |= {f"metric{place}": rng.random() for place in range(12)}
            errors = {"fd_digits": 0.5, **{f"metric{place}": 0.01 for place in range(12)}}
            path = write(root, data | {"standard_errors": errors}, f"{name}-{nfe}")
            np.savez(path.with_name("samples.npz"), images=rng.integers(0, 256, (16, 1, 8, 8), np.uint8))
        run = path.parents[2]
        facts = dict.fromkeys(("identity", "recipe", "status", "wandb_id"), f"run {number}") | {"seed": number}
        (run / "run.json").write_text(json.dumps(facts))
        (run / "config.yaml").write_text(yaml.safe_dump({"model": {f"key{place}": number for place in range(150)}}))
        rows = [f"{images},{rng.random()},{rng.random()}" for images in range(1, 3000)]
        (run / "metrics.csv").write_text("\n".join(["images,train/loss,val/loss", *rows, ""]))


@pytest.mark.filterwarnings("ignore:.*row of real images")
def test_five_hundred_rows_are_less_than_three_megabytes(tmp_path: Path) -> None:
    write_many(tmp_path / "runs")
    results = load_results(tmp_path / "runs")
    began = time.process_time()
    text = write_page(results, tmp_path / "page.html", "title").read_text()
    assert time.process_time() - began < 60  # about 8 s of one core
    assert len(results) == 500 and len(text.encode()) < 3_000_000
    rows = re.findall(r'<tr id="(table-0-row-\d+)"', text)
    shown = text.count('alt="samples of ')  # noise, the largest pictures that there are
    left_out = re.search(r"Left out to keep the page small:.* (\d+) rows without their samples", text)
    assert len(rows) == 500 and shown > 450 and shown + int(left_out[1] if left_out else 0) == 500
    assert all(f'href="#{row}" data-row' in text for row in rows)
