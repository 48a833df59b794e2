"""The typed parser of an experiment, built on LightningCLI, for every verb that takes a configuration.

The keys are the arguments of the classes: `model`, `data`, `trainer`, and the settings of the callbacks `budget`,
`checkpoint`, `ema`, `grid` and `monitor`. `reflow` replaces the images by pairs sampled from another run, `first_stage`
by their codes or latents. In addition, `sampler` and `evaluation` do not change the weights, and `run`, `tracker` and
`wandb` name the places of the files.
"""

import contextlib
import copy
import inspect
import io
import math
from collections.abc import Sequence
from enum import Enum
from functools import cached_property, partial, reduce
from importlib import import_module
from operator import or_
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import yaml
from jsonargparse import ArgumentError, Namespace
from lightning.pytorch import seed_everything
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

import lit_gen.families  # noqa: F401  (registers the class names that a configuration may use)
from lit_gen.core.data_facts import DataFacts
from lit_gen.core.errors import UserError
from lit_gen.core.seeds import check_seed
from lit_gen.core.trainer_settings import TrainerSettings
from lit_gen.data.module import ImageDataModule
from lit_gen.evaluation.monitor import MonitorSettings
from lit_gen.evaluation.protocol import Evaluation
from lit_gen.experiment import key_help
from lit_gen.experiment.arguments import is_config, normalise_arguments
from lit_gen.experiment.build import build
from lit_gen.experiment.experiment import Experiment
from lit_gen.experiment.files import check_argument, check_config
from lit_gen.experiment.first_stage import FirstStage, FirstStageSettings
from lit_gen.experiment.messages import one_line
from lit_gen.experiment.reflow import Reflow
from lit_gen.experiment.trust import check_parsed, keys_alone, plain_key
from lit_gen.families.base import GenerativeModel
from lit_gen.families.settings import Sampler
from lit_gen.runs.directory import TRAINED_FIRST, RunSettings
from lit_gen.runs.tracking import TrackerName, WandbSettings
from lit_gen.training.callbacks.budget import BudgetSettings
from lit_gen.training.callbacks.checkpoint import CheckpointSettings
from lit_gen.training.callbacks.ema import EMASettings
from lit_gen.training.callbacks.sample_grid import SampleGridSettings

# Some callbacks of Lightning have a member of an enumeration for a default; a file holds its value.
yaml.SafeDumper.add_multi_representer(Enum, lambda dumper, member: dumper.represent_data(member.value))

LINKED = {"image_shape": "the data, or the first stage,", "num_classes": "the data", "num_codes": "the first stage"}
"""Arguments of a model that cannot be set, and their sources."""
GROUPS: dict[type, str] = {
    ImageDataModule: "data",
    Evaluation: "evaluation",
    Reflow: "reflow",
    FirstStageSettings: "first_stage",
    RunSettings: "run",
    WandbSettings: "wandb",
    BudgetSettings: "budget",
    CheckpointSettings: "checkpoint",
    EMASettings: "ema",
    SampleGridSettings: "grid",
    MonitorSettings: "monitor",
}
"""Classes whose arguments are the keys of a group."""
SET_BY_THE_MODEL = {"out_channels": None, "augment_dim": 0}
"""Arguments of a network that its model sets, and their values until then."""


