"""A configuration calls no function of an installed package, and imports none that it need not."""

import sys
from pathlib import Path

import pytest
import yaml

from lit_gen.cli.main import main
from lit_gen.core.imports import installed, may_be_named
from lit_gen.experiment.parser import ExperimentCLI
from tests.conftest import arguments
from tests.experiment.test_trust import as_run

EXECUTES = {"body": {"_code": "forward=1"}, "import_block": "import pathlib; pathlib.Path('{marker}').touch()"}
"""Arguments of a function of torch that is annotated to return a module, and executes them."""


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that must not come to be, in a folder from which modules can be imported."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "marker"


@pytest.mark.parametrize("key", ["encoder", "decoder"])
@pytest.mark.parametrize("path", ["torch.fx.graph_module.reduce_graph_module", "torch.fx._lazy_graph_module.x"])
def test_a_function_of_an_installed_package_is_not_called(key: str, path: str, marker: Path) -> None:
    """Nor within a class that may be named."""
    config = ExperimentCLI(arguments("VAE", Path("runs"))).resolved()
    code = yaml.safe_load(yaml.safe_dump(EXECUTES).replace("{marker}", str(marker)))
    inner = {"class_path": path, "init_args": code}
    outer = {"class_path": "torch.nn.TransformerEncoder", "init_args": {"norm": inner}}
    for part in (inner, outer):
        config["model"]["init_args"][key] = part
        run = as_run(config, marker.parent / f"run{len(str(part))}")
        assert main(["sample", str(run), "-n=1"]) == 2
        assert not marker.exists()


@pytest.mark.parametrize("path", ["wandb.__main__.x", "lit_gen.__main__.x", "sklearn.conftest.x", "pip._vendor.six.x"])
def test_an_installed_module_is_not_imported(path: str, marker: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = set(sys.modules)
    for words in ([f"--model.network={path}"], [f"--model.network.class_path={path}"]):
        assert main(["fit", *arguments("DDPM", marker.parent / "runs", 64), *words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("lit-gen: error: model.network: ") and path in line
    assert path.rpartition(".")[0] not in set(sys.modules) - before


def test_a_module_before_an_installed_one_on_the_path_is_the_users(marker: Path) -> None:
    """A package may install a module as common as `tests`."""
    assert not may_be_named("filelock.X")
    (marker.parent / "filelock.py").write_text("class X: pass\n")
    installed.cache_clear()
    try:
        assert may_be_named("filelock.X") and not may_be_named("jinja2.X")
    finally:
        installed.cache_clear()


def test_a_bare_name_is_not_that_of_a_package_that_may_not_be_named() -> None:
    """Import azula, which has a UNet of its own: the bare name still refers to the UNet of lit_gen."""
    unet = pytest.importorskip("azula.nn.unet")
    cli = ExperimentCLI(arguments("DDPM", Path("runs"), 64, "--model.network=UNet", "--model.network.channels=8"))
    assert cli.config.model.init_args.network.class_path == "lit_gen.families.diffusion.UNet"
    assert f"{unet.UNet.__module__}.UNet" == "azula.nn.unet.UNet" and not may_be_named("azula.nn.unet.UNet")
