"""Files are written whole or not at all, whoever writes them; what goes wrong is said in a line."""

import hashlib
import os
import stat
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lit_gen.core.errors import UserError
from lit_gen.core.files import append, remove_temporaries, replacing, temporary_path, write_arrays, write_atomically
from lit_gen.data import TwoMoons, files
from lit_gen.data.encoded import save_values
from lit_gen.data.pairs import Pairs
from lit_gen.metrics import Moments
from lit_gen.metrics.reference_files import ReferenceFacts, write_reference
from lit_gen.pictures import grids as images
from lit_gen.report import plots, theory, trainings
from lit_gen.runs import weights as averages
from lit_gen.runs.directory import Run
from lit_gen.runs.tracking import MetricsFile
from lit_gen.sweeps.journal import Journal, read_journal
from lit_gen.training.callbacks import Checkpoint, CheckpointSettings
from lit_gen.training.callbacks.checkpoint import InPlace
from tests.cli.full_disk import files_of_at_most, filled, small_disk

NOISE = torch.randint(0, 256, (36, 3, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
WEIGHTS = {"weight": torch.randn(64, 64, generator=torch.Generator().manual_seed(0))}


def download(path: Path) -> None:
    source = Path(plots.__file__)
    md5 = hashlib.md5(source.read_bytes(), usedforsecurity=False).hexdigest()
    files.download([source.as_uri()], path, md5, [])


def figure(save: Callable[[Any, Path], object]) -> Callable[[Path], object]:
    def draw(path: Path) -> None:
        drawn = plots.new_figure(6, 4)
        drawn.subplots().plot(np.random.default_rng(0).normal(size=500))
        save(drawn, path)

    return draw


def checkpoint(path: Path) -> None:
    saved = Checkpoint(CheckpointSettings(), path)
    trainer = Namespace(is_global_zero=True, strategy=Namespace(barrier=lambda name: None))
    trainer.save_checkpoint = lambda where: InPlace().save_checkpoint(WEIGHTS, where)
    saved.save(trainer, Namespace(parameters=lambda: [], images_seen=1))  # type: ignore[arg-type]


MOMENTS = Moments(9, torch.zeros(64), torch.eye(64))
FACTS = ReferenceFacts("digits", "ab", "train", [1, 8, 8], "digits", "cd", "none")

WRITERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "text": ("page.html", lambda path: write_atomically(path, "ü" * 20_000)),
    "arrays": ("samples.npz", lambda path: write_arrays(path, images=NOISE.numpy())),
    "grid": ("grid.png", lambda path: images.save_grid(NOISE, path)),
    "points": ("p.png", lambda path: images.save_picture(torch.randn(99, 2, 1, 1), TwoMoons(), path)),
    "images": ("out.npz", lambda path: images.save_images(NOISE, None, Namespace(quantised=True), path)),  # type: ignore[arg-type]
    "weights": ("ema.safetensors", lambda path: averages._save(path, WEIGHTS, {"std": "0.1"})),
    "moments": ("m.safetensors", lambda path: write_reference(path, MOMENTS, FACTS)),
    "figure": ("figure.png", figure(plots.save_figure)),
    "theory": ("theory.png", figure(theory._save)),
    "codes": ("codes.npz", lambda path: save_values(NOISE.numpy(), path)),
    "pairs": ("pairs.npz", lambda path: Pairs(NOISE.numpy(), np.arange(36), 0).save(path)),
    "download": ("official.gz", download),
    "checkpoint": ("last.ckpt", checkpoint),
    "run": ("config.yaml", lambda path: Run(path.parent).create({"key": "x" * 20_000})),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_what_cannot_be_written_leaves_nothing_behind(writer: str, tmp_path: Path) -> None:
    name, write = WRITERS[writer]
    path = tmp_path / "new" / name
    with files_of_at_most(1000), pytest.raises(UserError, match=f"{name}: cannot be written: File too large; raise"):
        write(path)
    assert not path.parent.exists(), "the folder made for it is gone, too"
    write(path)
    assert path.stat().st_size > 4096, "the limits here and on a full disk would not be reached"
    assert [each.name for each in path.parent.iterdir() if each.name != "run.json"] == [name]
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~_umask(), "others may read it as far as the umask allows"


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_keeps_the_file_that_was_there(writer: str, tmp_path: Path) -> None:
    name, write = WRITERS[writer]
    with small_disk(tmp_path / "disk", "512k") as disk:
        path = disk / "folder" / name
        write_atomically(path, "before")
        with filled(disk, left=1), pytest.raises(UserError, match=f"{name}: cannot be written: No space left on dev"):
            write(path)
        assert path.read_text() == "before" and list(path.parent.iterdir()) == [path]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_what_is_wrong_is_said_with_the_path_and_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    wrong = {
        "n" * 300: "File name too long; choose a shorter name",
        "file/x": "choose another path",
        "folder": "not a regular file; choose another path",
        "pipe": "not a regular file; choose another path",
    }
    for name, remedy in wrong.items():
        with pytest.raises(UserError, match=f"{name}.*: .*{remedy}"):
            write_atomically(tmp_path / name, "content")
    with pytest.raises(UserError, match="/dev/null: not a regular file"):
        write_atomically("/dev/null", "root would put a file in the place of the device")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder", "pipe"]


def test_a_folder_without_permission_is_said(tmp_path: Path) -> None:
    nobody, own = 65534, os.geteuid()
    tmp_path.chmod(0o500)
    if own == 0:
        os.seteuid(nobody)
    try:
        with pytest.raises(UserError, match="x: cannot be written: Permission denied; choose a place that you may"):
            write_atomically(tmp_path / "x", "content")
        with pytest.raises(UserError, match="journal.jsonl: cannot be written: Permission denied"):
            Journal(tmp_path / "journal.jsonl", "one")
    finally:
        os.seteuid(own)
        tmp_path.chmod(0o700)


def test_errors_of_others_and_interrupts_pass_and_clean_up(tmp_path: Path) -> None:
    for error in (KeyboardInterrupt(), ValueError("of a number"), UserError("diverged"), ConnectionResetError(104, "")):
        with pytest.raises(type(error)) as caught, replacing(tmp_path / "x.png") as temporary:
            temporary.write_text("half")
            raise error
        assert caught.value is error and not list(tmp_path.iterdir())


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "file")
    write_atomically(tmp_path / "link", "content")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "elsewhere" / "file").read_text() == "content"


