"""Read the weights of feature nets from files: tensors only, since such a file may come from anyone."""

import hashlib
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors file, or of a file of torch.save; runs no code of the file.

    Raises:
        ValueError: If the file holds anything but tensors by name.
        Exception: If it is damaged; safetensors, torch and the file system have exceptions of their own.
    """
    if path.suffix == ".safetensors":
        return load_file(path)
    content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError("it holds more than tensors by name")
    return content


def file_version(path: Path) -> str:
    """Return the hash of a weights file, the version of its features."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def first_line(error: Exception) -> str:
    """Return the first line of an error, or its class."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
