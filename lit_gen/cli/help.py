"""Print `lit-gen VERB --help` for the verbs that name a run.

Nothing here takes time to import: help is there at once.
"""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

from lit_gen.core.errors import UserError

EVALUATION = (
    ("--evaluation.feature_net CLASS", None, "features that images are compared by (none: Inception)"),
    ("--evaluation.metrics LIST", None, "metrics of the samples, such as [FrechetDistance] (none: all that apply)"),
    ("--evaluation.num_samples N", 10_000, "number of samples"),
    ("--evaluation.split SPLIT", "train", "images of the data to compare with: train, val or test"),
    ("--evaluation.seed N", 0, "seed of the noise"),
    ("--evaluation.num_repeats N", 1, "evaluations, with the seeds seed, seed + 1, ..."),
    ("--evaluation.least_of N", 1, "seeds whose least score tables print beside the mean (1: none)"),
    ("--evaluation.weights WEIGHTS", "ema", "ema, raw, best, or an average of any width such as ema:0.1"),
    ("--evaluation.inception_splits N", 10, "splits of the samples for the inception score"),
    ("--evaluation.batch_size N", 256, "samples per batch of one process"),
    ("--evaluation.num_kept N", 64, "images kept in samples.npz and samples.png"),
    ("--evaluation.likelihood N", 0, "test images whose likelihood is computed: 0, a number, or all"),
    ("--evaluation.likelihood_method CLASS", None, "method of a diffusion model"),
    ("--evaluation.other_data BOOL", False, "accept other images than the training images"),
)
SAMPLER = (
    ("--sampler CLASS", None, "sampler, such as Heun or DDIM"),
    ("--sampler.steps N", None, "steps of a diffusion sampler"),
    ("--sampler.nfe N", None, "network evaluations, in place of steps"),
    ("--sampler.grid CLASS", None, "times of the steps, such as Karras"),
    ("--sampler.help CLASS", None, "print all keys of a sampler and stop; without CLASS: list the samplers"),
)
MACHINE = (
    ("--data.source CLASS", None, "new location of the training images (default: as recorded)"),
    ("--trainer.accelerator NAME", "auto", "auto, gpu or cpu"),
    ("--trainer.devices N", "auto", "number of devices, or their indices"),
    ("--tracker NAME", "wandb", "wandb, tensorboard, mlflow, or a list of them"),
    ("--wandb.mode MODE", "auto", "auto, online, offline or disabled"),
)
OF_THE_RUN = "Other keys are as in the config.yaml of the run."
ALL_KEYS = "lit-gen fit --help lists all keys of data, trainer and wandb."
IMPORT = (
    ("--model.schedule CLASS", None, "schedule of --denoiser, such as DiscreteVP or Rectified"),
    ("--model.parameterization CLASS", None, "what --denoiser predicts, such as Epsilon, V, Sample or Velocity"),
    ("--data.source CLASS", None, "the images that the model was trained on, and its keys"),
    ("--run.root FOLDER", "runs", "folder of the runs"),
    ("--run.name NAME", None, "first part of the run's name (none: data and model)"),
)
REFLOW = (
    ("--reflow.num_pairs N", 50_000, "number of pairs"),
    ("--reflow.sampler CLASS", None, "sampler of the run (default: Heun in 20 equal steps)"),
    ("--reflow.seed N", 1_000_000, "seed of the noise"),
    ("--reflow.weights WEIGHTS", "ema", "ema, raw, or an average of any width such as ema:0.1"),
    ("--reflow.start BOOL", True, "start from the weights of the run"),
    ("--reflow.batch_size N", 256, "pairs per batch"),
    ("--budget.num_images N", None, "images to train on (default: as many as the run)"),
)


Verbs = argparse._SubParsersAction  # type: ignore[type-arg]


class Parser(argparse.ArgumentParser):
    """Parser without abbreviated options and with one-line errors."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    @property
    def names(self) -> list[str]:
        """The options that it takes."""
        return [name for action in self._actions for name in action.option_strings]

    def error(self, message: str) -> NoReturn:
        missing = message.removeprefix("the following arguments are required: ")
        if missing != message:
            name = missing.partition(",")[0]
            action = next(action for action in self._actions if name in (action.metavar, *action.option_strings))
            raise UserError(f"{name}: missing; give {action.help}")
        raise UserError(f"{message.removeprefix('argument ')}; {self.prog} --help lists the options")


class Formatter(argparse.RawDescriptionHelpFormatter):
    """One line for each option on a terminal of 120 columns."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=42)


def _parser(verb: str, description: str, usage: str) -> Parser:
    parser = Parser(
        prog=f"lit-gen {verb}",
        usage=f"lit-gen {verb} {usage}",
        description=description,
        formatter_class=Formatter,
        add_help=False,
    )
    parser.add_argument_group("arguments").add_argument("RUN", nargs="*", help="a run directory, such as runs/digits_*")
    return parser