class ExperimentCLI(LightningCLI):
    """Parser of one experiment; it builds the objects only when asked, since most verbs need no Trainer.

    Args:
        arguments: Words of the command line.
        verb: The verb, for messages.
        options: Options of the verb that are not keys of a configuration.
    """

    def __init__(self, arguments: Sequence[str], verb: str = "fit", options: Sequence[str] = ()) -> None:
        self.verb = verb
        self.options = options
        self.words: list[str] = []
        """Arguments in the order that the parser needs."""
        super().__init__(
            GenerativeModel,
            ImageDataModule,
            subclass_mode_model=True,
            run=False,
            args=list(arguments),
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            save_config_callback=None,
            trainer_defaults={
                "max_epochs": -1,
                "use_distributed_sampler": False,
                "enable_model_summary": False,
                "num_sanity_val_steps": 0,
                "log_every_n_steps": 20,
                "enable_checkpointing": False,
            },
            parser_kwargs={
                "parser_mode": "omegaconf+",
                "exit_on_error": False,
                "prog": "lit-gen",
                "allow_abbrev": False,  # a key that lacks its end is misspelt
            },
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--sampler",
            type=Sampler | None,
            default=None,
            enable_path=True,
            help="The sampler; null: the default sampler of the model.",
        )
        parser.add_argument(
            "--tracker",
            type=TrackerName | list[TrackerName],
            default="wandb",
            help="Where curves, pictures and scores are logged in addition to the run directory; may be a list.",
        )
        for group, key in GROUPS.items():
            if group is not ImageDataModule:  # added by LightningCLI
                parser.add_class_arguments(group, key)
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)
        parser.link_arguments(
            ("data.image_shape", "first_stage"),
            "model.init_args.image_shape",
            compute_fn=lambda image_shape, first_stage: first_stage.shape(image_shape),
            apply_on="instantiate",
        )
        parser.link_arguments("first_stage.num_codes", "model.init_args.num_codes", apply_on="instantiate")
        parser.link_arguments("data.num_classes", "model.init_args.num_classes", apply_on="instantiate")
        prefer_int(parser)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        assert isinstance(args, list)
        if text := key_help.find(parser, args, self.verb):
            print(text)
            raise SystemExit(0)
        words = self.words = normalise_arguments(args)
        for word in words:
            if is_config(word):
                check_config(Path(word.partition("=")[2]))
            check_argument(word)
        overrides = {key: [word for word in words if word.startswith(f"--{key}.")] for key in TRAINED_FIRST}
        own = [word for word in words if not any(word in part for part in overrides.values())]
        try:
            with contextlib.redirect_stderr(io.StringIO()), keys_alone():
                self.config = parser.parse_args(own)
        except ArgumentError as error:
            raise UserError(one_line(error, parser, self.options, self.verb)) from None
        except RecursionError:
            raise UserError("--config: classes within each other are nested too deeply; write fewer levels") from None
        check_parsed(parser, self.config, {f"model.{key}" for key in LINKED})
        _check_numbers(self.config.as_dict(), "")
        for key, part in overrides.items():  # settings of another experiment, which this parser does not know
            settings = dict(word.removeprefix(f"--{key}.").partition("=")[::2] for word in part)
            self.config[f"{key}_overrides"] = (self.config[f"{key}_overrides"] or {}) | settings or None
        if self.config.first_stage.run is not None:  # a run keeps its first stage beside its configuration
            for word in filter(is_config, words):
                beside = Path(word.partition("=")[2]).parent / self.config.first_stage.run
                self.config.first_stage.run = str(beside) if beside.is_dir() else self.config.first_stage.run

    def _set_seed(self) -> None:
        """Leave the seed to `objects`."""

    def instantiate_classes(self) -> None:
        """Leave the objects to `objects` and `instantiate_trainer`, which build what a verb needs."""

    def objects(self, facts: DataFacts | None = None) -> Experiment:
        """Build everything but the Trainer: data, model, callbacks, sampler, evaluation and settings.

        The global generators are seeded first, so that the initial weights are those of `seed_everything`.

        Args:
            facts: Facts that a run recorded about its data; images are then not read.
        """
        for key in TRAINED_FIRST:
            name, overrides = self.config[key], self.config[f"{key}_overrides"]
            if overrides and (name is None or Path(name).is_dir()):
                why = "no experiment is trained first" if name is None else f"{name} is trained already"
                raise UserError(
                    f"{key}.{next(iter(overrides))}: {why}; remove the key, or name an experiment file as --{key}"
                )
        network = self.config.get("model.init_args.network")
        if isinstance(network, Namespace) and network.class_path.startswith("lit_gen."):
            for setting, unset in SET_BY_THE_MODEL.items():
                if network.get(f"init_args.{setting}", unset) != unset:
                    raise UserError(f"model.network.{setting}: the model sets this value; remove the key")
        module, _, name = self.config.model.class_path.rpartition(".")
        model: type[GenerativeModel] = getattr(import_module(module), name)
        first_stage = self.config.first_stage.run
        if first_stage is not None and model.capabilities.learns == "images":
            raise UserError(
                f"first_stage.run: {name} trains on images and does not support a first stage; remove the key, "
                "or use TokenPrior or a diffusion model"
            )
        for key, source in LINKED.items():
            given = self.config.model.init_args.get(key)
            if given is not None and given != _default(model, key):
                raise UserError(f"model.{key}: it comes from {source} and cannot be set to {given}; remove the key")
        seed_everything(self.config.seed_everything, verbose=False)
        try:
            with_facts = (partial(_with_facts, facts), ImageDataModule, False)
            with_build = (_first_stage, FirstStageSettings, False)
            self.config_init = build(self.parser, self.config, GROUPS, [with_facts, with_build])
        except (ArgumentError, ValueError) as error:
            raise UserError(one_line(error)) from None
        if first_stage is not None:
            self.config_init.model.follow(self.config_init.first_stage)
        return Experiment.of(self.config_init, TrainerSettings.of(vars(self.config.trainer)))

    def resolved(self) -> dict[str, Any]:
        """Return the whole configuration as it was parsed, defaults included, as plain YAML types."""
        return copy.deepcopy(self._resolved)

    @cached_property
    def _resolved(self) -> dict[str, Any]:
        try:
            text = self.parser.dump(self.config, skip_unset=False, skip_link_targets=True)
        except (ValueError, TypeError) as error:
            raise UserError(
                f"--config: cannot be saved as YAML ({' '.join(str(error).split())}); remove the key"
            ) from None
        config: dict[str, Any] = yaml.safe_load(text)
        config.pop("config", None)
        return config


