"""An exported model: a folder that is read without its run, and that runs no code.

FOLDER/
    config.json          format, version, facts about run and data, default sampler, settings by public class names
    model.safetensors    the weights and buffers of the generating network
    first_stage/         the first of two stages, as in a run: config.yaml, run.json, weights.safetensors
    README.md            the model card
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lit_gen.core.data_facts import FIELDS as FACTS
from lit_gen.core.errors import UserError
from lit_gen.core.records import AMOUNT, COUNT, FLAG, RECORD, TEXT, check_fields, either, optional, read_record

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
CARD = "README.md"
FORMAT = 1
SECTIONS = ("seed_everything", "model", "data", "budget", "ema", "first_stage", "evaluation", "sampler")
"""Sections of a configuration that an exported model keeps; the others name a machine and its folders."""
REMEDY = "export it again with lit-gen export"
_FIELDS = {
    "format": COUNT,
    **dict.fromkeys(("run", "data", "config", "config.model", "config.data"), RECORD),
    **dict.fromkeys(("version", "title", "weights", "data.fingerprint"), TEXT),
    **dict.fromkeys(("run.name", "run.identity", "run.recipe"), TEXT),
    **dict.fromkeys(("images_seen", "run.flow"), COUNT),
    "run.seed": either(COUNT, FLAG),
    **dict.fromkeys(("run.training_seconds", "run.earlier_seconds"), AMOUNT),
    **dict.fromkeys(("run.training_flops", "run.earlier_flops"), AMOUNT),
    "sampler": optional(RECORD),
    **FACTS,
}
_OPTIONAL = {"run.flow", "run.training_seconds", "run.earlier_seconds", "run.training_flops", "run.earlier_flops"}
_REQUIRED = frozenset(_FIELDS) - _OPTIONAL


@dataclass(frozen=True)
class Exported:
    """An exported folder.

    Attributes:
        folder: The folder.
        facts: Content of config.json.
    """

    folder: Path
    facts: dict[str, Any]

    @classmethod
    def is_one(cls, folder: str | Path) -> bool:
        """Return whether a folder looks like an exported model."""
        return (Path(folder) / CONFIG).is_file() and (Path(folder) / WEIGHTS).is_file()

    @classmethod
    def open(cls, folder: str | Path) -> "Exported":
        """Read and validate config.json.

        Raises:
            UserError: If it cannot be read, is of a later format, or a field is missing or of a wrong type.
        """
        path = Path(folder) / CONFIG
        try:
            facts = read_record(path, REMEDY)
        except FileNotFoundError:
            raise UserError(f"{path}: not found; give a folder that lit-gen export wrote") from None
        if facts.get("format", FORMAT) != FORMAT:
            raise UserError(f"{path}: format {facts['format']} is unknown; read it with a later version of lit_gen")
        check_fields(facts, _FIELDS, _REQUIRED, path, REMEDY)
        return cls(Path(folder), facts)

    @property
    def config(self) -> dict[str, Any]:
        """The configuration of the model; other sections, which would name places, are left out."""
        return {key: value for key, value in self.facts["config"].items() if key in SECTIONS}

    @property
    def path(self) -> Path:
        """The file of the weights."""
        return self.folder / WEIGHTS

    def load_weights(self) -> dict[str, Tensor]:
        """Load the weights and buffers of the generating network by name.

        Raises:
            UserError: If the file is damaged or missing.
        """
        return load_tensors(self.path)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Load the tensors of a safetensors file by name.

    Raises:
        UserError: If the file is damaged or missing.
    """
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error}); restore it") from None


def hash_tensors(tensors: dict[str, Tensor]) -> str:
    """Return the SHA-256 (hex) of named tensors: names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
