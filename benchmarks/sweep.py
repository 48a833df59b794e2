"""Measure what a sweep costs beyond its trials: the listing, and the lock and journal of each trial.

    python benchmarks/sweep.py [--trials 20000]

It takes minutes where the disk takes milliseconds to flush a file: a trial flushes three times.
Three ratios of processor time: listing trials that name many configuration files over parsing a file for each trial;
and, for listing and for sharing, a trial of a long sweep over one of a sweep of 1,000 trials, which is about one unless
a step is quadratic.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import yaml

from lit_gen.core.yaml import load_yaml
from lit_gen.sweeps.journal import Journal
from lit_gen.sweeps.locks import TrialLocks
from lit_gen.sweeps.queue import SharedTrials
from lit_gen.sweeps.spec import Sweep, load_sweep

CONFIG = Path(__file__).parents[1] / "conf" / "experiment" / "digits_edm.yaml"
NUM_FILES = 200
SHORT = 1000


def sweep_file(folder: Path, num_trials: int) -> Path:
    """Write a sweep file whose trials name `NUM_FILES` configuration files in turn."""
    files = [folder / f"config_{number}.yaml" for number in range(NUM_FILES)]
    for file in files:
        file.write_text(f"{CONFIG.read_text()}\n# {file.name}\n")
    parameters = {
        "seed_everything": {"values": list(range(num_trials // NUM_FILES))},
        "config": {"values": [str(file) for file in files]},
    }
    path = folder / f"sweep_{num_trials}.yaml"
    path.write_text(yaml.safe_dump({"method": "grid", "command": ["run", "${args}"], "parameters": parameters}))
    return path


def milliseconds(work: Callable[[], object], number: int) -> float:
    """Return the processor time of some work in milliseconds per trial."""
    begin = time.process_time()
    work()
    return (time.process_time() - begin) / number * 1000


def share(sweep: Sweep, folder: Path) -> None:
    """Claim every trial of a sweep and record its end, as a run with trials that take no time."""
    locks = TrialLocks(folder / "locks")
    journal = Journal(folder / "journal.jsonl", locks.process.token)
    with locks:
        shared = SharedTrials(sweep.trials, journal, locks)
        while (trial := shared.claim(set())) is not None:
            journal.append("started", trial.id, arguments=trial.arguments)
            journal.append("finished", trial.id, result="result.json", seconds=0.0)
            shared.end(trial)


def main() -> None:
    """Print milliseconds per trial and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20_000, help="trials of the long sweep (default: 20000)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = {number: sweep_file(folder, number) for number in (SHORT, options.trials)}
        parsing = milliseconds(lambda: [load_yaml(CONFIG) for _ in range(SHORT)], SHORT)
        listing = {number: milliseconds(partial(load_sweep, [file]), number) for number, file in files.items()}
        sharing = {}
        for number, file in files.items():
            (folder / str(number)).mkdir()
            sweep = load_sweep([file])
            sharing[number] = milliseconds(partial(share, sweep, folder / str(number)), number)
    print(
        f"listing {SHORT:,} trials: {listing[SHORT]:.2f} ms a trial, {listing[SHORT] / parsing:.2f} of parsing a file "
        f"({parsing:.2f} ms); {options.trials:,} trials: {listing[options.trials]:.2f} ms\n"
        f"sharing {SHORT:,} trials: {sharing[SHORT]:.2f} ms a trial; {options.trials:,} trials: "
        f"{sharing[options.trials]:.2f} ms, ratio {sharing[options.trials] / sharing[SHORT]:.2f}"
    )


if __name__ == "__main__":
    main()
