"""Reading and writing a result keeps every byte, whatever its order and its further keys."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from lit_gen.evaluation.result_file import (
    LikelihoodProtocol,
    LikelihoodRecord,
    Protocol,
    ResultRecord,
    RunFacts,
    Timing,
    load_result,
    save_result,
)

OF_ANOTHER_VERSION = {
    "schema": 1,
    "model": "EDM",
    "run": {"name": "a", "note": "of a later version", "identity": "b"},
    "nfe": 18,
    "num_parameters": 3,
    "images_seen": 4,
    "training_seed": 0,
    "sampler": {"name": "Heun", "steps": 18},
    "weights": "ema",
    "seed": 0,
    "protocol": {"drawn_classes": "reference", "data": "digits"},
    "metrics": {"fd_digits": 1.5, "bits": float("nan")},
    "reconstruction": {"protocol": {"split": "test"}},
    "timing": {"images_per_second": 2.0},
    "note": [1, None],
}


def test_a_file_of_another_version_is_written_as_it_was_read(tmp_path: Path) -> None:
    path, copy = tmp_path / "result.json", tmp_path / "copy.json"
    path.write_text(json.dumps(OF_ANOTHER_VERSION, indent=2) + "\n")
    result = load_result(path)
    save_result(copy, result)
    assert copy.read_bytes() == path.read_bytes()
    assert (result.run.name, result.timing.images_per_second) == ("a", 2.0)
    assert result.further == {"reconstruction": {"protocol": {"split": "test"}}, "note": [1, None]}


def test_what_is_added_to_a_file_comes_last(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps(OF_ANOTHER_VERSION))
    likelihood = LikelihoodRecord(protocol=LikelihoodProtocol(kind="exact"), seed=3)
    save_result(path, replace(load_result(path), likelihood=likelihood))
    assert list(json.loads(path.read_text())) == [*OF_ANOTHER_VERSION, "likelihood"]
    assert load_result(path).likelihood == likelihood


def test_a_new_result_lacks_what_it_does_not_have() -> None:
    values: dict[str, Any] = {
        key: OF_ANOTHER_VERSION[key] for key in ("model", "nfe", "images_seen", "metrics", "seed")
    }
    result = ResultRecord(
        **values,
        run=RunFacts(name="a", identity="b"),
        num_parameters=3,
        training_seed=0,
        sampler=None,
        weights="ema",
        protocol=Protocol(data="digits"),
        timing=Timing(images_per_second=2.0),
        further={"reconstruction": {}},
        other_data=None,
    )
    written = result.to_dict()
    assert list(written)[:2] == ["schema", "run"] and list(written)[-3:] == ["metrics", "reconstruction", "timing"]
    assert written["protocol"] == {"data": "digits"} and written["other_data"] is None
    assert "likelihood" not in written and "first_stage" not in written
