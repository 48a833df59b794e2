"""Run the trials of a sweep, each exactly once, across failures, interruptions and several processes.

The sweep's folder is ROOT/sweeps/NAME:

    journal.jsonl       which trials started, finished, failed and were stopped
    locks/TRIAL.1       who runs a trial (see `locks`)
    logs/TRIAL.log      output of a trial
    arguments/*.json    parameters of the trials, if the command names ${args_json_file}
    *.yaml              the sweep files as they were last given
    trials.json         ids of their trials

The id of a trial is a hash of its settings: an edited sweep file keeps the finished trials that it still contains. The
same command, started again here or on another machine with the same folder, shares the trials that are left.
"""

import json
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from lit_gen.core.errors import UserError
from lit_gen.core.files import write_atomically, writing
from lit_gen.core.text import printable
from lit_gen.sweeps.command import JSON_FILE
from lit_gen.sweeps.execution import Execution, Settings
from lit_gen.sweeps.journal import JOURNAL_NAME, outcomes, read_journal
from lit_gen.sweeps.memory import check_memory_limit, in_units
from lit_gen.sweeps.proposals import Proposals
from lit_gen.sweeps.results import SweepResult, sweep_results
from lit_gen.sweeps.spec import Sweep, load_sweep
from lit_gen.sweeps.trial import Trial, option
from lit_gen.sweeps.trial_table import print_trials


def dry_run(
    files: Sequence[Path | str],
    root: Path,
    seed: int = 0,
    count: int | None = None,
    name: str | None = None,
    console: Console | None = None,
) -> Sweep:
    """Print the trials of a sweep with their status; run and write nothing.

    Args:
        files: W&B sweep files.
        root: The runs folder.
        seed: Seed of the random searches.
        count: Largest number of trials per file.
        name: Name of the sweep; if None, the name in the first file.
        console: Console of the table.
    """
    console = console or Console()
    sweep = load_sweep(files, seed, count, name)
    folder = root / "sweeps" / sweep.name
    finished, events = sweep_results(folder), read_journal(folder / JOURNAL_NAME)
    proposals = Proposals(sweep.searches)
    proposed = {trial.id: trial for event in events if (trial := proposals.hear(event)) is not None}
    known = {trial.id for trial in sweep.trials}
    sweep = replace(sweep, trials=sweep.trials + [proposed[trial] for trial in proposed if trial not in known])
    status = {
        trial: "finished"
        if trial in finished
        else {"finished": "waiting", "stopped": "stopped early"}.get(event["event"], "failed")
        for trial, event in outcomes(events).items()
    }
    print_trials(console, sweep.trials, status)
    for note in sweep.notes:
        console.print(printable(note), markup=False, highlight=False, soft_wrap=True)
    for search in sweep.searches:
        line = f"{search.file}: method: bayes proposes up to {search.num_proposals} trials, one after the other"
        console.print(printable(line), markup=False, highlight=False, soft_wrap=True)
    num_finished = sum(trial.id in finished for trial in sweep.trials)
    line = f"sweep {sweep.name}: {len(sweep.trials)} trials, {num_finished} of them finished"
    console.print(line, markup=False, highlight=False, soft_wrap=True)
    return sweep


def run_sweep(
    files: Sequence[Path | str],
    root: Path,
    jobs: int = 1,
    seed: int = 0,
    count: int | None = None,
    name: str | None = None,
    runner: str = "lit_gen.cli.commands:run_repeats",
    console: Console | None = None,
    retries: int = 0,
    time_limit: float | None = None,
    memory_limit: int | None = None,
) -> SweepResult:
    """Run every trial that has not finished yet, including those that failed before.

    Another process that runs the same sweep shares the trials; each returns when all have ended.

    Args:
        files: W&B sweep files; their trials form one queue.
        root: The runs folder, `--run.root` of the trials that do not set it.
        jobs: Number of trials that run at once, each in its own process.
        seed: Seed of the random searches.
        count: Largest number of trials per file.
        name: Name of the sweep; if None, the name in the first file.
        runner: `module:function` that runs a trial: arguments of `lit-gen run` -> its result.json files.
        console: Console of the reports.
        retries: How often a failed trial is run again, unless its settings are at fault.
        time_limit: Seconds after which a trial is ended; None for no limit.
        memory_limit: Bytes of memory of a worker process and its children, beyond which its trial is ended; None for
            no limit.

    Raises:
        UserError: If a file is invalid.
    """
    if jobs < 1:
        raise UserError(f"--jobs: {jobs} is not a positive number; give 1 or more")
    if retries < 0:
        raise UserError(f"--retries: {retries} is negative; give 0 or more")
    if memory_limit is not None:
        check_memory_limit(memory_limit)
    console = console or Console()
    sweep = load_sweep(files, seed, count, name)
    for search in sweep.searches:
        search.check()
    folder = root / "sweeps" / sweep.name
    with writing(folder):
        (folder / "logs").mkdir(parents=True, exist_ok=True)
    searches = [search.made_by(lambda trial: _placed(trial, root, folder)) for search in sweep.searches]
    sweep = replace(sweep, trials=[_placed(trial, root, folder) for trial in sweep.trials], searches=searches)
    _keep_files(sweep, folder)
    options = {"root": root, "jobs": jobs, "seed": seed, "count": count, "name": name}
    again = shlex.join(command_of(sweep.files, time_limit, memory_limit, **options, retries=retries))
    settings = Settings(jobs, runner, retries, time_limit, memory_limit, again)
    return Execution(sweep, root, folder, settings, console).run()


_DEFAULTS = {"root": Path("runs"), "jobs": 1, "seed": 0, "retries": 0}


def command_of(
    files: Sequence[Path], time_limit: float | None, memory_limit: int | None = None, **options: object
) -> list[str]:
    """Return the words of the command of a sweep, with the options that differ from their defaults."""
    options["time_limit"] = None if time_limit is None else f"{time_limit:.15g}s"  # without an exponent
    options["memory_limit"] = None if memory_limit is None else in_units(memory_limit)
    given = {key.replace("_", "-"): value for key, value in options.items() if value != _DEFAULTS.get(key)}
    words = [word for key, value in given.items() for word in (f"--{key}", str(value))]
    return ["lit-gen", "sweep", *map(str, files), *words]


def _placed(trial: Trial, root: Path, folder: Path) -> Trial:
    """Return a trial with the runs folder among its arguments, and write its parameters if its command names a file."""
    arguments = trial.arguments
    if option(arguments, "run.root") is None:
        arguments = [*arguments, f"--run.root={root}"]
    if JSON_FILE in arguments:
        path = folder / "arguments" / f"{trial.id}.json"
        write_atomically(path, json.dumps(trial.parameters) + "\n")
        arguments = [str(path) if argument == JSON_FILE else argument for argument in arguments]
    return replace(trial, arguments=arguments)


def _keep_files(sweep: Sweep, folder: Path) -> None:
    """Save copies of the sweep files, numbered if two have the same name."""
    names: set[str] = set()
    for number, file in enumerate(sweep.files, start=1):
        name = file.name if file.name not in names else f"{number}-{file.name}"
        names.add(name)
        if file.resolve() != (folder / name).resolve():
            write_atomically(folder / name, file.read_bytes())
