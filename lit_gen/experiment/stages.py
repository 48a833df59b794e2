"""Training data that replace images: pairs of a teacher, codes or latents of a first stage.

A key that names an experiment in place of a finished run (`reflow.teacher`, `first_stage.run`) trains
that experiment first, on the same machine and with the same seed.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from lit_gen.core import scores
from lit_gen.core.errors import UserError, belonging_to
from lit_gen.experiment.arguments import as_arguments
from lit_gen.experiment.experiment import Experiment
from lit_gen.experiment.files import opening
from lit_gen.experiment.loading import load_first_stage, load_model, load_objects, load_weaker, open_finished
from lit_gen.experiment.parser import ExperimentCLI
from lit_gen.families.diffusion.models.flow_matching import FlowMatching
from lit_gen.families.diffusion.models.general import Diffusion
from lit_gen.runs.directory import Run
from lit_gen.training import processes
from lit_gen.training.callbacks.ema import load_weights, named_weights

KEYS_OF_THE_MACHINE = (
    "data.num_workers",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
)
Fit = Callable[[ExperimentCLI, Experiment], Run]
"""Train an experiment and return its run."""


class Cost(NamedTuple):
    """Cost of the training runs that another builds on.

    Attributes:
        seconds: Training time.
        flops: Floating-point operations; None if one of the runs did not count them.
    """

    seconds: float = 0.0
    flops: float | None = 0.0


def learn_pairs(cli: ExperimentCLI, experiment: Experiment, fit: Fit) -> tuple[int, Cost]:
    """Replace the training images with pairs of `reflow.teacher`, and load its weights into the model.

    Returns:
        Number of the flow that the model becomes, and the cost of its teachers. The number is 2
        for a teacher that was trained on data. A distilled model keeps the number of its teacher, which it repeats in
        one step.

    Raises:
        UserError: If the teacher or the model is not a flow, they do not fit, or the teacher is itself distilled.
    """
    settings, model, data = experiment.reflow, experiment.model, experiment.data
    if not isinstance(model, FlowMatching):
        raise UserError(f"model: {type(model).__name__} cannot learn from pairs; use --model RectifiedFlow")
    assert settings.teacher is not None
    run = _trained(cli, "reflow.teacher", settings.teacher, fit)
    teacher = load_objects(run).model
    if not isinstance(teacher, Diffusion):
        raise UserError(
            f"reflow.teacher: {run.directory} holds the model {type(teacher).__name__}, which has no "
            "paths to learn; name the run of a flow"
        )
    if isinstance(teacher, FlowMatching) and teacher.distilled:
        raise UserError(
            f"reflow.teacher: {run.directory} is distilled to one step and has no paths to learn; name the run that "
            "it was distilled from"
        )
    device = processes.device(experiment.trainer)
    load_model(run, teacher, settings.weights).to(device)
    if teacher.num_classes in (0, data.num_classes):
        teacher.follow_classes(data)
    if settings.sampler.guidance is not None and settings.sampler.guidance.run is not None:
        guidance = load_weaker(settings.sampler.guidance, teacher, device)
        settings = settings.sampled_by(settings.sampler.guided(guidance))
    data.train_on(settings.draw(run, teacher, data.source.quantised))
    if settings.start:
        _start_from(teacher, model, run)
    number: int = run.metadata.get("flow", 1) + (not model.distilled)
    which, how = f"{number}-" if number > 1 else "", ", distilled" if model.distilled else ""
    model.title = f"{which}{type(model).__name__}{how}"
    return number, cost(run.metadata)


def _start_from(teacher: Diffusion, model: Diffusion, run: Run) -> None:
    """Load the teacher's weights into the model; raise a UserError if their networks differ."""
    try:
        load_weights(model.generator, {name: w.cpu() for name, w in named_weights(teacher.generator).items()})
    except (KeyError, RuntimeError) as error:
        raise UserError(
            f"reflow.start: the network of {run.directory} is not that of the model ({error}); use the same network, "
            "or --reflow.start false"
        ) from None


def learn_encoded(cli: ExperimentCLI, experiment: Experiment, fit: Fit) -> Cost:
    """Replace the training images with their codes or latents; train the first stage if needed.

    Returns:
        The cost of the first stage.

    Raises:
        UserError: If the first stage is not of this data, or not finished.
    """
    stage = experiment.first_stage
    assert stage.run is not None
    stage.check(experiment.data)
    directory = Path(stage.run)
    if not directory.is_dir():
        directory = _trained(cli, "first_stage.run", stage.run, fit, "data.num_val").directory
    load_first_stage(stage, directory)
    stage.model.to(processes.device(experiment.trainer))
    form = experiment.model.capabilities.learns
    assert form != "images", "the parser has refused it"
    experiment.data.train_on_encoded(stage.encode(experiment.data, form))
    return cost(stage.metadata)


def cost(metadata: dict[str, Any]) -> Cost:
    """Return the cost of a training run and of those that it builds on."""
    own, earlier = (metadata.get(f"{which}_flops") for which in ("training", "earlier"))
    return Cost(
        float(metadata.get("training_seconds", 0.0)) + float(metadata.get("earlier_seconds", 0.0)),
        None if own is None or earlier is None else float(own) + float(earlier),
    )


def _trained(cli: ExperimentCLI, key: str, name: str, fit: Fit, *more: str) -> Run:
    """Return the finished run that a key names; train it first if the key names an experiment.

    It is trained on the same machine and with the same seed, and with the values of more keys of this configuration,
    unless its overrides say otherwise. Its budget is its own.
    """
    path = Path(name)
    if path.is_dir():
        return open_finished(path, key)
    if not path.is_file():
        raise UserError(f"{key}: {name} is neither a run directory nor the file of an experiment; check the path")
    config = cli.resolved()
    shared = {"seed_everything": config["seed_everything"], "run.root": config["run"]["root"]}
    shared["tracker"] = config["tracker"]
    shared |= {f"wandb.{key}": value for key, value in config["wandb"].items() if value is not None}
    for other in (*(key for key in KEYS_OF_THE_MACHINE if key.startswith("trainer")), *more):
        section, _, setting = other.partition(".")
        shared[other] = config[section][setting]
    with opening(path, key):
        with belonging_to(key):
            words = as_arguments(shared | (cli.config[f"{key}_overrides"] or {}))
            first = ExperimentCLI(["--config", name, *words])
            experiment = first.objects()
        if processes.is_first():
            print(
                f"first {name}: {_length(first)} (--{key}.budget.num_images), "
                f"then what follows it: {_length(cli)} (--budget.num_images)",
                flush=True,
            )
        with scores.unheard():
            return fit(first, experiment)


def _length(cli: ExperimentCLI) -> str:
    """Return the budget of a training run as text."""
    budget = cli.config.budget
    return f"{budget.num_images:,} images" + (f" or {budget.seconds:g} s" if budget.seconds is not None else "")