def test_only_what_the_dead_left_is_removed(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    names = [f".{name}.{dead.pid}.0123abcd.tmp{end}" for name, end in {"last": ".ckpt", "i-0": ".png", "w": ""}.items()]
    kept = [temporary_path(Path("last.ckpt")).name, "last.ckpt", ".run.lock", ".my.tmp.png", f"{dead.pid}.tmp"]
    for name in (*names, *kept):
        (tmp_path / name).touch()
    remove_temporaries(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


def journal_of(folder: Path) -> tuple[Path, Callable[[int], object]]:
    path = folder / "journal.jsonl"
    return path, lambda number: Journal(path, "one").append("started", f"trial-{number}", arguments=["--x=1"] * 40)


def metrics_of(folder: Path) -> tuple[Path, Callable[[int], object]]:
    path = folder / "metrics.csv"
    logger = MetricsFile(path)
    return path, lambda number: logger.log_metrics({f"train/{i}": number + 0.25 for i in range(12)}, number)


@pytest.mark.parametrize("kind", [journal_of, metrics_of])
def test_a_line_is_appended_whole_or_not_at_all(kind: Callable[..., Any], tmp_path: Path) -> None:
    path, line = kind(tmp_path)
    for number in range(3):
        line(number)
    whole = path.read_bytes()
    last = len(whole.splitlines(keepends=True)[-1])
    for more in (1, last // 2, last - 1):
        with files_of_at_most(len(whole) + more), pytest.raises(UserError, match=f"{path.name}: cannot be written"):
            line(3)
        assert path.read_bytes() == whole
    line(4)
    after = path.read_bytes()
    assert after.startswith(whole) and after.count(b"\n") == whole.count(b"\n") + 1


@pytest.mark.parametrize("kind", [journal_of, metrics_of])
def test_a_line_that_a_full_disk_half_takes_is_taken_back(kind: Callable[..., Any], tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        path, line = kind(disk)
        number = 0
        with filled(disk, left=2), pytest.raises(UserError, match=f"{path.name}: cannot be written: No space left"):
            for number in range(1000):
                line(number)
        whole = path.read_bytes()
        assert whole.endswith(b"\n") and whole.count(b"\n") == number + (path.suffix == ".csv")
        line(number)
        assert path.read_bytes().startswith(whole)
    if path.suffix == ".jsonl":
        assert number > 3


def test_the_journal_is_not_glued_to_what_failed(tmp_path: Path) -> None:
    path, line = journal_of(tmp_path)
    line(0)
    with files_of_at_most(path.stat().st_size + 100), pytest.raises(UserError):
        line(1)
    line(2)
    assert [event["trial"] for event in read_journal(path)] == ["trial-0", "trial-2"]


def test_a_torn_row_is_no_row_of_a_resumed_training(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_bytes(b"images,loss\r\n64,0.5\r\n12")  # of 128
    MetricsFile(path).resume(1000)
    assert path.read_bytes() == b"images,loss\r\n64,0.5\r\n"
    path.write_bytes(b"images,loss\r\nx,0.5\r\n")
    with pytest.raises(UserError, match="metrics.csv: line 2: "):
        MetricsFile(path).resume(1000)


def test_a_picture_that_is_being_drawn_is_not_on_the_page(tmp_path: Path) -> None:
    """Temporary names end as the file does, and pathlib's `*` begins with a dot as well."""
    path = tmp_path / "images-000000128.png"
    images.save_grid(NOISE, path)
    with replacing(tmp_path / "images-000000256.png") as temporary:
        temporary.write_bytes(b"half")
        assert trainings.last_pictures(tmp_path) == {"images": path}


def test_append_makes_the_file(tmp_path: Path) -> None:
    append(tmp_path / "new", "one\n")
    append(tmp_path / "new", b"two\n")
    assert (tmp_path / "new").read_text() == "one\ntwo\n"


def test_a_folder_of_images_holds_whole_ones(tmp_path: Path) -> None:
    with files_of_at_most(300), pytest.raises(UserError, match=r"out/0+\.png: cannot be written"):
        images.save_images(NOISE, None, Namespace(quantised=True), tmp_path / "out")  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()
    images.save_images(NOISE, None, Namespace(quantised=True), tmp_path / "out")  # type: ignore[arg-type]
    assert len(list((tmp_path / "out").iterdir())) == 36
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "00035.png")), NOISE[35].permute(1, 2, 0).numpy())
