"""The identity of each experiment is what it has always been: a run directory is found by it."""

import json
from pathlib import Path

import pytest

from lit_gen.experiment.identity import training_identity
from lit_gen.experiment.parser import ExperimentCLI
from tests.conftest import ROOT

GOLDEN: dict[str, str] = json.loads((Path(__file__).parent / "golden" / "identities.json").read_text())
"""Identities of the experiments, for the fingerprint "images"; computed before the package had its present layout."""


@pytest.mark.parametrize("name", GOLDEN)
def test_an_experiment_keeps_its_identity(name: str) -> None:
    config = ExperimentCLI([f"--config={ROOT / 'conf' / 'experiment' / name}"]).resolved()
    assert training_identity(config, "images") == GOLDEN[name]


def test_every_experiment_has_one() -> None:
    """A new experiment is added with the identity that it has then."""
    assert {path.name for path in (ROOT / "conf" / "experiment").glob("*.yaml")} == GOLDEN.keys()
