"""docs/extending.md, from its own blocks: the files as it names them, the commands as a user gives them."""

import contextlib
import glob
import io
import json
import math
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from lit_gen.cli.main import main
from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.distributions.dequantisation import dequantise
from lit_gen.experiment.checks import check_sampler
from lit_gen.experiment.parser import ExperimentCLI
from lit_gen.families.base import GenerativeModel
from lit_gen.families.settings import Temperature
from tests.conftest import ROOT, TINY_UNET
from tests.processes import in_one_process

PAGE = (ROOT / "docs/extending.md").read_text()
FILES = dict(re.findall(r"^\*\*([\w.]+)\*\*\n\n```\w+\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
SCRIPT = "".join(re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
COMMANDS = [shlex.split(line)[1:] for line in SCRIPT.splitlines() if line.startswith("lit-gen ")]
DIGITS = ["--where", "protocol.data=digits", "--where", "protocol.feature_net=digits"]
MIDPOINT = {"name": "RungeKutta2", "fraction": 0.5}

SMALL = {
    "../conf/experiment/digits_edm.yaml": ["--budget.num_images=2560"],
    "../conf/experiment/digits_nice.yaml": ["--budget.num_images=2560"],
    "digits_mfa.yaml": [],
}
"""What makes the two families of the package short; the one of the page is trained as the page trains it."""

REFUSED = re.findall(r"^\$ lit-gen (.*)\n(lit-gen: error: .*)$", PAGE, re.MULTILINE)


def run_all(lab: Path, commands: list[list[str]], refused: list[tuple[str, str]]) -> None:
    """Give the commands in the folder, and those that the page shows to be refused with their messages."""
    os.chdir(lab)

    def run(words: list[str]) -> int:
        return main([path for word in words for path in (sorted(glob.glob(word)) if "*" in word else [word])])

    for words in commands:
        assert run(words) == 0, words
    for line, message in refused:
        with contextlib.redirect_stderr(io.StringIO()) as said:
            assert run(shlex.split(line)) == 2, line
        assert said.getvalue().splitlines()[-1] == message, (said.getvalue(), message)


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """A folder with the files of the page, in what looks like a checkout."""
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    folder = tmp_path / "lab"
    folder.mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def mfa(lab: Path, monkeypatch: pytest.MonkeyPatch) -> GenerativeModel:
    """The family, with values as a training might leave them."""
    monkeypatch.syspath_prepend(lab)
    monkeypatch.delitem(sys.modules, "mfa", raising=False)
    model: GenerativeModel = (
        ExperimentCLI([f"--config={lab}/digits_mfa.yaml", "--model.num_components=3"]).objects().model
    )
    model.initialise(2 * torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(0)) - 1)
    mixture: Any = model.generator.flow
    with torch.no_grad():
        mixture.logits.copy_(torch.tensor([0.2, -1.0, 0.5]))
    return model


def run_pytest(lab: Path, file: str) -> None:
    """Run pytest anew in the folder, with the lit_gen of this checkout, of which the file imports what it names."""
    programs = Path(sys.executable).parent
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SLIPCOVER")}
    environment = {**inherited, "PYTHONPATH": str(ROOT), "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    words = ["pytest", "-q", file]
    done = subprocess.run(words, cwd=lab, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def rows(lab: Path, capsys: pytest.CaptureFixture[str]) -> list[dict]:
    capsys.readouterr()
    assert main(["leaderboard", str(lab / "runs"), "--json", *DIGITS]) == 0
    board: list[dict] = json.loads(capsys.readouterr().out)["rows"]
    return board


def check(board: list[dict]) -> None:
    """Every sampler and both families are there, with finite numbers and the evaluations that the page tells."""
    settings = [row["sampler_settings"] or {"name": row["model"]} for row in board]
    found = {(said["name"], said.get("fraction")): row for said, row in zip(settings, board, strict=True)}
    assert found.keys() == {("Heun", None), ("RungeKutta2", 2 / 3), ("RungeKutta2", 0.5), ("MFA", None), ("NICE", None)}
    assert [row["nfe"] for (name, _), row in found.items() if name in ("Heun", "RungeKutta2")] == [9, 9, 9]
    assert [row["nfe"] for (name, _), row in found.items() if name in ("MFA", "NICE")] == [1, 1]
    assert all(math.isfinite(row["fd_digits"]) and row["fd_digits"] > 0 for row in board)
    assert all(row["bits_per_dim"] > 0 for (name, _), row in found.items() if name in ("MFA", "NICE"))


def test_the_files_are_as_short_as_it_says() -> None:
    assert list(FILES) == [
        "rk2.py",
        "test_rk2.py",
        "midpoint.yaml",
        "mfa.py",
        "digits_mfa.yaml",
        "consistency.py",
        "extras.py",
    ]
    assert len(FILES["rk2.py"].splitlines()) <= 36
    assert not re.search(r"RungeKutta2|MFA|rk2|mfa", "".join(p.read_text() for p in (ROOT / "lit_gen").rglob("*.py")))


def small(words: list[str]) -> list[str]:
    """The command; one that trains is made short, and draws few samples."""
    if words[0] != "run":
        return words
    return [*words, *SMALL[words[2]], "--evaluation.num_samples=100", "--grid.num_samples=0"]


def shown() -> list[list[str]]:
    """The rows of the page's leaderboard, from the number to the last column."""
    return [line.strip("| ").split(" | ") for line in PAGE.splitlines() if re.match(r"\| \d", line)]


@pytest.mark.slow
def test_its_script_runs(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All its commands in one process, and those that it shows to be refused.

    Short trainings but for the page's own family, whose likelihood is that of the page.
    """
    others = [line for line in SCRIPT.splitlines() if not line.startswith("lit-gen ")]
    assert others == ["mkdir -p lab && cd lab", "pytest -q test_rk2.py"]
    run_pytest(lab, "test_rk2.py")
    assert len(REFUSED) == 5
    assert in_one_process(run_all, lab, [small(words) for words in COMMANDS], REFUSED) == 0
    board = rows(lab, capsys)
    check(board)
    (bits,) = (row["bits_per_dim"] for row in board if row["model"] == "MFA")
    assert [bits] == [pytest.approx(float(row[6].split()[0]), abs=0.1) for row in shown() if row[1] == "MFA"]


@pytest.mark.slow
@pytest.mark.exhaustive
def test_its_script_gives_the_numbers_of_the_page(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert in_one_process(run_all, lab, COMMANDS, REFUSED) == 0
    board = rows(lab, capsys)
    check(board)
    assert len(shown()) == len(board)
    for row, (_, model, _, nfe, distance, _, bits, *_) in zip(board, shown(), strict=True):
        assert (row["model"], row["nfe"]) == (model, float(nfe))
        assert row["fd_digits"] == pytest.approx(float(distance), rel=0.2)
        assert bits == "-" or row["bits_per_dim"] == pytest.approx(float(bits.split()[0]), abs=0.1)


def test_the_density_of_the_family_is_that_of_dense_normals(mfa: GenerativeModel) -> None:
    mixture: Any = mfa.generator.requires_grad_(False).flow
    dense = mixture.factors @ mixture.factors.mT + torch.diag_embed((2 * mixture.log_std).exp())
    exact = MixtureSameFamily(
        Categorical(logits=mixture.logits.double()),
        MultivariateNormal(mixture.mean.double(), covariance_matrix=dense.double()),
    )
    images = mfa.sample(Noise(1, range(7))).clamp(-1, 1)
    points = dequantise(images, Noise(0, range(7))).flatten(1)
    log_p = mfa.log_likelihood(images, Noise(0, range(7)))
    torch.testing.assert_close(log_p, exact.log_prob(points) - 64 * math.log(127.5), rtol=0, atol=0.02)


def test_what_the_family_draws_has_the_moments_of_its_density(mfa: GenerativeModel) -> None:
    num = 20_000
    mixture: Any = mfa.generator.requires_grad_(False).flow
    x = mfa.sample(Noise(0, range(num))).flatten(1)
    weights, mean = mixture.logits.softmax(0), mixture.mean
    within = mixture.factors @ mixture.factors.mT + torch.diag_embed((2 * mixture.log_std).exp())
    centre = weights @ mean
    covariance = (weights[:, None, None] * (within + (mean - centre)[:, :, None] * (mean - centre)[:, None])).sum(0)
    error = (x.mean(0) - centre) / covariance.diagonal().div(num).sqrt()
    assert 0.7 < float(error.square().mean()) < 1.4
    assert float((x.T.cov() - covariance).norm() / covariance.norm()) < 0.08
    cold = mfa.sample(Noise(0, range(50)), sampler=Temperature(1e-6)).flatten(1)
    assert float(torch.cdist(cold, mean).amin(1).max()) < 1e-3
    torch.testing.assert_close(mfa.sample(Noise(0, [4, 1])).flatten(1), x[[4, 1]], rtol=0, atol=1e-5)


def test_the_one_step_model_learns_the_end_of_each_path(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss vanishes for the exact map of a single image, and only for it; a sample is one evaluation at the end."""
    monkeypatch.syspath_prepend(lab)
    monkeypatch.delitem(sys.modules, "consistency", raising=False)
    words = ["--model=consistency.Consistency", "--data.source=Digits", *TINY_UNET]
    model: Any = ExperimentCLI(words).objects().model
    image = torch.rand(1, 1, 8, 8) - 0.5
    images, t, eps = image.expand(6, -1, -1, -1), torch.rand(6, dtype=torch.float64), torch.randn(6, 1, 8, 8)
    monkeypatch.setattr(model.denoiser, "denoise", lambda x, alpha, sigma, labels: image + 0 * x)
    torch.testing.assert_close(model.loss(images, t, eps, None), torch.zeros(6))
    monkeypatch.setattr(model.denoiser, "denoise", lambda x, alpha, sigma, labels: x)
    sigma = (80 * t).float()
    step = sigma - torch.where(0.8 * sigma < 0.02, 0, 0.8 * sigma)
    expected = (step * (sigma**2 + 0.25).sqrt() / (0.5 * sigma)) ** 2 * eps.square().mean((1, 2, 3))
    torch.testing.assert_close(model.loss(images, t, eps, None), expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(model.sample(Noise(3, [5])), 80 * Noise(3, [5]).normal((1, 8, 8)))
    assert model.nfe == 1
    for refused in ("--sampler=Heun", "--model.weight=MinSNR", "--model.uncertainty=true", "--model.ratio=1"):
        with pytest.raises(UserError, match=rf"^{refused[2:].partition('=')[0]}: "):
            check_sampler(ExperimentCLI([*words, refused]).objects(), torch.device("cpu"))
