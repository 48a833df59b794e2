"""Memory of metrics of neighbours: a few times that of the features of all real images."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.evaluation import memory

pytestmark = pytest.mark.slow

FEATURES = memory.NUM_REAL * memory.WIDTH * 4 / 2**20
"""MiB of all real features in float32."""


def growth(folder: Path, num_samples: int, *metrics: str) -> float:
    words = [sys.executable, "-m", "tests.evaluation.memory", str(folder), str(num_samples), *metrics]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=600, check=True)
    return float(done.stdout.split()[0])


@pytest.mark.parametrize(
    ("metric", "times"), [pytest.param("CopyRate", 2.5, marks=pytest.mark.exhaustive), ("PrecisionRecall", 4.5)]
)
def test_memory_is_bounded(metric: str, times: float, tmp_path: Path) -> None:
    """The pages of the file that are mapped count too, although the system can drop them."""
    assert growth(tmp_path, 3000, metric) < times * FEATURES
