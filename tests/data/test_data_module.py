"""The data module: splits, fingerprints, conversion, checks of its settings."""

import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from jsonargparse import ArgumentParser

import lit_gen.data
from lit_gen.core.errors import UserError
from lit_gen.data import Batch, Digits, ImageDataModule, ImageSource, Npz
from lit_gen.data.sources import ImageSet, Part

CONFIGS = Path(__file__).parents[2] / "conf" / "data"


class Memory(ImageSource):
    """Random images, whose first pixel tells where they come from; counts how often they are loaded."""

    name = "memory"
    image_shape = (1, 4, 4)
    num_classes = 3

    def __init__(self, num_train: int = 40, num_test: int = 13) -> None:
        self.sizes = {"train": num_train, "test": num_test}
        self.loads = 0

    def load(self, part: Part) -> ImageSet:
        self.loads += 1
        size = self.sizes[part]
        images = np.random.default_rng(size).integers(0, 256, (size, 1, 4, 4), dtype=np.uint8)
        return ImageSet(images, np.arange(size, dtype=np.int64) % 3)


def with_ranks(
    data: ImageDataModule, rank: int, num_ranks: int, use_distributed_sampler: bool = False, parts: int = 1
) -> ImageDataModule:
    trainer: Any = SimpleNamespace(
        global_rank=rank,
        world_size=num_ranks,
        accumulate_grad_batches=parts,
        training=False,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
        _accelerator_connector=SimpleNamespace(use_distributed_sampler=use_distributed_sampler),
    )
    data.trainer = trainer
    return data


def labels_of(data: ImageDataModule, split: str) -> np.ndarray:
    labels = data.labels(split)
    assert labels is not None
    return labels


def test_validation_is_the_end_of_training_whatever_the_seed() -> None:
    source = Memory()
    train, test = source.load("train"), source.load("test")
    for seed in (0, 1):
        data = ImageDataModule(source, batch_size=4, num_val=7, seed=seed)
        assert (data.images("train") == train.images[:33]).all()
        assert (data.images("val") == train.images[33:]).all()
        assert (data.images("test") == test.images).all()
        assert train.labels is not None
        assert (labels_of(data, "val") == train.labels[33:]).all()


def test_loaders_deliver_the_splits() -> None:
    data = ImageDataModule(Memory(), batch_size=6, num_val=7)
    for split, loader in (("val", data.val_dataloader()), ("test", data.test_dataloader())):
        batches = list(loader)
        assert (np.concatenate([batch.images for batch in batches]) == data.images(split)).all()
        assert (np.concatenate([batch.labels for batch in batches]) == labels_of(data, split)).all()
    batches = list(data.train_dataloader())
    assert [len(batch.index) for batch in batches] == [6] * 5
    for images, labels, index, *_ in batches:
        assert (images.numpy() == data.images("train")[index]).all()
        assert (labels.numpy() == labels_of(data, "train")[index]).all()


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_ranks_validate_each_image_once_and_train_on_the_batches_of_one(num_ranks: int) -> None:
    def batches(name: str, rank: int, ranks: int) -> list[list[int]]:
        data = with_ranks(ImageDataModule(Memory(), batch_size=6, num_val=7), rank, ranks)
        return [[] if batch.stand_in else batch.index.tolist() for batch in getattr(data, name)()]

    for name in ("val_dataloader", "test_dataloader"):
        seen = [i for rank in range(num_ranks) for batch in batches(name, rank, num_ranks) for i in batch]
        assert sorted(seen) == list(range(7 if name == "val_dataloader" else 13))
    shares = [batches("train_dataloader", rank, num_ranks) for rank in range(num_ranks)]
    assert [sum(parts, []) for parts in zip(*shares, strict=True)] == batches("train_dataloader", 0, 1)


def test_training_batches_come_in_parts_and_others_whole() -> None:
    def batches(name: str, rank: int, ranks: int, parts: int) -> list[list[int]]:
        data = with_ranks(ImageDataModule(Memory(), batch_size=8, num_val=7), rank, ranks, parts=parts)
        return [batch.index.tolist() for batch in getattr(data, name)()]

    for name in ("val_dataloader", "test_dataloader"):
        assert batches(name, 0, 1, 4) == batches(name, 0, 1, 1)
    whole = batches("train_dataloader", 0, 1, 1)
    parts = batches("train_dataloader", 0, 1, 4)
    assert [sum(parts[first : first + 4], []) for first in range(0, 16, 4)] == whole and len(parts) == 16
    ranks = [batches("train_dataloader", rank, 2, 4) for rank in (0, 1)]
    assert [first + second for first, second in zip(*ranks, strict=True)] == parts
    assert {len(part) for part in parts} == {2} and {len(share) for rank in ranks for share in rank} == {1}


def test_no_validation_without_num_val() -> None:
    data = ImageDataModule(Memory())
    assert data.val_dataloader() == []
    with pytest.raises(UserError, match=r"data\.num_val: there is no validation split; give"):
        data.images("val")


