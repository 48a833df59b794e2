"""What is known of a likelihood without a model: bits of equal values, and of a histogram of the training images."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from lit_gen.data import Binarised, Digits, ImageDataModule, Npz
from lit_gen.evaluation.likelihood import likelihood_floors


@pytest.fixture
def colour(tmp_path: Path) -> ImageDataModule:
    """Colour images whose channels have unlike values, and more of them than are counted at once."""
    values = np.random.default_rng(0)
    images = np.stack([values.integers(0, high, (1300, 2, 3)) for high in (3, 40, 256)], 1).astype(np.uint8)
    np.savez(tmp_path / "train.npz", images=images[:1100], labels=np.zeros(1100, int))
    np.savez(tmp_path / "test.npz", images=images[1100:], labels=np.zeros(200, int))
    return ImageDataModule(Npz(str(tmp_path / "train.npz"), test=str(tmp_path / "test.npz")))


def test_bits_are_those_of_counting(colour: ImageDataModule) -> None:
    train, test = (colour.images(split).astype(int) for split in ("train", "test"))
    counts = [Counter(train[:, channel].ravel().tolist()) for channel in range(3)]
    bits = []
    for index in (0, 28, 57, 85, 114, 142, 171):  # 7 of 200, evenly spaced
        p = [(counts[c][value] + 1) / (len(train) * 6 + 256) for c in range(3) for value in test[index, c].ravel()]
        bits.append(-sum(map(math.log2, p)) / 18)
    rows = likelihood_floors(colour, 7)
    assert rows["histogram"]["scores"] == {"bits_per_dim": pytest.approx(np.mean(bits), abs=1e-12)}
    error = np.std(bits, ddof=1) / math.sqrt(7)
    assert rows["histogram"]["standard_errors"]["bits_per_dim"] == pytest.approx(error, abs=1e-12)
    assert rows["equal_values"]["scores"]["bits_per_dim"] == pytest.approx(8, abs=1e-12)
    assert {row["num_images"] for row in rows.values()} == {7}
    assert likelihood_floors(colour, 1)["histogram"]["standard_errors"] == {}


def test_binary_images_have_one_bit_and_nats(tmp_path: Path) -> None:
    data = ImageDataModule(Binarised(Digits()))
    share = data.images("train").mean() / 255
    rows = likelihood_floors(data, len(data.images("test")))
    white = data.images("test").mean() / 255
    entropy = -(white * math.log2(share) + (1 - white) * math.log2(1 - share))
    assert rows["equal_values"]["scores"] == {
        "bits_per_dim": pytest.approx(1, abs=1e-12),
        "nll_nats": pytest.approx(64 * math.log(2), abs=1e-9),
    }
    assert rows["histogram"]["scores"]["bits_per_dim"] == pytest.approx(entropy, abs=1e-4), "but for one more pixel"


def test_levels_that_do_not_divide_255_are_counted(colour: ImageDataModule, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 17 grey levels, the nearest values of 8 bits, equal in all channels."""
    levels = {split: np.repeat(colour.images(split)[:, 2:] % 17, 3, 1) for split in ("train", "test")}
    images = {split: np.rint(each * (255 / 16)).astype(np.uint8) for split, each in levels.items()}
    monkeypatch.setattr(colour.source, "num_levels", 17)
    monkeypatch.setattr(colour, "images", images.__getitem__)
    counts = np.bincount(levels["train"][:, 0].ravel(), minlength=17) + 1
    bits = -np.log2(counts / counts.sum())[levels["test"][:, 0]].mean()
    rows = likelihood_floors(colour, 200)
    assert rows["equal_values"]["scores"]["bits_per_dim"] == pytest.approx(math.log2(17), abs=1e-12)
    assert rows["histogram"]["scores"]["bits_per_dim"] == pytest.approx(bits, abs=1e-12)
