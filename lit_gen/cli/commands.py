"""The verbs that need a configuration: fit, run, evaluate, sample, reflow; and ema.

Data flows one way: config -> data -> model -> samples -> metrics -> result file.
"""

import math
from pathlib import Path
from typing import Any

from jsonargparse._util import import_object

from lit_gen.cli import help
from lit_gen.cli.reopen import check_named, one_run, reopen
from lit_gen.cli.sample import sample
from lit_gen.core.data_facts import DataFacts
from lit_gen.core.errors import UserError
from lit_gen.core.processes import ranks
from lit_gen.evaluation.evaluate import Subject, evaluate_repeats
from lit_gen.experiment.checks import check_evaluation, check_scored
from lit_gen.experiment.experiment import Experiment
from lit_gen.experiment.fit import fit_run
from lit_gen.experiment.loading import load_model
from lit_gen.experiment.parser import ExperimentCLI
from lit_gen.experiment.preparation import prepare_sampler
from lit_gen.families.diffusion.models.flow_matching import FlowMatching
from lit_gen.metrics.reference_files import ReferenceFacts
from lit_gen.report.leaderboard import describe_likelihood
from lit_gen.report.rows import quantile
from lit_gen.runs.directory import REFERENCE, Run
from lit_gen.runs.power_averages import gamma_of
from lit_gen.runs.tracking import LoggedEvaluation, over_repeats, under_an_agent
from lit_gen.runs.weights import Width, reconstruct
from lit_gen.training import processes

__all__ = ["ema", "evaluate", "fit", "reflow", "run", "run_repeats", "sample"]


def fit(arguments: list[str]) -> Run:
    """Train a model in its run directory, from the last checkpoint if there is one, and return the run.

    A finished run is left as it is.
    """
    cli = ExperimentCLI(arguments, "fit")
    return fit_run(cli, cli.objects())


def run(arguments: list[str]) -> Path:
    """Train unless a finished run of the same training exists, evaluate, and return the path of the first result."""
    return run_repeats(arguments)[0]


def run_repeats(arguments: list[str]) -> list[Path]:
    """Do what `run` does, and return the paths of the results of all sampling seeds."""
    cli = ExperimentCLI(arguments, "run")
    experiment = cli.objects()
    check_evaluation(experiment)
    return _evaluate(fit_run(cli, experiment), cli)


def evaluate(arguments: list[str]) -> Path:
    """Score a run with a sampler and a protocol, and return the path of the first result."""
    run, cli, _ = reopen(arguments, "evaluate")
    return _evaluate(run, cli)[0]


def reflow(arguments: list[str]) -> Run:
    """Train the model of a run again on pairs that the run samples, and return the new run."""
    check_named(arguments, "reflow")
    run, rest = one_run(arguments, "reflow")
    if not any(word.partition("=")[0] == "--model" for word in rest):
        _check_flow(run)
    if "--distill" in rest:
        words = (word for word in rest if word != "--distill")
        rest = ["--model.density", "noise", "--model.stratified", "false", "--evaluation.likelihood", "0", *words]
    teacher = ["--reflow.teacher", str(run.directory), "--reflow.teacher_overrides", "null"]
    cli = ExperimentCLI(["--config", str(run.config), *teacher, *rest], "reflow", help.own_options("reflow"))
    return fit_run(cli, cli.objects())


def _check_flow(run: Run) -> None:
    """Raise a UserError if the model of a run cannot be trained on pairs."""
    name = ExperimentCLI(["--config", str(run.config)]).config.model.class_path
    if not issubclass(import_object(name), FlowMatching):
        raise UserError(
            f"RUN: {run.directory} holds the model {name.rpartition('.')[2]}, which cannot learn from pairs; name the "
            "run of a RectifiedFlow, or add --model RectifiedFlow"
        )


def ema(directory: Path, std: float, images: int | None = None) -> Path:
    """Compute the power-function average of a width from the snapshots of a run, and return its file."""
    gamma_of(std, "--std")
    run, width = Run.open(directory), Width(std, images)
    path, facts = reconstruct(run, width)
    print(
        f"{path}: std {std:g} after {int(facts['images']):,} images, from {facts['snapshots']} snapshots "
        f"(profile error {float(facts['profile_error']):.2%})\n"
        f"  lit-gen evaluate {run.directory} --evaluation.weights {width}\n"
        f"  lit-gen sample {run.directory} --weights {width}"
    )
    return path