def _add_keys(
    parser: Parser, title: str, keys: Iterable[tuple[str, object, str]], more: str = "", defaults: bool = True
) -> None:
    """List keys of the configuration, which another parser reads; without defaults if those of a run apply."""
    group = parser.add_argument_group(title, more or None)
    for option, default, text in keys:
        name, _, metavar = option.partition(" ")
        given = f" (default: {default})" if defaults and default is not None else ""
        group.add_argument(name, metavar=metavar, help=text + given)


def sample_options(parser: Parser) -> None:
    """Add the options of `lit-gen sample` that are not keys of a configuration."""
    group = parser.add_argument_group("options")
    group.add_argument("-n", type=int, default=64, help="images (default: %(default)s)")
    group.add_argument("--seed", type=int, default=0, help="seed of the noise (default: %(default)s)")
    group.add_argument("--first", type=int, default=0, metavar="I", help="index of the first (default: %(default)s)")
    group.add_argument(
        *("--out",), type=Path, default=Path("samples.png"), help="a .png, an .npz, or a folder (default: %(default)s)"
    )
    group.add_argument("--weights", default="ema", help="ema, raw, best, or any width: ema:0.1 (default: %(default)s)")
    group.add_argument("--batch-size", type=int, default=256, metavar="N", help="images at once (default: %(default)s)")
    group.add_argument("--label", metavar="CLASS", help="images of one class, by its name or number")
    group.add_argument("--trajectory", type=Path, metavar="PNG", help="also plot the path from noise to image")
    group.add_argument("--picture", metavar="NAME", help="reconstructions, interpolations or another of the model's")


def sample_parser() -> Parser:
    """Return the parser of the options of `lit-gen sample`, which ignores the keys of a configuration."""
    parser = Parser(prog="lit-gen sample", add_help=False)
    sample_options(parser)
    return parser


def _evaluate() -> str:
    parser = _parser(
        "evaluate",
        "Sample images from a run, compare them with those of the data, and write result.json.\n\n"
        "  lit-gen evaluate runs/digits_edm-... --sampler Heun --sampler.steps 18",
        "RUN [--sampler CLASS ...] [--evaluation.KEY VALUE ...]",
    )
    _add_keys(parser, "sampler (default: the model's own)", SAMPLER)
    _add_keys(parser, "evaluation", EVALUATION, OF_THE_RUN, defaults=False)
    _add_keys(parser, "data, machine and tracking", MACHINE, f"{OF_THE_RUN} {ALL_KEYS}", defaults=False)
    return parser.format_help()


def _sample() -> str:
    parser = _parser(
        "sample",
        "Sample images of a run into a grid, an archive or a folder.\n\n"
        "  lit-gen sample runs/digits_edm-... -n 16 --out samples.png",
        "RUN [-n N] [--out FILE] [OPTIONS] [--sampler CLASS ...]",
    )
    sample_options(parser)
    _add_keys(parser, "sampler (default: the model's own)", SAMPLER)
    _add_keys(parser, "data and machine", MACHINE[:3], f"{OF_THE_RUN} {ALL_KEYS}", defaults=False)
    return parser.format_help()


def _reflow() -> str:
    parser = _parser(
        "reflow",
        "Train a rectified flow again on pairs of noise and image sampled from a finished run.\n\n"
        "  lit-gen reflow runs/digits_rectifiedflow-... --distill",
        "RUN [--distill] [--reflow.KEY VALUE ...] [--budget.num_images N]",
    )
    group = parser.add_argument_group("options")
    group.add_argument("--distill", action="store_true", help="train the model to sample in one step")
    _add_keys(parser, "pairs and training", REFLOW, "lit-gen fit --help lists all keys")
    return parser.format_help()


REAL_DATA = (
    ("--data.source CLASS", None, "the images, such as Digits, Npz or Folder, and its keys"),
    ("--data.num_val N", 0, "training images held out for validation"),
    ("--feature_net CLASS", None, "the features, and its keys (none: Inception)"),
)


REFERENCE = {
    "compute": ("--data.source CLASS [OPTIONS]", "compute the statistics of a split, unless the folder has them"),
    "list": ("[FOLDER]", "list the files of a folder"),
    "verify": ("FILE [--data.source CLASS ...]", "check a file; with data, compute it again and compare"),
    "export": ("FILE --out NPZ", "write an .npz file that pytorch-fid, EDM and ADM read"),
    "import": ("NPZ --data.source CLASS [OPTIONS]", "make a file from theirs, which evaluations then use"),
}
"""Usage and purpose of each action of `lit-gen reference`."""


