"""Find and read the result.json files of evaluations, one per run, sampler setting and protocol."""

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lit_gen.core.errors import UserError
from lit_gen.core.records import look_up, read_each
from lit_gen.evaluation.result_file import ResultRecord, load_result
from lit_gen.sweeps.journal import JOURNAL_NAME
from lit_gen.sweeps.results import current_results

OLDER_DEFAULTS: dict[str, dict[str, Any]] = {
    "DDPM": {"variance": "large"},
    "DDIM": {"eta": 0.0},
    "Euler": {"coordinates": "rectified"},
    "Heun": {"S_churn": 0.0, "S_min": 0.0, "S_max": "inf", "S_noise": 1.0, "coordinates": "sigma"},
    "EulerMaruyama": {"noise_scale": 1.0, "g": "forward", "coordinates": "sigma"},
    "PredictorCorrector": {"predictor": "reverse_diffusion", "corrector_steps": 1, "snr": 0.16, "norm": "image"},
    "AnnealedLangevin": {"steps_each": 5, "step_size": 0.062, "denoise": True},
    "DPMSolver": {"order": 2, "method": "multistep", "eta": 0.0},
    "UniPC": {"order": 2, "variant": "bh2", "corrector": True},
    "Temperature": {"temperature": 1.0},
    "TokenSampling": {"temperature": 1.0},
    "RK45": {"rtol": 1e-5, "atol": 1e-5, "sigma_min": 0.002, "sigma_max": 80.0},
    "Quadratic": {"start": 1.0},
    "Karras": {"rho": 7.0, "sigma_min": 0.002, "sigma_max": 80.0},
    "UniformLogSNR": {"sigma_min": 0.002, "sigma_max": 80.0},
    "TimeShift": {"shift": 3.0},
    "DiscreteVP": {"betas": "linear", "num_timesteps": 1000},
    "LinearVP": {"beta_min": 0.1, "beta_max": 20.0, "min_time": 1e-5},
    "SubVP": {"beta_min": 0.1, "beta_max": 20.0, "min_time": 1e-5},
    "VE": {"sigma_min": 0.01, "sigma_max": 50.0},
    "EDMSchedule": {"sigma_min": 0.002, "sigma_max": 80.0},
}
"""Default settings of the version before 0.2, whose results do not hold their own; labels leave them out."""

_NOT_IN_LABEL = {"name", "steps", "nfe", "grid"}
_MOST_VALUES = 12


@dataclass(frozen=True)
class Result:
    """One result.json.

    Args:
        path: The file.
        record: Its content.
    """

    path: Path
    record: ResultRecord

    @cached_property
    def _content(self) -> dict[str, Any]:
        return self.record.to_dict()

    def number(self, key: str) -> float:
        """Return the number of a dotted key; NaN if there is none."""
        value = self.get(key)
        return float(value) if isinstance(value, int | float) else math.nan

    def standard_error(self, metric: str) -> float | None:
        """Return the standard error of a score over samples, or of a likelihood over images; None if unknown."""
        errors = (self.record.standard_errors.get(metric), self.metrics.get(f"{metric}_stderr"))
        return next((float(error) for error in errors if error is not None and math.isfinite(error)), None)

    def get(self, key: str) -> Any:
        """Return the value of a dotted key such as `protocol.num_samples`; None if there is none."""
        return look_up(self._content, key)

    @property
    def model(self) -> str:
        """The model's title, with a mark if it was trained on other data than it is scored with."""
        return self.record.model + self.mark

    @property
    def foreign(self) -> bool:
        """Whether other software made the samples: there is no run."""
        return bool(self.get("run.foreign"))

    @property
    def mark(self) -> str:
        """` (foreign)`, or ` (trained on 63bac8b2)` if the evaluation accepted other data; else empty."""
        if self.foreign:
            return " (foreign)"
        other = self.record.other_data
        return f" (trained on {other.trained_on[:8]})" if other else ""

    @property
    def sampler(self) -> str:
        """The sampler with its settings that differ from the defaults, `DDIM(eta=0.5)`; empty without a sampler."""
        return _label(self.record.sampler, self._defaults)

    @property
    def grid(self) -> str:
        """The sampler's time grid with its settings that differ from the defaults; empty without a grid."""
        sampler = self.record.sampler
        return _label(sampler.get("grid"), self._defaults) if sampler else ""

    @property
    def _defaults(self) -> dict[str, dict[str, Any]]:
        return self.record.defaults or OLDER_DEFAULTS

    @property
    def metrics(self) -> dict[str, float]:
        return self.record.metrics

    @property
    def protocol(self) -> dict[str, Any]:
        """The protocol by key, as protocols are compared."""
        protocol: dict[str, Any] = self._content["protocol"]
        return protocol


