"""The rule in `protocol.drawn_classes` of a result: the classes of the samples of a class-conditional model.

| rule | the class of image i |
| --- | --- |
| reference | follows the class frequencies of the reference split (`lit_gen.data.class_order`) |
| uniform | i mod K |

A model without classes, or a split with equally many images of each class, gives the same images under both; their
results say `reference`. Results written before there was a choice do not name their rule, which was `uniform`.
"""

from typing import Any

RULE = "reference"
"""The rule of new results."""

_BALANCED_SPLITS = [
    *([name, "train", 50_000] for name in ("cifar10", "cifar100")),
    *([name, "test", 10_000] for name in ("cifar10", "cifar100", "fashion_mnist")),
    ["fashion_mnist", "train", 60_000],
]
"""Data, split and number of images of the splits that are known to hold equally many images of each class."""


def rule_of_older_result(result: dict[str, Any]) -> str:
    """Return the rule of a result that does not name it.

    A result with the rule `uniform` cannot be compared with newer ones. Evaluate its run again: if the classes of the
    split are equally frequent, the file then names the rule `reference`; else new images are scored.
    """
    split = [result["protocol"].get(key) for key in ("data", "split", "num_real")]
    return RULE if "class-conditional" not in result["model"] or split in _BALANCED_SPLITS else "uniform"
