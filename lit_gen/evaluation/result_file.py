"""The schema of result.json, and of the likelihood-*.json beside it: written and read here alone."""

import json
from pathlib import Path
from typing import Any

from lit_gen.core.errors import UserError
from lit_gen.core.files import write_atomically
from lit_gen.core.records import (
    AMOUNT,
    COUNT,
    FLAG,
    NUMBER,
    POSITIVE,
    RECORD,
    SCORE,
    TEXT,
    Kind,
    check_fields,
    check_texts,
    either,
    list_of,
    look_up,
    optional,
    read_record,
    values_of,
)
from lit_gen.evaluation import drawn_classes

SCHEMA = 1
REMEDY = "delete it and evaluate the run again"

_INTERVAL = list_of(either(NUMBER, TEXT), 2, 2)
_FIELDS: dict[str, Kind] = {
    "run": RECORD,
    "run.name": TEXT,
    "run.identity": TEXT,
    "run.recipe": optional(TEXT),
    "run.finished": FLAG,
    "model": TEXT,
    "num_parameters": COUNT,
    "first_stage": optional(RECORD),
    "images_seen": COUNT,
    "training_seconds": optional(AMOUNT),
    "earlier_seconds": optional(AMOUNT),
    "training_seed": either(COUNT, FLAG),
    "sampler": optional(RECORD),
    "sampler.name": TEXT,
    "sampler.grid": optional(RECORD),
    "sampler.grid.name": TEXT,
    "sampler.schedule": optional(RECORD),
    "sampler.schedule.name": TEXT,
    "sampler.guidance": optional(RECORD),
    "sampler.guidance.weight": NUMBER,
    "sampler.guidance.interval": _INTERVAL,
    "sampler.guidance.run": TEXT,
    "nfe": POSITIVE,
    "weights": TEXT,
    "seed": COUNT,
    "protocol": RECORD,
    "protocol.data": TEXT,
    "protocol.data_fingerprint": optional(TEXT),
    "protocol.split": Kind("train, val or test", lambda value: value in ("train", "val", "test")),
    "protocol.image_shape": list_of(COUNT, 3, 3),
    "protocol.num_real": COUNT,
    "protocol.num_samples": COUNT,
    "protocol.feature_net": TEXT,
    "protocol.feature_net_version": TEXT,
    "protocol.feature_width": COUNT,
    "protocol.resize": TEXT,
    "protocol.quantisation": Kind("uint8 or none", lambda value: value in ("uint8", "none")),
    "protocol.inception_splits": COUNT,
    "other_data": optional(RECORD),
    "other_data.trained_on": TEXT,
    "other_data.given": TEXT,
    "metrics": values_of(SCORE),
    "likelihood": optional(RECORD),
    "likelihood.protocol": RECORD,
    "likelihood.protocol.kind": TEXT,
    "likelihood.protocol.num_images": COUNT,
    "likelihood.protocol.method": optional(RECORD),
    "likelihood.protocol.method.name": TEXT,
    "reconstruction": optional(RECORD),
    "reconstruction.protocol": RECORD,
    "timing": RECORD,
    "timing.images_per_second": POSITIVE,
    "created": TEXT,
}
_REQUIRED = frozenset(
    {
        *("run.name", "run.identity", "model", "num_parameters", "images_seen", "training_seed", "sampler", "nfe"),
        *("weights", "seed", "protocol", "protocol.data", "metrics", "timing.images_per_second"),
    }
)
_REQUIRED_OF = {
    "sampler": ("name",),
    "sampler.grid": ("name",),
    "sampler.schedule": ("name",),
    "sampler.guidance": ("weight", "interval"),
    "other_data": ("trained_on", "given"),
    "likelihood": ("protocol",),
    "likelihood.protocol.method": ("name",),
    "reconstruction": ("protocol",),
}
"""Required fields of the optional objects."""

_LIKELIHOOD_FIELDS: dict[str, Kind] = {
    "metrics": values_of(SCORE),
    **{key: RECORD if key == "likelihood" else kind for key, kind in _FIELDS.items() if key.startswith("likelihood")},
}


def load_result(path: Path) -> dict[str, Any]:
    """Read one result.json.

    Raises:
        UserError: It cannot be read, or a field is missing or of a wrong type; the message names file and key.
    """
    try:
        data = read_record(path, REMEDY)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; evaluate the run again") from None
    if (schema := data.get("schema")) != SCHEMA or isinstance(schema, bool):
        raise UserError(f"{path}: schema: expected {SCHEMA}, got {schema!r:.60}; {REMEDY}")
    _check(data, _FIELDS, _REQUIRED, path)
    data["protocol"].setdefault("drawn_classes", drawn_classes.of_older_result(data))
    return data


def save_result(path: Path, data: dict[str, Any]) -> None:
    """Write one result.json, whole or not at all."""
    write_atomically(path, json.dumps({"schema": SCHEMA} | data, indent=2) + "\n")


def load_likelihood(path: Path) -> dict[str, Any]:
    """Read one likelihood-*.json, `{"metrics", "likelihood"}`.

    Raises:
        UserError: As `load_result`.
    """
    data = read_record(path, REMEDY)
    _check(data, _LIKELIHOOD_FIELDS, frozenset({"metrics", "likelihood"}), path)
    return data


def save_likelihood(path: Path, metrics: dict[str, float], record: dict[str, Any]) -> None:
    """Write one likelihood-*.json, whole or not at all."""
    write_atomically(path, json.dumps({"metrics": metrics, "likelihood": record}, indent=2) + "\n")


def _check(data: dict[str, Any], fields: dict[str, Kind], required: frozenset[str], path: Path) -> None:
    check_texts(data, path, REMEDY)
    of_parts = {
        f"{key}.{name}"
        for key, names in _REQUIRED_OF.items()
        for name in names
        if key in fields and isinstance(look_up(data, key), dict)
    }
    check_fields(data, fields, required | of_parts, path, REMEDY)
