"""The verb `sweep`: its parser, and the tables and figures of a sweep. Nothing here takes time to import."""

import argparse
import re
from pathlib import Path

from lit_gen.cli import help
from lit_gen.core.errors import UserError
from lit_gen.core.files import write_atomically
from lit_gen.core.text import printable

_SECONDS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}


def add(verbs: help.Verbs) -> None:
    """Add the verb to the parser of the command."""
    parser = verbs.add_parser(
        "sweep",
        usage="lit-gen sweep SWEEP.yaml ... [OPTIONS]",
        description="Run every trial of W&B sweep files on this machine, with no account.\n\n"
        "  lit-gen sweep sweeps/quickstart.yaml --jobs 2\n\n"
        "The same command, started again here or on another machine with the same --root, shares the trials.",
        formatter_class=help.Formatter,
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="SWEEP.yaml", help="one W&B sweep file or more")
    parser.add_argument("--root", type=Path, default=Path("runs"), help="folder of the runs (default: runs)")
    parser.add_argument("--jobs", type=int, default=1, help="trials at a time (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="seed of random and bayes (default: 0)")
    parser.add_argument("--count", type=int, default=None, help="largest number of trials per file")
    parser.add_argument("--name", default=None, help="name of the sweep's folder (default: the first file's name)")
    parser.add_argument("--retries", type=int, default=0, help="times to run a failed trial again (default: 0)")
    parser.add_argument("--time-limit", type=_seconds, metavar="2h", help="end a trial after so long (default: never)")
    parser.add_argument("--memory-limit", type=_bytes, metavar="4GB", help="end a trial that holds more (Linux)")
    parser.add_argument("--launcher", choices=["slurm", "ray"], help="run it as jobs of a cluster, which share it")
    parser.add_argument("--nodes", type=int, default=1, help="number of jobs of the launcher (default: 1)")
    parser.add_argument(
        "--slurm",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="parameter of the jobs, such as timeout_min=240 or slurm_partition=gpu; may be repeated",
    )
    parser.add_argument(
        "--ray",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="resource of a job, such as num_cpus=2 or num_gpus=1, or address=HOST:PORT; may be repeated",
    )
    parser.add_argument("--dry-run", action="store_true", help="list the trials and stop")
    parser.set_defaults(command=_sweep)


def _seconds(text: str) -> float:
    """Return a duration such as 2h or 1h30m in seconds."""
    if re.fullmatch(r"(\d+(\.\d+)?[dhms])+", text) and (found := re.findall(r"([\d.]+)([dhms])", text)):
        seconds = sum(float(number) * _SECONDS[unit] for number, unit in found)
        if seconds > 0:
            return seconds
    raise argparse.ArgumentTypeError(f"{text!r:.40} is not a duration such as 2h, 90m or 1h30m")


def _bytes(text: str) -> int:
    """Return a size such as 4GB or 1.5GiB in bytes."""
    from lit_gen.sweeps.memory import SIZES

    known = {name.lower(): size for name, size in SIZES.items()} | {"b": 1}
    if (found := re.fullmatch(r"(\d+(?:\.\d+)?)([a-zA-Z]+)", text)) and found[2].lower() in known:
        size = round(float(found[1]) * known[found[2].lower()])
        if size > 0:
            return size
    raise argparse.ArgumentTypeError(f"{text!r:.40} is not a size such as 4GB, 512MB or 1.5GiB")


def _sweep(options: argparse.Namespace) -> int:
    from lit_gen import sweeps
    from lit_gen.core.seeds import check_seed

    check_seed(options.seed, "--seed")
    if options.jobs < 1:
        raise UserError(f"--jobs: {options.jobs} is not a positive number of trials; give 1 or more")
    common = {"seed": options.seed, "count": options.count, "name": options.name}
    if options.dry_run:
        sweeps.dry_run(options.files, options.root, **common)
        return 0
    if options.launcher is not None:
        return _launch(options)
    if options.nodes != 1 or options.slurm or options.ray:
        raise UserError("--nodes: needs a launcher; add --launcher slurm or ray, or remove --nodes, --slurm and --ray")
    done = sweeps.run_sweep(
        options.files,
        options.root,
        jobs=options.jobs,
        retries=options.retries,
        time_limit=options.time_limit,
        memory_limit=options.memory_limit,
        **common,
    )
    if done.results and not done.interrupted:
        try:
            _report(sorted({path for results in done.results.values() for path in results}), done.folder)
        except UserError as error:  # a report that cannot be made does not undo the trials
            print(f"no report: {printable(error)}")
            return max(done.exit_status, 1)
    return done.exit_status


def _launch(options: argparse.Namespace) -> int:
    """Run the sweep on the nodes of a cluster, report what it has, and return the largest exit status."""
    from lit_gen.sweeps import current_results, load_sweep
    from lit_gen.sweeps.launchers import LAUNCHERS, make_launcher
    from lit_gen.sweeps.runner import command_of

    if options.nodes < 1:
        raise UserError(f"--nodes: {options.nodes} is not a positive number of jobs; give 1 or more")
    given = {name: getattr(options, name) for name in LAUNCHERS}
    for name, words in given.items():
        if words and name != options.launcher:
            raise UserError(f"--{name}: has no effect on --launcher {options.launcher}; remove it")
    settings = dict(word.partition("=")[::2] for word in given[options.launcher])
    if not all(settings.values()):
        key = f"--{options.launcher}"
        example = {"slurm": "timeout_min=240", "ray": "num_cpus=2"}[options.launcher]
        raise UserError(f"{key}: a parameter is not KEY=VALUE; give each one such as {key} {example}")
    name = load_sweep(options.files, options.seed, options.count, options.name).name
    folder = options.root / "sweeps" / name
    kept = {key: getattr(options, key) for key in ("root", "jobs", "seed", "count", "name", "retries")}
    words = command_of(options.files, options.time_limit, options.memory_limit, **kept)[1:]
    statuses = make_launcher(options.launcher, settings).launch(words, options.nodes, folder)
    paths = {path for results in current_results(folder).values() for path in results}
    if paths:
        _report(sorted(paths), folder)
    return max(statuses)


def _report(paths: list[Path], folder: Path) -> None:
    """Write leaderboard, distance against evaluations and samples side by side for each protocol of a sweep."""
    from lit_gen.report import leaderboard, plots, render
    from lit_gen.report.results import read_results

    groups = leaderboard.comparable(read_results(paths))
    tables, files = [], [folder / "leaderboard.md"]
    for number, results in enumerate(groups, start=1):
        board = leaderboard.rank(results)
        render.print_table(board)
        tables.append(render.to_markdown(board))
        data = re.sub(r"[^\w.=-]+", "_", results[0].protocol["data"])[:80]
        ending = "" if len(groups) == 1 else f"_{number}_{data}"
        distances, samples = folder / f"distance_vs_nfe{ending}.png", folder / f"samples{ending}.png"
        plots.distance_vs_cost(results, distances)
        plots.side_by_side(results, samples)
        files += [distances, samples]
    write_atomically(files[0], "\n".join(tables))
    for file in files:
        print(printable(file))
