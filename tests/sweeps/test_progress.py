"""What a sweep shows of its running trials."""

from io import StringIO
from pathlib import Path

from rich.console import Console

from lit_gen.step import Step
from lit_gen.sweeps.progress import SweepProgress
from lit_gen.sweeps.spec import Trial

TRIALS = [Trial("a", {"model": "EDM"}, ["--model=EDM"]), Trial("b", {"model": "VAE"}, ["--model=VAE"])]


def shown(terminal: bool) -> str:
    output = StringIO()
    console = Console(file=output, force_terminal=terminal, width=160, color_system=None)
    with SweepProgress(console, TRIALS, num_finished=0, jobs=2) as progress:
        for trial in TRIALS:
            progress.started(trial)
        progress.stepped(TRIALS[0], Step("training", 6400, 64000, 640.0))
        progress.stepped(TRIALS[1], Step("evaluating one_pass", 100, 400, 60.0))
        progress._bars.refresh()
        progress.finished(TRIALS[0], Path("nowhere"), 100.0)
        progress._bars.refresh()
    return output.getvalue()


def test_bars_of_the_trials_and_of_the_sweep_tell_images_per_second() -> None:
    lines = shown(terminal=True).splitlines()
    trials = [line for line in lines if "trials" in line]
    assert any("0 finished, 0 failed of 2, 700 images/s" in line for line in trials)
    assert any("1 finished, 0 failed of 2, 60 images/s, about 0:50 left" in line for line in trials)
    assert any("model=EDM" in line and "640 images/s, 1:30 left, training" in line for line in lines)
    assert any("model=VAE" in line and "60 images/s, 0:05 left, evaluating" in line for line in lines)


def test_elsewhere_a_line_for_each_trial_that_ends_and_no_more() -> None:
    assert shown(terminal=False).splitlines() == ["[1/2] model=EDM    100.0 s"]
