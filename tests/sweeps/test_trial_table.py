"""The table of the trials, which is plain where it fits."""

from io import StringIO

from rich.console import Console

from lit_gen.sweeps import trial_table
from lit_gen.sweeps.trial import Trial
from lit_gen.sweeps.trial_table import print_trials

TRIALS = [
    Trial(f"id{n}", {"model": "模型" if n == 3 else f"M{n}", "sampler.nfe": 10**n, "text": f"[bold]{n}[/bold]"}, [])
    for n in range(12)
]


def shown(width: int) -> list[str]:
    output = StringIO()
    print_trials(Console(file=output, width=width), TRIALS, {"id1": "finished", "id2": "stopped early"})
    return output.getvalue().splitlines()


def test_plain_lines_are_those_of_the_table(monkeypatch) -> None:
    plain = shown(100)
    monkeypatch.setattr(trial_table, "cell_len", lambda text: 1000)
    assert [line.rstrip() for line in shown(100)] == [line.rstrip() for line in plain]
    assert [line.split()[-1] for line in plain[:4]] == ["status", "waiting", "finished", "early"]


def test_a_narrow_console_gets_what_fits() -> None:
    assert all(len(line) <= 60 for line in shown(60)) and len(shown(60)) > 13
