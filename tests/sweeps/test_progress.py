"""What a sweep shows of its running trials."""

import json
import re
import time
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text

from lit_gen.core.progress import Step
from lit_gen.sweeps import load_sweep
from lit_gen.sweeps.labels import Labels
from lit_gen.sweeps.progress import SweepProgress, reported_names
from lit_gen.sweeps.trial import Trial
from lit_gen.sweeps.trial_table import print_trials
from tests.conftest import ROOT

TRIALS = [Trial("a", {"model": "EDM"}, ["--model=EDM"]), Trial("b", {"model": "VAE"}, ["--model=VAE"])]


def shown(terminal: bool) -> str:
    output = StringIO()
    console = Console(file=output, force_terminal=terminal, width=160, color_system=None)
    with SweepProgress(console, TRIALS, finished=[], jobs=2) as progress:
        for trial in TRIALS:
            progress.started(trial)
        progress.stepped(TRIALS[0], Step("training", 6400, 64000, 640.0))
        progress.stepped(TRIALS[1], Step("evaluating one_pass", 100, 400, 60.0))
        progress._bars.refresh()
        progress.finished(TRIALS[0], [Path("nowhere")], 100.0)
        progress._bars.refresh()
    return output.getvalue()


def test_bars_of_the_trials_and_of_the_sweep_tell_images_per_second() -> None:
    lines = shown(terminal=True).splitlines()
    trials = [line for line in lines if "trials" in line]
    assert any(re.search("0/2 +700 images/s +1:30 left", line) for line in trials)
    assert any(re.search("1/2 +60 images/s +0:05 left", line) for line in trials)
    assert any(re.search("EDM: training .* 6,400/64,000 +640 images/s +1:30 left", line) for line in lines)
    assert any(re.search("VAE: evaluating .* 100/400 +60 images/s +0:05 left", line) for line in lines)


def test_elsewhere_a_line_for_each_trial_that_ends_and_no_more() -> None:
    assert shown(terminal=False).splitlines() == ["[1/2] EDM    100.0 s"]


def test_elsewhere_a_line_a_minute_tells_what_runs_and_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    trials = [*TRIALS, *(Trial(name, {"model": name}, [f"--model={name}"]) for name in ("GAN", "Glow", "NADE"))]
    output, now = StringIO(), time.monotonic()
    with SweepProgress(Console(file=output, width=160), trials, finished=[], jobs=5) as progress:
        for seconds in (0, 59, 61, 62, 120, 122):
            monkeypatch.setattr(time, "monotonic", lambda now=now + seconds: now)
            if seconds == 59:
                for trial in trials:
                    progress.started(trial)
                progress.stepped(trials[0], Step("training", 6400, 64000, 640.0))
            if seconds == 120:
                progress.stepped(trials[1], Step("evaluating (1 of 2) one_pass", 100, 400, 60.0))
                for trial in trials[2:]:
                    progress.failed(trial, "bad", Path("log"))
            progress.log()
    lines = [line for line in output.getvalue().splitlines() if "running" in line]
    assert lines == [
        "running: 0/5 trials, 640 images/s, 1:28 left of the sweep; "
        "EDM: training 6,400/64,000 images, 640 images/s, 1:30 left; VAE: starting; GAN: starting; Glow: starting; "
        "and 1 more",
        "running: 3/5 trials, 3 failed, 700 images/s, 0:27 left of the sweep; "
        "EDM: training 6,400/64,000 images, 640 images/s, 1:30 left; "
        "VAE: evaluating (1 of 2) 100/400 images, 60 images/s, 0:05 left",
    ]


def test_without_trials_of_its_own_the_line_tells_of_other_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    output, now = StringIO(), time.monotonic()
    with SweepProgress(Console(file=output, width=160), TRIALS, finished=["a"], jobs=1) as progress:
        monkeypatch.setattr(time, "monotonic", lambda: now + 61)
        progress.log()
    assert output.getvalue() == "waiting for other processes: 1/2 trials\n"