def test_conversion_to_float() -> None:
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    batch = Batch(images, torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    converted = ImageDataModule(Memory()).on_after_batch_transfer(batch, 0).images
    assert converted.dtype == torch.float32
    expected = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    assert (converted.flatten().double() - expected).abs().max() < 1e-7
    # quantisation of samples, (x 127.5 + 128) cut to an integer, takes every grey value back to itself
    assert torch.equal((converted * 127.5 + 128).clamp(0, 255).to(torch.uint8), images)
    assert images[0, 0, 0, 5] == 5


def test_files_are_read_once_and_only_when_needed() -> None:
    source = Memory()
    data = ImageDataModule(source, batch_size=4)
    assert (data.name, data.image_shape, data.num_classes) == ("memory", (1, 4, 4), 3)
    data.prepare_data()
    assert source.loads == 0
    for _ in range(2):
        data.images("train")
        data.labels("train")
        data.fingerprint("train")
        list(data.train_dataloader())
    assert source.loads == 1
    data.fingerprint("test")
    assert data.images("test").shape[0] == 13 and source.loads == 2


def test_fingerprint_is_of_content_alone(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (9000, 1, 2, 2), dtype=np.uint8)
    labels = rng.integers(0, 5, 9000)

    def fingerprint(
        folder: str, images: np.ndarray, labels: np.ndarray | None, num_val: int = 0, **settings: Any
    ) -> str:
        path = tmp_path / folder / "images.npz"
        path.parent.mkdir(exist_ok=True)
        arrays: dict[str, Any] = {"images": images} if labels is None else {"images": images, "labels": labels}
        np.savez(path, **arrays)
        return ImageDataModule(Npz(str(path)), num_val=num_val, **settings).fingerprint("train")

    base = fingerprint("a", images, labels)
    assert len(base) == 64
    assert fingerprint("b", images, labels, seed=1, batch_size=7, flip=True) == base
    changed_pixel, changed_label = images.copy(), labels.copy()
    changed_pixel[8999, 0, 1, 1] ^= 1
    changed_label[8999] = (labels[8999] + 1) % 5
    others = [
        fingerprint("c", changed_pixel, labels),
        fingerprint("d", images, changed_label),
        fingerprint("e", images, None),
        fingerprint("f", images.reshape(9000, 1, 1, 4), labels),
        fingerprint("g", images, labels, num_val=1),
    ]
    assert len({base, *others}) == 6
    assert fingerprint("h", images[:8999], labels[:8999]) == others[-1]


def test_bad_settings() -> None:
    with pytest.raises(UserError, match=r"unknown split 'valid'.*train, val, test"):
        ImageDataModule(Digits()).images("valid")
    with pytest.raises(UserError, match=r"data\.batch_size: 50 exceeds the 40 training images of memory"):
        ImageDataModule(Memory(), batch_size=50).train_dataloader()
    with pytest.raises(UserError, match=r"data\.batch_size: 9 .* give a multiple of 2"):
        with_ranks(ImageDataModule(Memory(), batch_size=9), 1, 2).train_dataloader()
    message = r"data\.batch_size: 18 .* among 3 with trainer\.accumulate_grad_batches = 4; give a multiple of 12"
    with pytest.raises(UserError, match=message):
        with_ranks(ImageDataModule(Memory(), batch_size=18), 1, 3, parts=4).train_dataloader()
    assert len(with_ranks(ImageDataModule(Memory(), batch_size=12), 1, 3, parts=4).train_dataloader()) == 3 * 4
    with pytest.raises(UserError, match=r"trainer.use_distributed_sampler: .*; set it to false"):
        with_ranks(ImageDataModule(Memory(), batch_size=8), 1, 2, use_distributed_sampler=True).train_dataloader()
    with pytest.raises(UserError, match=r"data\.num_val: 40 leaves none of the 40 training images of memory"):
        ImageDataModule(Memory(), num_val=40).images("train")
    for key in ("batch_size", "num_val", "num_workers"):
        with pytest.raises(UserError, match=rf"data\.{key}: -1 .* give at least"):
            settings: dict[str, Any] = {key: -1}
            ImageDataModule(Memory(), **settings)


def test_validation_of_images_sorted_by_class_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sorted.npz"
    np.savez(path, images=np.zeros((6, 1, 2, 2), np.uint8), labels=[0, 0, 0, 1, 1, 1])
    assert len(ImageDataModule(Npz(str(path))).images("train")) == 6
    with pytest.raises(UserError, match="data.num_val: .* sorted by class.*shuffle the file"):
        ImageDataModule(Npz(str(path)), num_val=2).images("train")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_config_files(path: Path) -> None:
    """Every file of conf/data is the value of the key data."""
    parser = ArgumentParser()
    parser.add_class_arguments(ImageDataModule, "data", sub_configs=True)
    data = parser.instantiate(parser.parse_args([f"--data={path}"])).data
    assert isinstance(data, ImageDataModule)
    names = {"folder": "images", "npz": "images", "binary_digits": "digits_binary"}
    assert data.name == names.get(path.stem, path.stem)


def test_fashion_mnist_is_not_flipped() -> None:
    """The reference is not, and most shoes point one way: a model of flipped ones would be counted as worse."""
    recipes = sorted((CONFIGS.parent / "experiment").glob("fashion_mnist_*.yaml"))
    assert recipes
    for path in [*recipes, CONFIGS / "fashion_mnist.yaml"]:
        config = yaml.safe_load(path.read_text())
        assert not config.get("data", config).get("flip", False), path.name


def test_every_source_has_a_config_file() -> None:
    sources = [cls for cls in vars(lit_gen.data).values() if isinstance(cls, type) and issubclass(cls, ImageSource)]
    concrete = {cls.__name__ for cls in sources if not inspect.isabstract(cls)}
    named = set()
    for path in CONFIGS.glob("*.yaml"):
        source = yaml.safe_load(path.read_text())["source"]
        named.add(source if isinstance(source, str) else source["class_path"])
    assert {name.rsplit(".")[-1] for name in named} == concrete
