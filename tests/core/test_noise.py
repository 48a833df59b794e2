import math
from unittest.mock import Mock

import pytest
import torch
from scipy import stats

from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise, philox

ONES = 0xFFFFFFFF


def words_of(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, ...]:
    c0, c1, c2, c3 = (torch.tensor([word]) for word in counter)
    return tuple(int(word) for word in philox((c0, c1, c2, c3), key))


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES, ONES, ONES, ONES), (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_answers(counter, key, words):
    assert words_of(counter, key) == words


def test_philox_leaves_its_counter_alone():
    words = torch.tensor([1, 2, 3, 4])
    philox((words[0], words[1], words[2], words[3]), (5, 6))
    assert words.tolist() == [1, 2, 3, 4]


def test_numbers_are_the_words_of_the_documented_counter():
    index, seed = 7 + 5 * 2**32, 3 + 9 * 2**32
    noise = Noise(seed, [index])
    noise.uniform((2,))
    numbers = noise.uniform((8,), torch.float64)[0]
    for block in range(2):
        words = torch.tensor(words_of((block, 1, 7, 5), (3, 9)), dtype=torch.float64)
        torch.testing.assert_close(numbers[block::2], words / 2**32 + 2**-33, rtol=0, atol=0)


def test_normals_are_normal():
    values = Noise(0, range(500)).normal((400,), torch.float64)
    n = values.numel()
    for power, moment in enumerate((0, 1, 0, 3, 0, 15), start=1):
        spread = math.sqrt(math.prod(range(1, 2 * power, 2)) / n)
        assert abs(float((values**power).mean()) - moment) < 4 * spread
    assert stats.kstest(values.flatten().numpy(), "norm").pvalue > 1e-3
    assert values.abs().max() < 6.77  # 32-bit uniforms reach no further


def test_uniforms_are_uniform_and_inside_the_open_interval():
    values = Noise(1, range(500)).uniform((400,), torch.float64)
    assert stats.kstest(values.flatten().numpy(), "uniform").pvalue > 1e-3
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        rounded = Noise(1, range(500)).uniform((400,), dtype)
        assert rounded.dtype == dtype
        assert rounded.min() > 0 and rounded.max() < 1
        torch.testing.assert_close(rounded.double(), values, atol=torch.finfo(dtype).eps, rtol=0)


def test_neighbours_are_independent():
    noise = Noise(0, range(400))
    first, second, other = noise.normal((400,)), noise.normal((400,)), Noise(1, range(400)).normal((400,))
    bound = 4 / 400
    for a, b in [(first, second), (first, other), (first[1:], first[:-1]), (first[:, 1:], first[:, :-1])]:
        assert abs(float((a * b).mean())) < bound
        assert abs(float((a**2 * b**2).mean()) - 1) < 3 * bound


def test_a_sample_does_not_depend_on_its_batch():
    whole = Noise(11, range(20))
    part = Noise(11, torch.tensor([17, 3]))
    for shape in [(1, 8, 8), (3,), (5, 7)]:
        torch.testing.assert_close(whole.normal(shape)[[17, 3]], part.normal(shape), rtol=0, atol=0)
        torch.testing.assert_close(whole.uniform(shape)[[17, 3]], part.uniform(shape), rtol=0, atol=0)
    assert whole.draws == part.draws == 6
    assert len(part) == 2


def test_data_types_agree():
    double = Noise(2, range(5)).normal((33,), torch.float64)
    torch.testing.assert_close(Noise(2, range(5)).normal((33,)), double.float(), rtol=0, atol=0)


def test_seed_index_and_draw_all_matter():
    values = [float(Noise(seed, [index]).normal(())) for seed in (0, 1, 2**32) for index in (0, 1, 2**32)]
    noise = Noise(0, [0])
    values += [float(noise.normal(())) for _ in range(3)][1:]
    assert len(set(values)) == 11


def test_global_random_state_is_not_touched():
    before = torch.get_rng_state()
    Noise(0, range(3)).normal((4,))
    Noise(0, range(3)).uniform((4,))
    assert torch.equal(before, torch.get_rng_state())


def test_an_empty_batch_is_allowed():
    assert Noise(0, []).normal((3, 2)).shape == (0, 3, 2)


@pytest.mark.parametrize(("seed", "index"), [(-1, [0]), (2**64, [0]), (0, [-1]), (0, [[1]])])
def test_out_of_range_is_a_user_error(seed, index):
    with pytest.raises(UserError):
        Noise(seed, index)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_devices_agree():
    here, there = Noise(3, range(8)), Noise(3, range(8), "cuda")
    torch.testing.assert_close(here.normal((65,), torch.float64), there.normal((65,), torch.float64).cpu())
    torch.testing.assert_close(
        here.uniform((65,), torch.float64), there.uniform((65,), torch.float64).cpu(), rtol=0, atol=0
    )


@pytest.mark.parametrize(("num", "num_calls"), [(1, 4), (3, 4), (5000, 26)])
def test_reading_ahead_changes_no_number(monkeypatch, num, num_calls):
    """Draws of several sizes, normal and uniform, and again from the second on, in fewer calls of philox."""
    counted = Mock(wraps=philox)
    monkeypatch.setattr("lit_gen.core.noise.philox", counted)

    def numbers(ahead):
        counted.reset_mock()
        noise = Noise(2**40 + 3, range(2**33, 2**33 + num))
        drawn = [noise.uniform((2,))]
        noise.reads_ahead = ahead
        for shape in ((1,), (5,), (4,), (), (2, 3), (4,)) * 3:
            drawn += [noise.uniform(shape, torch.float64), noise.normal(shape)]
        noise.draws = 1
        drawn.append(noise.normal((5,)))
        assert noise.draws == 2
        return drawn, counted.call_count

    (plain, one_by_one), (ahead, together) = numbers(False), numbers(True)
    assert all(map(torch.equal, plain, ahead))
    assert (one_by_one, together) == (38, num_calls)