def test_a_trial_that_another_process_runs_again_counts_once() -> None:
    output = StringIO()
    with SweepProgress(Console(file=output, width=160), TRIALS, finished=[], jobs=1) as progress:
        progress.started(TRIALS[0])
        progress.failed(TRIALS[0], "bad", Path("log"), retry="1 of 1")
        progress.started(TRIALS[0])
        progress.failed(TRIALS[0], "bad", Path("log"))
        progress.ended_elsewhere(TRIALS[0], "finished")
        progress.started(TRIALS[1])
        progress.ended_elsewhere(TRIALS[1], "another process took the trial over", ends=False)
        progress.ended_elsewhere(TRIALS[1], "FAILED: bad")
        for _ in range(2):
            progress.waiting_for_others(1)
    assert output.getvalue().splitlines() == [
        "[0/2] EDM  failed and runs again (1 of 1): bad (see log)",
        "[1/2] EDM  FAILED: bad (see log)",
        "[1/2] EDM  finished, by another process",
        "[1/2] VAE  another process took the trial over",
        "[2/2] VAE  FAILED: bad, by another process",
        "waiting for 1 trial that other processes run",
    ]


def test_a_trial_that_another_process_has_ended_may_still_run_here() -> None:
    """A machine that slept wakes up: another one has taken its trial over and finished it."""
    output, trial = StringIO(), TRIALS[0]
    with SweepProgress(Console(file=output, width=160), TRIALS, finished=[], jobs=1) as progress:
        progress.started(trial)
        progress.ended_elsewhere(trial, "finished")
        progress.silent(trial, 5, 60.0, 600.0)
        progress.heard(trial, 5)
        progress.stepped(trial, Step("training", 6400, 64000, 640.0))
        progress.finished(trial, [Path("nowhere")], 100.0)
    lines = output.getvalue().splitlines()
    assert lines[0] == "[1/2] EDM  finished, by another process" and lines[-1] == "[1/2] EDM    100.0 s"


@pytest.mark.parametrize("width", [80, 120, 200])
@pytest.mark.parametrize("files", [["quickstart", "quickstart_one_pass"], ["points"], ["likelihood", "families"]])
def test_every_number_is_seen_at_every_width(files: list[str], width: int) -> None:
    """One line for each trial and one for all, each with its bar, total, speed and time left, whatever it is called."""
    trials = load_sweep([ROOT / "sweeps" / f"{file}.yaml" for file in files]).trials
    long = Trial("long", {"config": "a_name_that_is_longer_than_any_terminal" * 9}, ["--config=long"])
    console = Console(file=StringIO(), force_terminal=True, width=width, color_system=None)
    progress = SweepProgress(console, [*trials, long], finished=[], jobs=3)
    for trial in (trials[0], trials[-1], long):
        progress.started(trial)
        progress.stepped(trial, Step("evaluating DDIM-10-0123456789", 123_456, 1_000_000, 2345.0))
    output = StringIO()
    drawn = Console(file=output, width=width, force_terminal=True, color_system="standard")
    drawn.print(progress._bars.get_renderable())
    lines = Text.from_ansi(output.getvalue()).plain.splitlines()
    assert len(lines) == 4 and all(len(line) <= width for line in lines)
    assert all(re.search(r"[━╸╺]{10} .* images/s +\d+:\d\d(:\d\d)? left", line) for line in lines), lines
    assert all("123,456/1,000,000 " in line for line in lines[1:]) and f" 0/{len(trials) + 1} " in lines[0]
    label = Labels([*trials, long]).describe(trials[0])
    assert lines[1].startswith(f"  {label[:12]}") and "…" in lines[3]


