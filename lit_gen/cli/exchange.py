"""`lit-gen export` and `lit-gen import`: models leave and enter as folders of safetensors."""

import argparse
from pathlib import Path
from typing import Any

from lit_gen.cli import help
from lit_gen.core.errors import UserError
from lit_gen.core.text import printable
from lit_gen.experiment.exporting import export_run
from lit_gen.experiment.exporting_to_diffusers import export_to_diffusers
from lit_gen.experiment.foreign import import_folder, import_function, is_of_diffusers
from lit_gen.experiment.importing import import_exported
from lit_gen.report.card import diffusers_card, model_card
from lit_gen.runs.directory import Run
from lit_gen.runs.exported import Exported
from lit_gen.runs.weights import parse_weights


def export_model(options: argparse.Namespace) -> Path:
    """Write the model of a run to a folder, and return the folder."""
    parse_weights(options.weights, "--weights")
    if options.push is not None:
        hub()  # before anything is written
    if options.format == "diffusers":
        folder = export_to_diffusers(options.run, options.to, options.weights, diffusers_card)
    else:
        folder = export_run(options.run, options.to, options.weights, model_card).folder
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{options.run}: {options.weights} weights -> {folder} ({size / 1e6:.1f} MB)")
    if options.push is not None:
        print(push(folder, options.push, options.private))
    return folder


def push(folder: Path, name: str, private: bool) -> str:
    """Upload a folder to a repository of the Hugging Face hub, and return its address.

    Raises:
        UserError: If huggingface_hub is not installed, or the upload fails.
    """
    api = hub().HfApi()
    try:
        address = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=str(folder), commit_message="Upload by lit-gen export")
    except Exception as error:  # of the network, the account or the name
        reason = printable(" ".join(str(error).split())[:200])
        raise UserError(
            f"--push: {name}: {type(error).__name__}: {reason}; {folder} is written, so correct this and upload it "
            "with huggingface-cli upload"
        ) from None
    return str(address)


def hub() -> Any:
    """Return huggingface_hub; raise a UserError if it is not installed."""
    try:
        import huggingface_hub
    except ImportError:
        raise UserError("--push: huggingface_hub is not installed; pip install 'lit_gen[hub]'") from None
    return huggingface_hub


def import_model(arguments: list[str]) -> Run:
    """Make a finished run of a model that was trained elsewhere, and return the run."""
    options, words = help.import_parser().parse_known_args(arguments)
    if options.images_seen < 0:
        raise UserError(f"--images-seen: {options.images_seen} is not a number of images; give 0 or more")
    if options.denoiser is not None:
        if options.path is not None:
            raise UserError(f"--denoiser: cannot be given with the folder {options.path}; give one of the two")
        return import_function(options.denoiser, words, options.images_seen)
    if options.path is None:
        raise UserError("PATH: missing; give a folder, as in lit-gen import exported/digits_edm")
    if Exported.is_one(options.path):
        return import_exported(options.path, words)
    if is_of_diffusers(options.path):
        return import_folder(options.path, words, options.images_seen)
    raise UserError(
        f"PATH: {options.path} is neither an exported model nor a folder of diffusers; give a folder with config.json "
        "and safetensors"
    )