def _check_numbers(value: Any, key: str) -> None:
    """Raise a UserError if a value of a configuration, or one in it, is a seed out of range or not a number."""
    if isinstance(value, dict):
        for name, part in value.items():
            _check_numbers(part, f"{key}.{name}" if key else str(name))
    elif isinstance(value, (list, tuple)):
        for part in value:
            _check_numbers(part, key)
    elif isinstance(value, float) and math.isnan(value):
        raise UserError(f"{plain_key(key)}: nan is not a number; give one, or remove the key")
    elif isinstance(value, int) and key.endswith(("seed", "seed_everything")):
        check_seed(value, plain_key(key))


def prefer_int(parser: LightningArgumentParser) -> None:
    """Let a number such as 5 be an int if its key takes an int or a float, whichever its type names first.

    `typing` takes `int | float` and `float | int` for equal and may return either, whichever a package has named first.
    To Lightning 1 is one batch, and 1.0 is all of them.
    """
    for action in parser._actions:
        hint = getattr(action, "_typehint", None)
        kinds = get_args(hint)
        if get_origin(hint) in (Union, UnionType) and int in kinds and float in kinds:
            others = [kind for kind in kinds if kind not in (int, float)]
            action._typehint = reduce(or_, others, int | float)  # type: ignore[attr-defined]


def _with_facts(facts: DataFacts | None, data_module: type[ImageDataModule], **settings: Any) -> ImageDataModule:
    """Build the data module, whose shape and classes are those of the facts."""
    return data_module(**settings).with_facts(facts)


def _first_stage(settings: type[FirstStageSettings], **values: Any) -> FirstStage:
    """Build the first stage, whose experiment this parser reads as well."""
    return FirstStage(settings(**values), build_objects)


def build_objects(arguments: Sequence[str], facts: DataFacts | None = None) -> Experiment:
    """Build the objects of an experiment from its arguments, as `ExperimentCLI.objects` does."""
    return ExperimentCLI(arguments).objects(facts)


def _default(model: type[GenerativeModel], key: str) -> Any:
    """Return the default of an argument of the model or of a base class; None if there is no such argument."""
    parameters = (inspect.signature(base.__init__).parameters for base in model.__mro__)  # type: ignore[misc]
    return next((named[key].default for named in parameters if key in named), None)