def test_trials_are_told_apart_by_what_they_have() -> None:
    """A key that another file's trials lack, and one that is the same wherever it is, tell nothing."""
    trials = [
        Trial(
            "1", {"config": "conf/a/digits_edm.yaml", "sampler": "Heun", "sampler.nfe": 3, "sampler.grid": "Edm"}, []
        ),
        Trial(
            "2", {"config": "conf/a/digits_edm.yaml", "sampler": "DDIM", "sampler.nfe": 5, "sampler.grid": "Edm"}, []
        ),
        Trial("3", {"config": "elsewhere/mine.yml", "evaluation.weights": "raw", "data.augment": None}, []),
    ]
    labels = Labels(trials)
    assert [labels.describe(trial) for trial in trials] == ["digits_edm Heun nfe=3", "digits_edm DDIM nfe=5", "mine"]


def test_trials_that_differ_only_in_what_one_lacks_are_told_apart() -> None:
    trials = [Trial("1", {"model": "EDM"}, []), Trial("2", {"model": "EDM", "model.sigma_data": 0.5}, [])]
    labels = Labels(trials)
    assert [labels.describe(trial) for trial in trials] == ["1", "sigma_data=0.5"]


def test_the_main_job_has_short_names() -> None:
    trials = load_sweep([ROOT / "sweeps" / f"{name}.yaml" for name in ("quickstart", "quickstart_one_pass")]).trials
    labels = Labels(trials)
    names = [labels.describe(trial) for trial in trials]
    assert names[0] == "digits_ddpm DDPM nfe=10" and len(set(names)) == len(names)
    assert max(map(len, names)) < 40


def test_the_names_that_a_sweep_may_rank_by(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    timing = {"sampling_seconds": 1.5, "device": "cpu"}
    path.write_text(json.dumps({"metrics": {"fid": 3.0}, "nfe": 35, "timing": timing}))
    assert reported_names(path) == ["fid", "nfe", "sampling_seconds"]
    path.write_text("[]")
    assert reported_names(path) == reported_names(tmp_path / "nowhere.json") == []


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("conf/experiment/digits_edm.yaml", "digits_edm"),
        ("/data/sets/of/birds", "birds"),
        ("Heun", "Heun"),
        ("16-mixed", "16-mixed"),
        ("/", "/"),
        ({"class_path": "lit_gen.families.diffusion.UNet"}, "UNet"),
        ({"class_path": "DiT", "init_args": {"depth": 2, "path": "a/b.ckpt"}}, "DiT(depth=2, path=b)"),
        ({"a": 1}, "{'a': 1}"),
        (0.5, "0.5"),
    ],
)
def test_a_value_is_as_short_as_it_can_be(value: object, text: str) -> None:
    assert Labels([Trial("id", {"key": value}, [])]).short(value) == text


def test_files_of_one_stem_are_told_apart_by_their_folders() -> None:
    names = [
        "conf/a/base.yaml",
        "conf/b/base.yaml",
        "other/b/base.yml",
        "./conf/c/edm.yaml",
        "/data/birds",
        "/old/birds",
    ]
    trials = [Trial(name, {"config": name}, []) for name in names]
    labels = Labels(trials)
    shown = ["a/base", "conf/b/base", "other/b/base", "edm", "data/birds", "old/birds"]
    assert [labels.describe(trial) for trial in trials] == shown
    console = Console(file=StringIO(), width=120)
    print_trials(console, trials, {})
    assert all(f" {name} " in console.file.getvalue() for name in shown)  # type: ignore[attr-defined]
    alike = [Trial(name, {"config": name}, []) for name in ("x.yaml", "x.yml", "./x.json")]
    assert [Labels(alike).describe(trial) for trial in alike] == ["x.yaml", "x.yml", "./x.json"]
    nested = [Trial(name, {"model": {"class_path": "M", "init_args": {"f": name}}}, []) for name in names[:2]]
    assert [Labels(nested).describe(trial) for trial in nested] == ["model=M(f=a/base)", "model=M(f=b/base)"]
