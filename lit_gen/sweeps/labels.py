"""Short names for the trials of a sweep: the parameters that differ, with paths as short as possible."""

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from lit_gen.core.text import printable
from lit_gen.sweeps.trial import Trial

Key = TypeVar("Key", bound=Hashable)

_FILE_ENDINGS = (".yaml", ".yml", ".json", ".safetensors", ".ckpt")


class Labels:
    """The names of the trials of one sweep.

    Args:
        trials: All trials.

    Attributes:
        columns: The parameters that tell the trials apart, and their short names.
    """

    def __init__(self, trials: Sequence[Trial]) -> None:
        self.columns = varying_keys(trials)
        self._paths = short_paths(text for trial in trials for text in _paths_in(trial.parameters))

    def describe(self, trial: Trial) -> str:
        """Return the varying parameters of a trial in one line, such as `digits_edm Heun nfe=10`.

        A text under a key without a dot (`config`, `model`, `sampler`) stands alone; other values follow their name.
        """
        given = [(key, name, trial.parameters[key]) for key, name in self.columns.items() if key in trial.parameters]
        words = [
            self.short(value) if "." not in key and isinstance(value, str) else f"{name}={self.short(value)}"
            for key, name, value in given
        ]
        return printable(" ".join(words) or trial.id)

    def short(self, value: Any) -> str:
        """Return a value as text: a path as its shortest unique tail, a class by its name and its arguments."""
        if isinstance(value, dict) and "class_path" in value:
            settings = ", ".join(f"{key}={self.short(part)}" for key, part in (value.get("init_args") or {}).items())
            name = str(value["class_path"]).rpartition(".")[2]
            return f"{name}({settings})" if settings else name
        return self._paths.get(value, value) if isinstance(value, str) else str(value)


def varying_keys(trials: Sequence[Trial]) -> dict[str, str]:
    """Return the parameters that tell trials apart, each with the shortest tail of its name that is unique.

    A parameter counts if the trials that have it differ in it: trials of another file may have other parameters. If
    this leaves two trials alike, parameters that only some trials have count as well.
    """
    keys = list(dict.fromkeys(key for trial in trials for key in trial.parameters))
    values = {key: [repr(trial.parameters[key]) for trial in trials if key in trial.parameters] for key in keys}
    varying = [key for key in keys if len(set(values[key])) > 1]
    if len({tuple(repr(trial.parameters.get(key, ...)) for key in varying) for trial in trials}) < len(trials):
        varying = [key for key in keys if len(set(values[key])) > 1 or len(values[key]) < len(trials)]
    tails = _shortest_tails({key: tuple(key.split(".")) for key in varying}, ".")
    return {key: tails.get(key, key) for key in varying}


def short_paths(texts: Iterable[str]) -> dict[str, str]:
    """Return each path with a short name: the stem of a file or the last part of another path.

    Two paths of the same stem also get their parent folders, as many as tell them apart: `a/base` and `b/base`.
    """
    paths = {text: Path(text) for text in texts}
    parts = {
        path: (*path.parent.parts, path.stem if path.suffix in _FILE_ENDINGS else path.name) for path in paths.values()
    }
    tails = _shortest_tails(parts, "/")
    return {text: tails.get(path) or text for text, path in paths.items()}


def _shortest_tails(parts: Mapping[Key, tuple[str, ...]], separator: str) -> dict[Key, str]:
    """Return for each key the fewest last parts that no other key ends with; nothing for a key that shares them all."""
    tails = {key: [names[start:] for start in reversed(range(len(names)))] for key, names in parts.items()}
    counts = Counter(tail for each in tails.values() for tail in each)
    unique = {key: [tail for tail in each if counts[tail] == 1] for key, each in tails.items()}
    return {key: separator.join(each[0]) for key, each in unique.items() if each}


def _paths_in(value: Any) -> Iterator[str]:
    """Yield all texts in a value that are paths; not addresses."""
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _paths_in(part)
    elif isinstance(value, str) and "://" not in value and ("/" in value or value.endswith(_FILE_ENDINGS)):
        yield value
