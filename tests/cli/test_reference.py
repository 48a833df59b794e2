"""`lit-gen reference`: what each action writes and says, and what it refuses."""

import hashlib
import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from lit_gen.cli.main import main
from lit_gen.data import Digits, ImageDataModule
from lit_gen.metrics import DigitsFeatures, reference_moments
from lit_gen.metrics.moments import Moments
from lit_gen.metrics.npz_statistics import flaw
from tests.conftest import ROOT

DIGITS = ["--data.source", "Digits", "--feature_net", "DigitsFeatures"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def said(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    """Return what an action prints; a mistake is one line."""
    capsys.readouterr()
    assert main(["reference", *words]) == code
    out, err = capsys.readouterr()
    if code == 2:
        assert out == "" and err.startswith("lit-gen: error: ") and err.count("\n") == 1
        return err.removeprefix("lit-gen: error: ").rstrip()
    return out


def only_file(folder: str = "runs/.reference") -> Path:
    (path,) = Path(folder).iterdir()
    return path


@pytest.fixture
def computed(capsys: pytest.CaptureFixture[str]) -> Path:
    said(capsys, "compute", *DIGITS, "--split", "test")
    return only_file()


def exported(**changes: Any) -> dict[str, Any]:
    """Return arrays of the test split as other software writes them, with changes; None leaves a key out."""
    features = DigitsFeatures()(torch.from_numpy(ImageDataModule(source=Digits()).images("test")))[0].double().numpy()
    arrays = {"mu": features.mean(0), "sigma": np.cov(features, rowvar=False)} | changes
    return {name: array for name, array in arrays.items() if array is not None}


def test_compute_writes_the_file_that_evaluations_read(computed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, net = ImageDataModule(source=Digits()), DigitsFeatures()
    key = {
        "fingerprint": data.fingerprint("test"),
        "split": "test",
        "image_shape": [1, 8, 8],
        "feature_net": "digits",
        "version": net.version,
        "resize": "none",
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    assert computed.name == f"digits-test-digits-{digest}.safetensors"
    before = computed.read_bytes()
    moments = reference_moments(data, "test", net, "runs/.reference")
    assert computed.read_bytes() == before and only_file() == computed, "it is read, not computed again"
    features = net(torch.from_numpy(data.images("test")))[0].double().numpy()
    assert moments.n == 355
    np.testing.assert_allclose(moments.mean, features.mean(0), rtol=1e-5)
    np.testing.assert_allclose(moments.cov, np.cov(features, rowvar=False), rtol=1e-4, atol=1e-5)
    assert "digits/test, 355 images, 64 digits features, checksum ok" in said(
        capsys, "compute", *DIGITS, "--split=test"
    )
    assert computed.read_bytes() == before
    said(capsys, "compute", *DIGITS, "--split=val", "--data.num_val", "30", "--folder=other")
    assert only_file("other").name.startswith("digits-val-digits-")


def test_list_shows_every_file_and_what_is_wrong_with_it(computed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = computed.parent
    (folder / "older-train-digits-0123456789abcdef.safetensors").write_bytes(b"")
    save_file(
        {"mean": torch.zeros(2), "cov": torch.eye(2)},
        folder / "two-moons-train-fd-net-0123456789abcdef.safetensors",
        metadata={"n": "9"},
    )
    content = bytearray(computed.read_bytes())
    content[-1] ^= 1
    (folder / "bad.safetensors").write_bytes(content)
    lines = [re.split(r"  +", line) for line in said(capsys, "list", str(folder)).splitlines()]
    assert lines[0] == ["data", "split", "feature net", "n", "shape", "state", "file"]
    states = {line[6]: line[:6] for line in lines[1:]}
    assert states[computed.name] == ["digits", "test", "digits", "355", "1x8x8", "checksum ok"]
    assert states["two-moons-train-fd-net-0123456789abcdef.safetensors"][:4] == ["two-moons", "train", "fd-net", "9"]
    assert states["two-moons-train-fd-net-0123456789abcdef.safetensors"][5] == "no checksum"
    assert "checksum is wrong" in states["bad.safetensors"][5] and len(states) == 4
    assert said(capsys, "list", "nowhere", code=2).startswith("nowhere: not a folder; ")


def test_verify_finds_what_was_changed(computed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "355 images" in said(capsys, "verify", str(computed))
    assert "computed again: the mean differs by 0" in said(capsys, "verify", str(computed), *DIGITS)
    wrong = said(capsys, "verify", str(computed), *DIGITS[:2], "--feature_net=FashionFeatures", code=2)
    assert wrong.startswith("feature_net: its feature_net is fashion_mnist, but that of ")
    images = np.random.default_rng(0).integers(0, 256, (9, 8, 8), dtype=np.uint8)
    np.savez("other.npz", images=images)
    other = ["--data.source=Npz", "--data.source.path=other.npz", "--data.source.test=other.npz", *DIGITS[2:]]
    assert said(capsys, "verify", str(computed), *other, code=2).startswith("data.source: ")
    with safe_open(computed, framework="pt") as file:
        mean, cov = file.get_tensor("mean"), file.get_tensor("cov")
    old = computed.with_name("old-test-digits-0123456789abcdef.safetensors")  # an earlier version: without a checksum
    for cov_change, reason in (
        (torch.diag(-2 * cov.diagonal()), "negative eigenvalue"),
        (torch.eye(64).roll(1, 0).double(), "not symmetric"),
    ):
        save_file({"mean": mean, "cov": cov + cov_change}, old, metadata={"n": "355"})
        assert reason in said(capsys, "verify", str(old), code=2)
    for mean_change, accepted in ((1e-5, True), (0.1, False)):
        save_file({"mean": mean * (1 + mean_change), "cov": cov}, old, metadata={"n": "355"})
        text = said(capsys, "verify", str(old), *DIGITS, code=0 if accepted else 2)
        assert ("the mean differs by" in text) and (accepted or text.endswith("; compute or import it again"))
    save_file({"mean": mean, "cov": cov}, old, metadata={"n": "354"})
    assert "354 images with 64 features, but the data have 355" in said(capsys, "verify", str(old), *DIGITS, code=2)
    for name in ("nowhere", "other.npz", "."):
        assert "not readable reference statistics" in said(capsys, "verify", name, code=2)


def test_export_and_import_give_back_the_same_moments(computed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, "export", str(computed), "--out", "stats.npz")
    with np.load("stats.npz", allow_pickle=False) as arrays:
        assert set(arrays) == {"mu", "sigma", "n"} and arrays["n"] == 355
        np.testing.assert_allclose(arrays["mu"], exported()["mu"], rtol=1e-5)
        np.testing.assert_allclose(arrays["sigma"], exported()["sigma"], rtol=1e-4, atol=1e-5)
    text = said(capsys, "import", "stats.npz", *DIGITS, "--split=test", "--folder=mine")
    digest = hashlib.sha256(Path("stats.npz").read_bytes()).hexdigest()
    assert f"imported from {digest[:12]}" in text and only_file("mine").name == computed.name
    with safe_open(only_file("mine"), framework="pt") as ours, safe_open(computed, framework="pt") as theirs:
        assert ours.get_tensor("mean").equal(theirs.get_tensor("mean"))
        assert ours.get_tensor("cov").equal(theirs.get_tensor("cov"))
    wrong = said(capsys, "import", "stats.npz", *DIGITS, "--split=test", "--folder=mine", code=2)
    assert wrong.endswith("there are statistics of this data already; add --replace to replace them")
    said(capsys, "import", "stats.npz", *DIGITS, "--split=test", "--folder=mine", "--replace")
    assert f"imported from {digest[:12]}" in said(capsys, "list", "mine")
    assert said(capsys, "export", str(computed), "--out=stats.txt", code=2).startswith("--out: stats.txt does not end")


def test_evaluations_use_imported_moments_and_say_so(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """As EDM and ADM write them: float32, no number, other keys, and images that are not read."""
    shifted = exported()["mu"] + 0.01
    others: dict[str, Any] = {
        "mu_s": np.zeros(3),
        "sigma_s": np.zeros((3, 3)),
        "arr_0": np.zeros((2, 8, 8, 3), np.uint8),
    }
    np.savez("adm.npz", **exported(mu=shifted.astype(np.float32)), **others)
    said(capsys, "import", "adm.npz", *DIGITS, "--split=test")
    moments = reference_moments(ImageDataModule(source=Digits()), "test", DigitsFeatures(), "runs/.reference")
    np.testing.assert_allclose(moments.mean, shifted, rtol=1e-5)
    assert moments.n == 355 and "imported from a file with the SHA-256" in caplog.text


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"mu": None}, "has no key mu"),
        ({"sigma": None}, "has no key sigma"),
        ({"mu": np.zeros(63)}, r"mu is float64 of shape \(63,\), not .* of shape \(64,\); choose the --feature_net"),
        ({"sigma": np.zeros((64, 63))}, "sigma is float64 of shape"),
        ({"mu": np.zeros(64, np.float16)}, "mu is float16"),
        ({"mu": np.full(64, np.nan)}, "not finite"),
        ({"sigma": np.full((64, 64), np.inf)}, "not finite"),
        ({"sigma": np.triu(np.ones((64, 64)))}, "not symmetric"),
        ({"sigma": -np.eye(64)}, "negative eigenvalue -1"),
        ({"n": np.array(354)}, "of n = 354 images, but the split has 355"),
        ({"n": np.array([355, 355])}, "but the split has 355"),
        ({"n": np.array(355.5)}, "but the split has 355"),
        ({"mu": np.array([Path("/")] * 64)}, "cannot be read as an .npz file"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_statistics_are_refused(changes: dict[str, Any], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez("stats.npz", **exported(**changes))
    text = said(capsys, "import", "stats.npz", *DIGITS, "--split=test", code=2)
    assert text.startswith("stats.npz: ") and re.search(reason, text) and "; " in text
    assert not Path("runs").exists()


def test_files_that_are_not_statistics_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    Path("text.npz").write_text("mu")
    np.savez("whole.npz", **exported())
    Path("cut.npz").write_bytes(Path("whole.npz").read_bytes()[:-100])
    for name in ("text.npz", "cut.npz", "."):
        text = said(capsys, "import", name, *DIGITS, "--split=test", code=2)
        assert text.startswith(f"{name}: ")
    assert "does not exist" in said(capsys, "import", "no.npz", *DIGITS, code=2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "reference: not an action of lit-gen reference; choose one of compute, list, verify, export, import"),
        (["cmpute"], "cmpute: not an action of lit-gen reference; did you mean compute?"),
        (["compute"], "data.source: this key has no default; give it in a file, or as --data.source VALUE"),
        (["compute", "--data.sorce=Digits"], "--data.sorce=Digits: no such key; did you mean --data.source?"),
        (["compute", *DIGITS, "--splt=test"], "--splt=test: no such key; did you mean --split?"),
        (["compute", "--config=x.yaml"], "--config: lit-gen reference compute reads no configuration; give "),
        (["compute", "--data.source=TwoMoons"], "data.source: two_moons holds points, which have no "),
        (["compute", *DIGITS[:2], "--feature_net=Points"], "feature_net: points features are not of images; choose "),
        (["compute", *DIGITS[:2], "--feature_net=FashionFeatures"], "feature_net: FashionFeatures takes 1x28x28 "),
        (["compute", *DIGITS, "--feature_net.weights=no"], "feature_net: no: does not hold the weights of the digits "),
        (["compute", *DIGITS[:2], "--feature_net=DINOv2"], "feature_net.weights: DINOv2 needs its weights file, and "),
        (["compute", *DIGITS[:2], "--feature_net=os.system"], "feature_net: os.system is of the standard library or "),
        (["import", "x.npz", *DIGITS[:2]], "feature_net: import needs the net of the statistics; add, for example, "),
        (["list", ".", "--jsn"], "--jsn: lit-gen reference list has no such option; lit-gen reference --help lists "),
        (["verify"], "FILE: missing; give a file of reference statistics"),
        (["export", "x"], "--out: missing; give a file for mu, sigma and n"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, *words, code=2).startswith(message)


def test_the_keys_of_a_class_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["reference", "compute", "--feature_net.help", "DINOv2"])
    assert ended.value.code == 0 and "--feature_net.weights TEXT" in capsys.readouterr().out


def test_the_commands_of_the_page_do_what_it_shows(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs/reference_statistics.md").read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    commands = [shlex.split(line) for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    actions = []
    for words in commands:
        assert words[:2] == ["lit-gen", "reference"]
        names = [str(path) for word in words[2:] if "*" in word for path in Path().glob(word)]
        assert main([*words[1:3], *names, *(word for word in words[3:] if "*" not in word)]) == 0, words
        actions.append(words[2])
    assert set(actions) == {"compute", "list", "verify", "export", "import"}
    shown = re.search(r"^```text\n(data .*?)^```", page, re.MULTILINE | re.DOTALL)
    capsys.readouterr()
    assert main(["reference", "list"]) == 0
    (_, listed) = capsys.readouterr().out.splitlines()
    assert shown is not None and listed.split()[:7] == shown[1].splitlines()[1].split()[:7]


@pytest.mark.parametrize("dtype", [torch.float16, torch.int64])
def test_statistics_of_other_types_are_checked_without_a_traceback(dtype: torch.dtype) -> None:
    assert flaw(Moments(9, torch.zeros(4).to(dtype), torch.eye(4).to(dtype))) is None
    assert "negative eigenvalue" in str(flaw(Moments(9, torch.zeros(4).to(dtype), (-torch.eye(4)).to(dtype))))