def _label(settings: dict[str, Any] | None, defaults: dict[str, dict[str, Any]]) -> str:
    if not settings:
        return ""
    name = settings["name"]
    special = {
        key: value
        for key, value in settings.items()
        if key not in _NOT_IN_LABEL and value is not None and value != defaults.get(name, {}).get(key, ...)
    }
    if settings.get("S_churn") == 0:  # its limits have no effect without churn
        special = {key: value for key, value in special.items() if not key.startswith("S_")}
    if special.get("schedule"):
        special["schedule"] = _label(special["schedule"], defaults)
    if special.get("guidance"):
        special["guidance"] = _guidance_label(special["guidance"])
    texts = (f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}" for key, value in special.items())
    return f"{name}({', '.join(texts)})" if special else name


def _guidance_label(settings: dict[str, Any]) -> str:
    """Return guidance as its weight, its interval if it is limited, and the guiding run if there is one."""
    low, high = settings["interval"]
    interval = "" if (low, high) == (0, "inf") else f" in {low} to {high}"
    return f"{settings['weight']:g}{interval}" + (f" by {settings['run']}" if "run" in settings else "")


def read_result(path: Path) -> Result:
    """Read one result.json.

    Raises:
        UserError: If it cannot be read, or a field is missing or has the wrong type; the message names file and key.
    """
    return Result(path, load_result(path))


def read_results(paths: Iterable[Path]) -> list[Result]:
    """Read result.json files; a warning names each damaged file, which is left out.

    Raises:
        UserError: If all files are damaged.
    """
    return read_each(paths, read_result, "it is left out here")


def load_results(folder: Path | str) -> list[Result]:
    """Load all results below a folder, in the order of their paths.

    Args:
        folder: A runs folder, a run, or a sweep's folder, which stands for the trials of the sweep files as they were
            last run.

    Raises:
        UserError: If there is no such folder, or it holds no results or only damaged ones.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; give the runs folder, a run, or a sweep's folder")
    if (folder / JOURNAL_NAME).exists():
        of_trials = current_results(folder.resolve()).values()
        paths: Iterable[Path] = (path for results in of_trials for path in results)
    else:
        paths = (path for path in folder.rglob("result.json") if path.absolute().parent.parent.name == "evaluations")
    results = read_results(sorted(set(paths)))
    if not results:
        raise UserError(f"{folder}: no evaluations/*/result.json below; make one with `lit-gen evaluate RUN`")
    return results


def select(results: list[Result], where: Iterable[str], option: str = "--where") -> list[Result]:
    """Return the results that fulfil the conditions, of those with the same key at least one.

    Args:
        results: The results to select from.
        where: Conditions `key=value` with a dotted key, for example `protocol.num_samples=1000` or `model=EDM`.
        option: Option that gave the conditions, for messages.

    Raises:
        UserError: If a condition has no `=`, names an unknown key, or leaves nothing.
    """
    values: dict[str, list[str]] = defaultdict(list)
    for condition in where:
        key, equals, value = condition.partition("=")
        if not equals:
            raise UserError(f"{option} {condition}: expected KEY=VALUE; give for example protocol.num_samples=1000")
        values[key].append(value)
    for key, asked in values.items():
        present = sorted({_shown(result, key) for result in results if result.get(key) is not None})
        if not present:
            raise UserError(
                f"{option} {key}={asked[0]}: no result has the key {key}; give one such as model or "
                "protocol.num_samples"
            )
        for value in asked:
            if not any(_matches(result, key, value) for result in results):
                some = ", ".join(present[:_MOST_VALUES])
                rest = f" and {len(present) - _MOST_VALUES} more" if len(present) > _MOST_VALUES else ""
                raise UserError(
                    f"{option} {key}={value}: no result fits; choose one of the values of {key}: {some}{rest}"
                )
        results = [result for result in results if any(_matches(result, key, value) for value in asked)]
    return results


def _shown(result: Result, key: str) -> str:
    """Return the value of a key as tables show it: a sampler with its settings that differ from the defaults."""
    if key in ("sampler", "sampler.grid"):
        return result.sampler if key == "sampler" else result.grid
    return str(result.get(key))


def _matches(result: Result, key: str, text: str) -> bool:
    """Return whether a text means a value: as it is shown (a hash such as `1e3` is text) or as JSON."""
    actual = result.get(key)
    if text in (str(actual), _shown(result, key)):
        return True
    try:
        return json.loads(text) == actual
    except ValueError:
        return False


def split_conditions(text: str) -> list[str]:
    """Return the conditions of `key=value,key=value`; a comma in a value, before no key or in brackets, stays."""
    found: list[str] = []
    for part in re.split(r",(?=[A-Za-z_][\w.]*=)", text):
        if found and _is_open(found[-1]):
            found[-1] += f",{part}"
        else:
            found.append(part)
    return found


def _is_open(text: str) -> bool:
    """Return whether a text has more brackets that open than that close."""
    return sum(map(text.count, "([{")) > sum(map(text.count, ")]}"))
