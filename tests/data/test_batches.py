"""The order of images: exact shares of ranks, exact positions, fair flips."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lit_gen.data.batches import FLIP, ORDER, BatchDataset, BatchKey, BatchLoader, BatchSampler, hash_bits
from lit_gen.data.sources import ImageSet


def make_set(num: int = 50) -> ImageSet:
    images = np.random.default_rng(0).integers(0, 256, (num, 3, 4, 5), dtype=np.uint8)
    return ImageSet(images, np.arange(num, dtype=np.int64) % 7)


def batches(**settings: object) -> list[list[int]]:
    return [key.rows.tolist() for key in BatchSampler(**settings)]  # type: ignore[arg-type]


def test_hash_is_splitmix64() -> None:
    """The published first outputs of SplitMix64 from state 0, which is hash_bits of one word."""

    def mix(bits: int) -> int:
        bits = (bits + 0x9E3779B97F4A7C15) % 2**64
        bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        bits = (bits ^ bits >> 27) * 0x94D049BB133111EB % 2**64
        return bits ^ bits >> 31

    assert mix(0) == 0xE220A8397B1DCDAF
    expected = mix(mix(mix(mix(5) + 2) + 1) + 77)
    assert hash_bits(5, 2, 1, np.array([0, 77]))[1] == expected


def test_hash_depends_on_each_of_its_arguments() -> None:
    index = np.arange(1000)
    base = hash_bits(1, 2, ORDER, index)
    assert len(np.unique(base)) == 1000
    for other in (hash_bits(2, 2, ORDER, index), hash_bits(1, 1, ORDER, index), hash_bits(1, 2, FLIP, index)):
        assert not (base == other).any()


def test_order_is_a_fair_permutation() -> None:
    sampler = BatchSampler(100, 10, seed=4)
    orders = np.stack([sampler.order(epoch) for epoch in range(2000)])
    assert (np.sort(orders) == np.arange(100)).all()
    # the mean of each position over 2000 epochs: 49.5 +- 28.87 / sqrt(2000), five standard errors
    assert np.abs(orders.mean(0) - 49.5).max() < 5 * 28.87 / np.sqrt(2000)


def test_unshuffled_batches_deliver_each_image_once() -> None:
    assert batches(num_images=10, batch_size=4, shuffle=False, drop_last=False) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert batches(num_images=10, batch_size=4, shuffle=False, drop_last=True) == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("num_images", [1, 2, 11, 12, 13, 14, 24])
@pytest.mark.parametrize("drop_last", [True, False])
def test_ranks_share_each_batch(num_ranks: int, num_images: int, drop_last: bool) -> None:
    settings: dict[str, Any] = {"num_images": num_images, "batch_size": 12, "drop_last": drop_last, "seed": 1}
    whole = batches(**settings)
    samplers = [BatchSampler(**settings, rank=rank, num_ranks=num_ranks) for rank in range(num_ranks)]
    shares = [list(sampler) for sampler in samplers]
    assert {len(sampler) for sampler in samplers} == {len(whole)}
    for batch, parts in zip(whole, zip(*shares, strict=True), strict=True):
        assert [i for part in parts if not part.stand_in for i in part.rows.tolist()] == batch
        assert all(part.rows.tolist() == batch[:1] for part in parts if part.stand_in)
        assert sum(part.stand_in for part in parts) == max(num_ranks - len(batch), 0)
    assert len({i for batch in whole for i in batch}) == (num_images - num_images % 12 if drop_last else num_images)
    if drop_last:
        assert all(len(part.rows) == 12 // num_ranks for share in shares for part in share)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_rank_without_a_share_gets_a_stand_in_that_says_so(num_workers: int) -> None:
    loaders = []
    for rank in range(2):
        sampler = BatchSampler(9, 8, shuffle=False, drop_last=False, rank=rank, num_ranks=2)
        loaders.append(BatchLoader(BatchDataset(make_set(9)), sampler, num_workers, pin_memory=False))
    seen = [[(batch.index.tolist(), batch.stand_in) for batch in loader] for loader in loaders]
    assert seen == [[([0, 1, 2, 3], False), ([8], False)], [([4, 5, 6, 7], False), ([8], True)]]


@pytest.mark.parametrize("first", [0, 1, 3, 4])
def test_position_enters_the_epoch_in_the_middle(first: int) -> None:
    whole = BatchSampler(43, 10, seed=2)
    whole.set_epoch(5)
    entered = BatchSampler(43, 10, seed=2, position=lambda: (5, first))
    assert [key.rows.tolist() for key in entered] == [key.rows.tolist() for key in whole][first:]
    assert {key.epoch for key in whole} == {5}
    assert len(entered) == len(whole) == 4


@pytest.mark.parametrize("parts", [1, 2, 3, 4])
@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_parts_and_ranks_together_are_the_batches_in_order(parts: int, num_ranks: int) -> None:
    size = 12 * num_ranks
    settings: dict[str, Any] = {"num_images": 3 * size + 5, "batch_size": size, "seed": 2}
    whole = [key.rows.tolist() for key in BatchSampler(**settings, position=lambda: (7, 0))]
    assert len(whole) == 3
    for first in range(3 * parts + 1):
        ranks = [
            BatchSampler(
                **settings,
                rank=rank,
                num_ranks=num_ranks,
                position=lambda: (7, first),  # noqa: B023
                num_micro_batches=parts,
            )
            for rank in range(num_ranks)
        ]
        assert {len(sampler) for sampler in ranks} == {3 * parts}, "of a whole epoch, wherever it is entered"
        keys = [key for part in zip(*ranks, strict=True) for key in part]
        assert all(key.epoch == 7 and not key.stand_in and len(key.rows) == 12 // parts for key in keys)
        assert [row for key in keys for row in key.rows.tolist()] == sum(whole, [])[first * size // parts :]


def test_gather_without_flips_is_the_images() -> None:
    data = make_set()
    assert data.labels is not None
    rows = np.array([7, 3, 3, 49])
    images, labels, index, *_ = BatchDataset(data)[BatchKey(0, rows)]
    assert images.dtype == torch.uint8
    assert (images.numpy() == data.images[rows]).all()
    assert labels is not None
    assert labels.tolist() == data.labels[rows].tolist()
    assert index.tolist() == rows.tolist()
    assert BatchDataset(data._replace(labels=None))[BatchKey(0, rows)].labels is None


def test_flips_depend_on_seed_epoch_and_index_alone() -> None:
    data = make_set(2000)
    original = data.images.copy()
    dataset = BatchDataset(data, seed=3, flip=True)
    everything = np.arange(2000)
    images = dataset[BatchKey(1, everything)].images.numpy()
    flipped = np.array([not (a == b).all() for a, b in zip(images, data.images, strict=True)])
    assert (images[flipped] == data.images[flipped][..., ::-1]).all()
    assert abs(flipped.sum() - 1000) < 5 * np.sqrt(500)
    assert (data.images == original).all()  # the data set itself stays as it is

    torch.manual_seed(0)
    for rows in (everything[::-1], everything[5:6], np.array([9, 1999, 9])):  # other batches, other company
        assert (dataset[BatchKey(1, rows.copy())].images.numpy() == images[rows]).all()
    assert (dataset[BatchKey(2, everything)].images.numpy() != images).any()
    assert (BatchDataset(data, seed=4, flip=True)[BatchKey(1, everything)].images.numpy() != images).any()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loader_leaves_the_global_generator_alone(num_workers: int) -> None:
    data = make_set()
    loader = BatchLoader(BatchDataset(data, flip=True), BatchSampler(50, 8), num_workers, pin_memory=False)
    state = torch.get_rng_state()
    indices = [batch.index.tolist() for batch in loader]
    assert torch.equal(torch.get_rng_state(), state)
    assert indices == batches(num_images=50, batch_size=8)
    assert len(loader) == 6


def test_images_on_disk_are_not_pickled(tmp_path: Path) -> None:
    """A worker that is started afresh opens the file; it gets no copy of the data set."""
    images = np.random.default_rng(1).integers(0, 256, (4000, 3, 8, 8), dtype=np.uint8)
    (tmp_path / "images").write_bytes(b"0123456789" + images.tobytes())
    mapped = np.memmap(tmp_path / "images", np.uint8, "r", 10, images.shape)
    for start, stop in ((0, 4000), (1000, 1500)):
        dataset = BatchDataset(ImageSet(mapped, None).slice(start, stop))
        pickled = pickle.dumps(dataset)
        assert len(pickled) < 1000
        rows = np.array([0, 17, stop - start - 1])
        assert (pickle.loads(pickled)[BatchKey(0, rows)].images.numpy() == images[start:stop][rows]).all()
