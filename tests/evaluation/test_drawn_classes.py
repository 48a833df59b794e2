"""What is drawn of a class-conditional model follows the class frequencies of the split that it is scored against."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.data import Digits, ImageDataModule, Npz
from lit_gen.data.class_order import classes_of
from lit_gen.data.pairs import Pairs
from lit_gen.evaluation.evaluate import Subject, evaluate
from lit_gen.evaluation.file_objects import ABSENT
from lit_gen.evaluation.protocol import Evaluation
from lit_gen.experiment.reflow import Reflow
from lit_gen.families.base import GenerativeModel
from lit_gen.metrics import DigitsFeatures
from lit_gen.report.leaderboard import rank
from lit_gen.report.results import read_result
from lit_gen.runs.directory import Run
from tests.report.test_leaderboard import content, write

SHARES = {3: 131, 6: 37, 9: 9}
"""Images of three digits, which are the classes 0, 1 and 2."""
NUM = sum(SHARES.values())
RUN = {"identity": "ab", "recipe": "cd", "seed": 0, "status": "training", "wandb_id": "0"}


class Remembering(GenerativeModel):
    """Draws the real images of the class that is asked for, in their order: as good as a model can be."""

    def __init__(self, images: np.ndarray, labels: Any, num_classes: int = 3, conditional: bool = True) -> None:
        super().__init__((1, 8, 8), num_classes, conditional)
        self.network = nn.Linear(1, 1)
        self.real = torch.from_numpy(images).float() / 127.5 - 1
        self.labels = torch.from_numpy(labels)

    @property
    def generator(self) -> nn.Module:
        return self.network

    def draw(self, noise: Noise, labels: Tensor | None, sampler: Any) -> Tensor:
        self.nfe = 1.0
        if labels is None:
            return self.real[noise.index % len(self.real)]
        rows = []
        for place, label in enumerate(labels):
            own = (self.labels == label).nonzero().flatten()
            rows.append(own[int((labels[:place] == label).sum()) % len(own)])
        return self.real[torch.stack(rows)]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Npz:
    images, digits = Digits().load("train")
    assert digits is not None
    rows = np.concatenate([np.flatnonzero(digits == digit)[:num] for digit, num in SHARES.items()])
    rows = rows[np.random.default_rng(0).permutation(NUM)]
    labels = np.array([list(SHARES).index(digit) for digit in digits[rows]])
    path = tmp_path_factory.mktemp("data") / "three.npz"
    np.savez(path, images=images[rows], labels=labels)
    test = path.with_name("test.npz")
    np.savez(test, images=images[rows][labels.argsort()[-60:]], labels=np.sort(labels)[-60:])
    return Npz(str(path), str(test))


def score(source: Npz, folder: Path, model: GenerativeModel, **settings: Any) -> dict[str, Any]:
    """The result of an evaluation of all samples in one batch."""
    run = Run(folder / "run")
    run.directory.mkdir(parents=True, exist_ok=True)
    run.metadata_path.write_text(json.dumps(RUN | {"title": model.title}))
    settings = {"num_samples": NUM, "batch_size": 4 * NUM, "inception_splits": 1} | settings
    evaluation = Evaluation(DigitsFeatures, **settings)
    result, path, computed = evaluate(
        evaluation, Subject(run, model, ImageDataModule(source), None), folder / ".reference"
    )
    assert computed and path.is_file()
    return result.to_dict() | {"path": path}


def test_a_perfect_model_of_rare_classes_has_no_distance(source: Npz, tmp_path: Path) -> None:
    """As many of each class as are real: 0 up to rounding. A third of each class is 259 away; half of them, 11.8."""
    images, labels = source.load("train")
    model = Remembering(images, labels)
    result = score(source, tmp_path, model)
    assert abs(result["metrics"]["fd_digits"]) < 1e-3
    assert result["protocol"]["drawn_classes"] == "reference"
    model.follow_classes(ImageDataModule(source))
    rows = model.sample(Noise(0, range(NUM)))
    assert torch.equal(rows.flatten(1).sort(0).values, model.real.flatten(1).sort(0).values)
    equal = model.sample(Noise(0, range(NUM)), torch.arange(NUM) % 3)
    assert not torch.equal(equal.flatten(1).sort(0).values, model.real.flatten(1).sort(0).values)
    half = score(source, tmp_path, model, num_samples=NUM // 2)["metrics"]["fd_digits"]
    assert half < 20, "half of the samples have the shares of all of them"


def test_the_classes_are_those_of_the_split_that_is_scored_against(source: Npz, tmp_path: Path) -> None:
    images, labels = source.load("test")
    assert labels is not None and np.bincount(labels, minlength=3).tolist() == [14, 37, 9], (
        "the test part has other shares"
    )
    result = score(source, tmp_path, Remembering(images, labels), num_samples=60, split="test")
    assert abs(result["metrics"]["fd_digits"]) < 1e-3


def test_old_evaluations_are_found_where_the_images_are_the_same(source: Npz, tmp_path: Path) -> None:
    """Those of models without classes, and of equally frequent ones, stay where they were; no others are found."""
    places = {}
    evaluation = Evaluation(DigitsFeatures, num_samples=20, inception_splits=1)
    protocol = evaluation.protocol(ImageDataModule(source), DigitsFeatures())
    before = replace(protocol, drawn_classes=ABSENT)
    assert before.to_dict() == {key: value for key, value in protocol.to_dict().items() if key != "drawn_classes"}
    assert protocol.drawn_classes == "reference"
    for name, of, counts in (("old", before, None), ("none", protocol, None), ("equal", protocol, (7, 7, 7))):
        places[name] = evaluation.directory(Run(tmp_path), None, of, 0, counts)
    assert places["old"] == places["none"] == places["equal"]
    assert evaluation.directory(Run(tmp_path), None, protocol, 0, tuple(SHARES.values())) != places["old"]


def test_an_old_evaluation_of_equal_classes_becomes_comparable(source: Npz, tmp_path: Path) -> None:
    """Asked for again, it is not computed again: its file then names the classes, which are what they were."""
    images, labels = source.load("train")
    assert labels is not None
    rows = np.concatenate([np.flatnonzero(labels == c)[:9] for c in range(3)])
    np.savez(tmp_path / "equal.npz", images=images[rows], labels=labels[rows])
    equal, settings = Npz(str(tmp_path / "equal.npz")), {"num_samples": 20, "inception_splits": 1}
    for conditional in (False, True):
        model = Remembering(images[rows], labels[rows], conditional=conditional)
        model.title = "Remembering, class-conditional" if conditional else "Remembering"
        path = score(equal, tmp_path / str(conditional), model, **settings)["path"]
        stored = json.loads(path.read_text())
        del stored["protocol"]["drawn_classes"]
        path.write_text(json.dumps(stored))
        assert read_result(path).protocol["drawn_classes"] == ("uniform" if conditional else "reference")
        evaluation, data = Evaluation(DigitsFeatures, **settings), ImageDataModule(equal)  # type: ignore[arg-type]
        found, same, computed = evaluate(
            evaluation, Subject(Run(tmp_path / str(conditional) / "run"), model, data, None), tmp_path
        )
        assert (same, computed, found.protocol.drawn_classes) == (path, False, "reference")
        assert read_result(path).protocol["drawn_classes"] == "reference"


def test_only_rows_with_the_same_classes_are_ranked_together(tmp_path: Path) -> None:
    """A result of an older version says nothing of its classes; they were the same for some models and data."""
    new: dict[str, Any] = {"protocol__drawn_classes": "reference"}
    fashion: dict[str, Any] = {"protocol__data": "fashion_mnist", "protocol__num_real": 60_000}
    cases: list[tuple[str, dict[str, Any], bool]] = [
        ("DDPM", {}, True),
        ("GAN, class-conditional", {}, False),
        ("GAN, class-conditional", fashion, True),
        ("GAN, class-conditional", fashion | {"protocol__num_real": 50_000}, False),
        ("GAN, class-conditional", fashion | {"protocol__split": "val"}, False),
        ("GAN, class-conditional", {"protocol__data": "cifar100", "protocol__num_real": 10_000}, False),
        ("2-RectifiedFlow, class-conditional", {"protocol__data": "mnist", "protocol__num_real": 60_000}, False),
    ]
    for number, (model, changes, alike) in enumerate(cases):
        folder = tmp_path / str(number)
        old = read_result(write(folder, content(model, **changes), "old"))
        rows = [read_result(write(folder, content(name, **changes, **new), name)) for name in ("EDM", "VAE")]
        if alike:
            assert len(rank([old, *rows]).rows) == 3
        else:
            with pytest.raises(UserError, match=r"protocol.drawn_classes is reference \(2 rows.* and uniform \(1 row"):
                rank([old, *rows])


def test_pairs_keep_the_classes_that_they_were_drawn_of(source: Npz, tmp_path: Path) -> None:
    images, labels = source.load("train")
    model: Any = Remembering(images, labels)
    reflow, run = Reflow(num_pairs=40, batch_size=NUM), Run(tmp_path)
    without = reflow.path(run, model)
    model.class_counts = (5, 5, 5)
    assert reflow.path(run, model) == without, "pairs of equally frequent classes are found where they were"
    model.follow_classes(ImageDataModule(source))
    path = reflow.path(run, model)
    assert path != without
    pairs = Pairs(images[:40], np.arange(40), 7, 3, model.class_counts)
    pairs.save(path)
    loaded = Pairs.load(path)
    labels = loaded.slice(11, 40).image_set.labels
    assert labels is not None and labels.tolist() == classes_of(np.arange(11, 40), (131, 37, 9)).tolist()
    assert loaded.fingerprint() == pairs.fingerprint() != Pairs(images[:40], np.arange(40), 7, 3).fingerprint()
