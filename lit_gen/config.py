"""What an experiment is made of: one typed parser, built on LightningCLI, for every verb that takes a configuration.

The keys are the arguments of the classes: `model`, `data`, `trainer`, and the callbacks `budget`, `checkpoint`, `ema`,
`grid`. Beside them stand `sampler` and `evaluation`, which change no weight, and `run` and `wandb`, which only say
where things are written.
"""

import contextlib
import hashlib
import io
import json
import re
from collections.abc import Sequence
from typing import Any

import yaml
from jsonargparse import ArgumentError, Namespace, set_parsing_settings
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

import lit_gen.models  # noqa: F401  (registers the class names that a configuration may use)
from lit_gen.callbacks import EMA, Budget, Checkpoint, SampleGrid
from lit_gen.data import ImageDataModule
from lit_gen.diffusion.samplers import Sampler
from lit_gen.errors import UserError
from lit_gen.evaluation import Evaluation
from lit_gen.models.base import GenerativeModel
from lit_gen.runs import RunSettings
from lit_gen.tracking import WandbSettings

set_parsing_settings(omegaconf_absolute_to_relative_paths=True)

# A Trainer argument that is not named here is taken to change the weights.
TRAINER_KEYS_THAT_CHANGE_NO_WEIGHT = frozenset(
    """accelerator strategy logger fast_dev_run log_every_n_steps enable_checkpointing enable_progress_bar
    enable_model_summary default_root_dir profiler barebones num_sanity_val_steps val_check_interval
    check_val_every_n_epoch limit_val_batches limit_test_batches limit_predict_batches enable_autolog_hparams
    model_registry inference_mode use_distributed_sampler detect_anomaly""".split()
)
# The source's path and options change a weight only through the images, and those are in the fingerprint.
DATA_KEYS_THAT_CHANGE_NO_WEIGHT = frozenset(("source", "num_workers", "pin_memory", "eval_batch_size"))


class ExperimentCLI(LightningCLI):
    """Parses one experiment; builds its objects only when asked, since most verbs need no Trainer."""

    def __init__(self, arguments: Sequence[str]) -> None:
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
            parser_kwargs={"parser_mode": "omegaconf+", "exit_on_error": False, "prog": "lit-gen"},
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--sampler", type=Sampler | None, default=None, help="How a diffusion model draws images; null: its own."
        )
        parser.add_class_arguments(Evaluation, "evaluation")
        parser.add_class_arguments(RunSettings, "run")
        parser.add_class_arguments(WandbSettings, "wandb")
        parser.add_lightning_class_args(Budget, "budget")
        parser.add_lightning_class_args(Checkpoint, "checkpoint")
        parser.add_lightning_class_args(EMA, "ema")
        parser.add_lightning_class_args(SampleGrid, "grid")
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)
        parser.link_arguments("data.image_shape", "model.init_args.image_shape", apply_on="instantiate")
        parser.link_arguments("data.num_classes", "model.init_args.num_classes", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        assert isinstance(args, list)
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                self.config = parser.parse_args(normalise_arguments(args))
        except ArgumentError as error:
            raise UserError(_one_line(error)) from None

    def instantiate_classes(self) -> None:
        """Deferred: `objects()` and `instantiate_trainer()` build what a verb needs."""

    def objects(self) -> Namespace:
        """Builds everything but the Trainer: data, model, callbacks, sampler, evaluation and settings."""
        try:
            self.config_init = self.parser.instantiate_classes(self.config)
        except ArgumentError as error:
            raise UserError(_one_line(error)) from None
        return self.config_init

    def resolved(self) -> dict[str, Any]:
        """The whole configuration, defaults included, as plain YAML types."""
        text = self.parser.dump(self.config, skip_unset=False, skip_link_targets=True)
        config: dict[str, Any] = yaml.safe_load(text)
        config.pop("config", None)
        return config


def normalise_arguments(arguments: Sequence[str]) -> list[str]:
    """Puts arguments into the one order that the parser reads rightly; `wandb agent` gives them in any order.

    A configuration file comes first (given later it would wipe what stands before it), then parents before their
    parts (`--sampler` before `--sampler.steps`); a sweep's null, which arrives as the text `None`, becomes null.
    """
    pairs: list[str] = []
    words = list(arguments)
    while words:
        word = words.pop(0)
        if word.startswith("-") and "=" not in word and words and not re.match(r"--?[a-zA-Z]", words[0]):
            word = f"{word}={words.pop(0)}"
        pairs.append(re.sub(r"^(--[^=]+)=None$", r"\1=null", word))
    if any("+=" in pair for pair in pairs):
        return sorted(pairs, key=lambda pair: not _is_config(pair))

    def depth(pair: str) -> tuple[bool, int]:
        return not _is_config(pair), pair.partition("=")[0].count(".")

    return sorted(pairs, key=depth)


def _is_config(pair: str) -> bool:
    return pair.partition("=")[0] in ("--config", "-c")


def training_config(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a resolved configuration that changes the weights, and nothing else."""
    data = {key: value for key, value in config["data"].items() if key not in DATA_KEYS_THAT_CHANGE_NO_WEIGHT}
    trainer = {
        key: value for key, value in config["trainer"].items() if key not in TRAINER_KEYS_THAT_CHANGE_NO_WEIGHT
    }
    keys = ("seed_everything", "model", "budget", "ema")
    return {key: config[key] for key in keys} | {"data": data, "trainer": trainer}


def training_identity(config: dict[str, Any], fingerprint: str) -> str:
    """A hash of everything that changes the weights: the training's configuration and the training images."""
    plain = json.dumps([training_config(config), fingerprint], sort_keys=True)
    return hashlib.sha256(plain.encode()).hexdigest()


def _one_line(error: Exception) -> str:
    """jsonargparse explains over many lines, with the usage before them; this keeps what names the key."""
    text = str(error)
    key = re.search(r'Parser key "([^"]+)"', text)
    value = re.search(r"Given value: (.*)", text)
    unrecognized = re.search(r"Unrecognized arguments: (.*)", text)
    nested = re.search(r"NestedArg\(key='([^']+)', val='?([^')]*)", text)
    if unrecognized:
        return f"unknown key {unrecognized.group(1)}; lit-gen fit --help lists the keys"
    if key and nested:
        name = f"{key.group(1)}.{nested.group(1)}"
        return f"{name}: no such key, or --{key.group(1)} CLASS must be given with it ({_reason(text)})"
    if key and value:
        return f"{key.group(1)}: {value.group(1).strip()!r} is not accepted: {_reason(text)}"
    return " ".join(text.split())


def _reason(text: str) -> str:
    reasons = [line.strip(" -") for line in text.splitlines() if line.strip().startswith("- ")]
    reasons = [reason for reason in reasons if "NoneType" not in reason]
    text = re.sub(r'^Parser key "[^"]+":', "", text)
    return " ".join("; ".join(reasons).split()) or " ".join(text.split())


