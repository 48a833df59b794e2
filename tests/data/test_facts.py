"""What a run records of its data, and reads back from a file that anyone may have written."""

import json
from typing import Any

import pytest

from lit_gen.data import Digits, ImageDataModule, Spiral
from lit_gen.data.facts import DataFacts
from lit_gen.errors import UserError


@pytest.mark.parametrize("data", [ImageDataModule(Digits(), num_val=100), ImageDataModule(Spiral(num_points=50))])
def test_the_facts_of_data_come_back_from_a_file(data: ImageDataModule) -> None:
    facts = DataFacts.of(data)
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
    data = DataFacts.of(ImageDataModule(Digits())).to_dict() | {key: value}
    with pytest.raises(UserError, match=r"run.json: data\.(num_classes|class_\w+|image\w*|name): .*; restore"):
        DataFacts.recorded({"data": data})