def reference_parser(action: str) -> Parser:
    """Return the parser of the options of an action of `lit-gen reference`; it leaves the keys of data and net over."""
    usage, does = REFERENCE[action]
    parser = Parser(
        prog=f"lit-gen reference {action}",
        usage=f"lit-gen reference {action} {usage}",
        description=does,
        formatter_class=Formatter,
        add_help=False,
    )
    folder = Path("runs/.reference")
    if action in ("verify", "export"):
        parser.add_argument("file", type=Path, metavar="FILE", help="a file of reference statistics")
    if action == "import":
        parser.add_argument("file", type=Path, metavar="NPZ", help="mu and sigma of pytorch-fid, EDM or ADM")
    if action == "list":
        parser.add_argument("folder", type=Path, nargs="?", default=folder, help="(default: %(default)s)")
    if action == "export":
        parser.add_argument("--out", type=Path, required=True, metavar="NPZ", help="a file for mu, sigma and n")
    if action in ("compute", "import"):
        splits = ("train", "val", "test")
        parser.add_argument("--split", choices=splits, default="train", help="split (default: %(default)s)")
        parser.add_argument("--folder", type=Path, default=folder, help="folder of the file (default: %(default)s)")
    if action == "import":
        parser.add_argument("--replace", action="store_true", help="replace a file of the same data and features")
    return parser


def _reference() -> str:
    parser = Parser(
        prog="lit-gen reference",
        usage=f"lit-gen reference {'|'.join(REFERENCE)} ...",
        description="Keep the mean and covariance of the features of real images, which evaluations compare with.\n\n"
        "  lit-gen reference compute --data.source Digits --feature_net DigitsFeatures\n"
        "  lit-gen reference list",
        formatter_class=Formatter,
        add_help=False,
    )
    _add_keys(parser, "data and features of compute, verify and import", REAL_DATA)
    return "\n".join([parser.format_help(), *(reference_parser(action).format_help() for action in REFERENCE)])


def import_parser() -> Parser:
    """Return the parser of the options of `lit-gen import`; it leaves the keys of a configuration over."""
    parser = Parser(
        prog="lit-gen import",
        usage="lit-gen import PATH|--denoiser FUNCTION [--data.source CLASS ...] [OPTIONS]",
        description="Make a finished run of a model that was trained elsewhere.\n\n"
        "  lit-gen import exported/digits_edm\n"
        "  lit-gen import ddpm-cifar10-32 --data.source CIFAR10\n"
        "  lit-gen import --denoiser mine.denoiser --model.schedule DiscreteVP --model.parameterization Epsilon ...",
        formatter_class=Formatter,
        add_help=False,
    )
    parser.add_argument("path", type=Path, nargs="?", metavar="PATH", help="a folder of lit-gen export or of diffusers")
    parser.add_argument("--denoiser", metavar="FUNCTION", help="import path of your own function(x, c_noise, labels)")
    parser.add_argument("--images-seen", type=int, default=0, metavar="N", help="images it was trained on (default: 0)")
    return parser


def _import() -> str:
    parser = import_parser()
    _add_keys(parser, "model, data and run", IMPORT, ALL_KEYS)
    return parser.format_help()


_OF_IMAGES = ("feature_net", "metrics", "split", "inception_splits", "batch_size", "num_kept")
SCORE = (
    ("--evaluation.num_samples N", None, "score the first N images (default: all)"),
    *(key for key in EVALUATION if key[0].partition(" ")[0].removeprefix("--evaluation.") in _OF_IMAGES),
)
"""Keys of an evaluation of images that exist already."""


def score_parser() -> Parser:
    """Return the parser of the options of `lit-gen score`; it leaves the keys of data and evaluation over."""
    parser = Parser(
        prog="lit-gen score",
        usage="lit-gen score IMAGES --data.source CLASS [--name NAME] [OPTIONS] [--evaluation.KEY VALUE ...]",
        description="Score images that other software made, like the samples of a run, on the same leaderboard.\n\n"
        "  lit-gen score their_images --data.source Digits --evaluation.feature_net DigitsFeatures --name Theirs",
        formatter_class=Formatter,
        add_help=False,
    )
    what = "a folder of pictures, or an .npz, .npy or .pt"
    parser.add_argument("images", type=Path, metavar="IMAGES", help=what)
    group = parser.add_argument_group("facts of the row")
    group.add_argument("--name", metavar="NAME", help="name of the row (default: that of the file)")
    group.add_argument("--nfe", type=float, metavar="N", help="network evaluations per image")
    group.add_argument("--parameters", type=int, metavar="N", help="parameters of the model that made the images")
    group.add_argument("--root", type=Path, default=Path("runs"), help="folder of the runs (default: %(default)s)")
    return parser


def _score() -> str:
    parser = score_parser()
    _add_keys(parser, "data", REAL_DATA[:2])
    _add_keys(parser, "evaluation", SCORE)
    return parser.format_help()


OF_A_RUN: dict[str, Callable[[], str]] = {
    "evaluate": _evaluate,
    "sample": _sample,
    "reflow": _reflow,
    "import": _import,
    "reference": _reference,
    "score": _score,
}


def own_options(verb: str) -> list[str]:
    """Return the options of a verb that are not keys of a configuration."""
    return {"sample": sample_parser().names, "reflow": ["--distill"]}.get(verb, [])
