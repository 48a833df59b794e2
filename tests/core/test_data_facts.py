"""What a run records of its data, and reads back from a file that anyone may have written."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_gen.core.data_facts import DataFacts
from lit_gen.core.errors import UserError
from lit_gen.core.files import write_atomically
from lit_gen.core.text import is_printable
from lit_gen.data import Digits, ImageDataModule, Npz, Spiral
from lit_gen.runs.directory import read_metadata


@pytest.mark.parametrize("data", [ImageDataModule(Digits(), num_val=100), ImageDataModule(Spiral(num_points=50))])
def test_the_facts_of_data_come_back_from_a_file(data: ImageDataModule) -> None:
    facts = data.describe()
    assert facts.images_fingerprint == data.fingerprint("train")
    assert (facts.class_counts is None) == (data.num_classes == 0)
    if facts.class_counts is not None:
        assert sum(facts.class_counts) == len(data.images("train")) == 1342
    metadata = json.loads(json.dumps({"data": {"fingerprint": "of codes", **facts.to_dict()}}))
    assert DataFacts.recorded(metadata) == facts


def test_an_older_run_has_none() -> None:
    older: tuple[Any, ...] = ({"name": "digits", "fingerprint": "ab" * 32}, None, [], "digits")
    for data in older:
        assert DataFacts.recorded({"data": data}) is None
    assert DataFacts.recorded({}) is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", 5),
        ("images_fingerprint", None),
        ("image_shape", [1, 8]),
        ("image_shape", "1x8x8"),
        ("image_shape", [1, 8.5, 8]),
        ("image_shape", [1, 0, 8]),
        ("num_classes", True),
        ("num_classes", 3),
        ("num_classes", -1),
        ("num_classes", "10"),
        ("class_counts", [1] * 9),
        ("class_counts", [0] * 10),
        ("class_counts", [10, -1] * 5),
        ("class_counts", {"0": 1}),
        ("class_names", ["zero"]),
        ("class_names", [0] * 10),
        ("class_names", "zero"),
    ],
)
def test_a_fact_that_is_none_is_named(key: str, value: Any) -> None:
    data = ImageDataModule(Digits()).describe().to_dict() | {key: value}
    with pytest.raises(UserError, match=r"run.json: data\.(num_classes|class_\w+|image\w*|name): .*; restore"):
        DataFacts.recorded({"data": data})


@pytest.mark.parametrize("name", ["two\nlines", "\x1b[31mred", "x" * 3000, "plain $x^{$"])
def test_any_name_can_be_written_and_read_back(name: str, tmp_path: Path) -> None:
    """A file may be called so, and a class of an .npz file."""
    images, labels = np.zeros((4, 8, 8), np.uint8), np.array([0, 1, 0, 1])
    np.savez(tmp_path / "data.npz", images=images, labels=labels, class_names=np.array([name, "other"]))
    facts = ImageDataModule(Npz(str(tmp_path / "data.npz"), name=name)).describe()
    assert is_printable(facts.name) and len(facts.name) <= 200 and facts.class_names == (facts.name, "other")
    assert facts.name == name or "$" not in name, "what is printable stays as it is"
    required = {"identity": "0", "recipe": "0", "seed": 0, "status": "finished", "wandb_id": "0"}
    write_atomically(tmp_path / "run.json", json.dumps({**required, "data": {"fingerprint": "0", **facts.to_dict()}}))
    assert DataFacts.recorded(read_metadata(tmp_path / "run.json", "restore it")) == facts
