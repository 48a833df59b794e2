"""The project files agree: versions, promised and tested requirements."""

import re
from configparser import ConfigParser

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name
from packaging.version import Version

from lit_gen import __version__
from tests.conftest import ROOT


def requirements() -> list[Requirement]:
    """Return the requirements of the package and of all extras."""
    setup = ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg")
    extras = setup["options.extras_require"].values()
    lines = "\n".join([setup["options"]["install_requires"], *extras]).splitlines()
    return [Requirement(line) for line in lines if line and "%" not in line]


def pins(name: str) -> dict[NormalizedName, Version]:
    """Return the versions of a file of constraints by package."""
    pairs = re.findall(r"^([\w.-]+)==(.+)$", (ROOT / name).read_text(), re.MULTILINE)
    return {canonicalize_name(package): Version(version) for package, version in pairs}


@pytest.mark.parametrize("requirement", requirements(), ids=lambda requirement: requirement.name)
def test_every_requirement_has_a_lowest_version_and_a_pin_that_it_allows(requirement: Requirement) -> None:
    assert any(specifier.operator == ">=" for specifier in requirement.specifier)
    assert pins("constraints.txt")[canonicalize_name(requirement.name)] in requirement.specifier


def test_the_lowest_versions_are_those_promised() -> None:
    by_name = {canonicalize_name(requirement.name): requirement for requirement in requirements()}
    for package, version in pins("constraints-lowest.txt").items():
        (lowest,) = (each.version for each in by_name[package].specifier if each.operator == ">=")
        assert version == Version(lowest), package
    tools = {"import-linter", "mkdocs-material", "mkdocstrings", "mypy", "ruff"}
    assert by_name.keys() - pins("constraints-lowest.txt").keys() == tools


def test_the_citation_names_this_version() -> None:
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == __version__


def test_every_path_of_nox_exists() -> None:
    paths = re.findall(r'"((?:docs|tests|lit_gen|conf)/[\w./-]+)"', (ROOT / "noxfile.py").read_text())
    assert "docs/update_tables.py" in paths
    assert not [path for path in paths if not (ROOT / path).exists()]


def test_the_workflow_runs_the_pythons_and_the_tests_of_nox() -> None:
    nox = (ROOT / "noxfile.py").read_text()
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())["jobs"]
    (pythons, lowest) = (re.findall(rf"^{name} = (\[.*\])$", nox, re.MULTILINE) for name in ("PYTHONS", "LOWEST"))
    assert jobs["gate"]["strategy"]["matrix"]["python"] == yaml.safe_load(pythons[0])
    assert jobs["lowest"]["steps"][-1]["run"] == " ".join(["pytest", *yaml.safe_load(lowest[0])])
