import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from lit_gen.core.errors import UserError
from lit_gen.data import Digits, ImageDataModule, Npz
from lit_gen.metrics import DigitsFeatures, Moments, reference_moments


@pytest.fixture
def data() -> ImageDataModule:
    return ImageDataModule(source=Digits(), batch_size=128, flip=True, num_val=100)


class CountingNet(DigitsFeatures):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def extract(self, images):
        self.seen.append(len(images))
        return super().extract(images)


def assert_same(a: Moments, b: Moments, rtol: float = 0) -> None:
    assert a.n == b.n
    np.testing.assert_allclose(a.mean, b.mean, rtol=rtol)
    np.testing.assert_allclose(a.cov, b.cov, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("split, num", [("train", 1342), ("val", 100), ("test", 355)])
def test_covers_every_image_of_the_split_unaugmented(data, tmp_path, split, num):
    moments = reference_moments(data, split, DigitsFeatures(), tmp_path, batch_size=99)
    images = torch.tensor(data.images(split))
    features = DigitsFeatures()(images)[0].double().numpy()
    assert moments.n == num == len(images)
    np.testing.assert_allclose(moments.mean, features.mean(0), rtol=1e-5)
    np.testing.assert_allclose(moments.cov, np.cov(features, rowvar=False), rtol=1e-4, atol=1e-5)


def test_second_call_reads_the_file(data, tmp_path):
    net = CountingNet()
    done: list[int] = []
    first = reference_moments(data, "test", net, tmp_path / "new" / "cache", batch_size=100, progress=done.append)
    assert net.seen == done == [100, 100, 100, 55]
    second = reference_moments(data, "test", net, tmp_path / "new" / "cache")
    assert len(net.seen) == 4
    assert_same(first, second)
    assert first.mean.dtype == second.cov.dtype == torch.float64


def test_key_holds_data_split_and_version(data, tmp_path):
    def files() -> int:
        return len(list(tmp_path.glob("*.safetensors")))

    net = DigitsFeatures()
    reference_moments(data, "test", net, tmp_path)
    reference_moments(data, "val", net, tmp_path)
    assert files() == 2
    reference_moments(ImageDataModule(source=Digits(), num_val=50), "val", net, tmp_path)
    assert files() == 3
    reference_moments(ImageDataModule(source=Digits(), num_val=50, batch_size=7), "val", net, tmp_path)
    assert files() == 3
    net.version = "0" * 16
    reference_moments(data, "test", net, tmp_path)
    assert files() == 4
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]  # no temporary file stays


@pytest.mark.parametrize("damage", ["truncated", "empty", "text"])
def test_broken_file_is_computed_again_with_a_notice(data, tmp_path, damage, caplog):
    net = DigitsFeatures()
    exact = reference_moments(data, "test", net, tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes({"truncated": path.read_bytes()[:-8], "empty": b"", "text": b"hello, world"}[damage])
    with caplog.at_level(logging.WARNING):
        assert_same(reference_moments(data, "test", net, tmp_path), exact)
    assert len(caplog.records) == 1 and "\n" not in caplog.text.strip()
    assert path.name in caplog.text and "computing the reference statistics again" in caplog.text
    caplog.clear()
    assert_same(reference_moments(data, "test", net, tmp_path), exact)
    assert not caplog.records


def test_too_few_images_are_an_error(tmp_path):
    np.savez(tmp_path / "one.npz", images=np.zeros((1, 1, 8, 8), np.uint8))
    with pytest.raises(UserError, match="at least 2 images"):
        reference_moments(ImageDataModule(source=Npz(str(tmp_path / "one.npz"))), "train", DigitsFeatures(), tmp_path)


def test_concurrent_writers_never_tear_the_file(data, tmp_path, caplog):
    exact = reference_moments(data, "test", DigitsFeatures(), tmp_path / "alone")

    def write_many_times(_: int) -> None:
        net = DigitsFeatures()
        for _ in range(20):
            for path in (tmp_path / "shared").glob("[!.]*.safetensors"):
                path.unlink(missing_ok=True)
            assert_same(reference_moments(data, "test", net, tmp_path / "shared"), exact)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(write_many_times, range(3)))
    assert len(list((tmp_path / "shared").iterdir())) <= 1


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """What asks for the moments of a small data set, what they are, and the file that keeps them."""
    folder = tmp_path_factory.mktemp("kept")
    images = np.random.default_rng(0).integers(0, 256, (5, 1, 8, 8), dtype=np.uint8)
    np.savez(folder / "five.npz", images=images)
    data = ImageDataModule(source=Npz(str(folder / "five.npz")))
    net = DigitsFeatures()
    exact = reference_moments(data, "train", net, folder / "cache")
    (path,) = (folder / "cache").iterdir()
    return lambda: reference_moments(data, "train", net, folder / "cache"), exact, path, path.read_bytes()


@settings(max_examples=20, derandomize=True, deadline=None)
@given(cut=st.booleans(), share=st.floats(0, 1, exclude_max=True), in_header=st.booleans())
def test_cut_and_flipped_files_are_computed_again(kept, cut, share, in_header):
    moments, exact, path, whole = kept
    place = int(share * (300 if in_header else len(whole)))
    content = bytearray(whole)
    content[place] ^= 1 << int(1000 * share) % 8
    path.write_bytes(content[:place] if cut else content)
    assert_same(moments(), exact)


def test_statistics_of_earlier_versions_have_no_checksum(kept):
    moments, exact, path, _ = kept
    path.write_bytes(save({"mean": exact.mean + 1, "cov": exact.cov}, metadata={"n": "5"}))
    assert_same(moments(), replace(exact, mean=exact.mean + 1))
    for wrong in ({"n": "1"}, {"n": "5", "sha256": "0" * 64}, {"n": "5", "other": ""}, {}, None):
        path.write_bytes(save({"mean": exact.mean + 1, "cov": exact.cov}, metadata=wrong))
        assert_same(moments(), exact)
    path.write_bytes(save({"mean": exact.mean * torch.nan, "cov": exact.cov}, metadata={"n": "5"}))
    assert_same(moments(), exact)