def _evaluate(run: Run, cli: ExperimentCLI) -> list[Path]:
    """Score a run with objects built anew, also right after its training; return the result of each sampling seed.

    Training changes its objects: the weights may have another data type, the data module serves pairs or codes, and
    the network may be compiled. Scores would then depend on whether `run` or `evaluate` computed them.
    """
    objects = cli.objects(DataFacts.recorded(run.metadata))
    objects.tracking.check()
    objects = objects.with_accepted_data(run)
    device = processes.device(objects.trainer)
    sampler = check_scored(objects, device)
    processes.launch(objects.trainer)
    model = load_model(run, objects.model, objects.evaluation.weights).to(device)
    model.follow_classes(objects.data)
    cache = run.directory.parent / REFERENCE
    prepare_sampler(model, sampler, objects.data, run, objects.evaluation.weights)
    subject = Subject(run, model, objects.data, sampler)
    evaluated: list[tuple[dict[str, Any], Path]] = []
    reference = _reference(objects, cache)
    together = objects.evaluation.num_repeats > 1 and under_an_agent()
    with processes.losses_reported(*ranks()):
        for record, path, computed in evaluate_repeats(objects.evaluation, subject, cache):
            result = record.to_dict()
            evaluated.append((result, path.parent))
            if ranks()[0] == 0:
                if not together:
                    config = cli.resolved()
                    config |= {"evaluation": config["evaluation"] | {"seed": result["seed"], "num_repeats": 1}}
                    objects.tracking.log(LoggedEvaluation(run, [result], [path.parent], config), reference)
                print_result(result, path, computed)
    if ranks()[0] == 0 and len(evaluated) > 1:
        if together:
            results, folders = zip(*evaluated, strict=True)
            objects.tracking.log(LoggedEvaluation(run, results, folders, cli.resolved()), reference)
        _print_means([result for result, _ in evaluated])
    return [folder / "result.json" for _, folder in evaluated]


def _reference(objects: Experiment, cache: Path) -> list[Path]:
    """Return the files of the reference statistics, if they are to be uploaded."""
    if "reference" not in (objects.wandb.artifacts or ()):
        return []
    net = objects.evaluation.features_of(objects.data)
    return [ReferenceFacts.of(objects.data, objects.evaluation.split, net).path(cache)]


def _print_means(results: list[dict[str, Any]]) -> None:
    """Print the mean and the standard deviation of each score over sampling seeds."""
    scores = over_repeats([result["metrics"] for result in results])
    shown = {name: pair for name, pair in scores.items() if not name.endswith(("_std", "_stderr"))}
    values = ", ".join(f"{name} {mean:.4g} ± {deviation:.2g}" for name, (mean, deviation) in shown.items())
    seeds = f"{results[0]['seed']} to {results[-1]['seed']}"
    print(f"seeds {seeds}, mean ± standard deviation over {len(results)} seeds: {values}", flush=True)


def print_result(result: dict[str, Any], path: Path, computed: bool) -> None:
    """Print the scores of a result, its protocol and its path."""
    protocol = result["protocol"]
    errors = result.get("standard_errors", {})
    shown = {name: value for name, value in result["metrics"].items() if not name.endswith(("_std", "_stderr"))}
    values = ", ".join(
        f"{name} {value:.4g}" + (f" ± {quantile(math.inf) * errors[name]:.2g}" if name in errors else "")
        for name, value in shown.items()
    )
    likelihood, reconstruction = result.get("likelihood"), result.get("reconstruction")
    protocols = "" if likelihood is None else f"  likelihood {describe_likelihood(likelihood['protocol'])}\n"
    if reconstruction is not None:
        facts = reconstruction["protocol"]
        protocols += f"  reconstructions of {facts['num_images']} images of {protocol['data']}/{facts['split']}\n"
    print(
        f"{result['model']} ({_how_sampled(result)}): {values}\n"
        f"  {protocol['num_samples']} samples against {protocol['num_real']} images of {protocol['data']}/"
        f"{protocol['split']}, {protocol['feature_net']} features\n"
        f"{protocols}"
        f"{'  the samples copy training images: see neighbours.png' + chr(10) if result.get('copies') else ''}"
        f"  {path}{'' if computed else ' (computed before)'}",
        flush=True,
    )


def _how_sampled(result: dict[str, Any]) -> str:
    """Return how the samples of a result were made, in a few words."""
    sampler = result["sampler"]
    nfe = "unknown" if result["nfe"] is None else f"{result['nfe']:g}"
    if result["run"].get("foreign"):
        return f"foreign, NFE {nfe}"
    how = sampler["name"] if sampler is not None else "its own way"
    if sampler is not None and "grid" in sampler:
        how += f", {sampler['grid']['name']} grid"
    return f"{how}, NFE {nfe}, {result['weights']} weights, seed {result['seed']}"
