"""Sampling of codes: kept masses, order, frequencies."""

import pytest
import torch

from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.families.vq.token_sampling import TokenSampling

P = torch.tensor([[0.1, 0.4, 0.05, 0.25, 0.2]], dtype=torch.float64)


def kept(**settings: object) -> torch.Tensor:
    return TokenSampling(**settings).probabilities(P.log())[0]  # type: ignore[arg-type]


def expected(*codes: int) -> torch.Tensor:
    masses = torch.zeros(5, dtype=torch.float64)
    masses[list(codes)] = P[0, list(codes)]
    return masses / masses.sum()


def test_masses_are_exact() -> None:
    def same(p: torch.Tensor, q: torch.Tensor) -> None:
        torch.testing.assert_close(p, q, rtol=0, atol=1e-14)

    same(kept(), P[0])
    same(kept(top_k=1), expected(1))
    same(kept(top_k=3), expected(1, 3, 4))
    same(kept(top_k=9), P[0])
    same(kept(top_p=0.3), expected(1))
    same(kept(top_p=0.41), expected(1, 3))
    same(kept(top_p=0.66), expected(1, 3, 4))
    same(kept(top_p=1.0), P[0])
    same(kept(top_k=3, top_p=0.5), expected(1, 3))  # of the 0.85 that top-k leaves, the first code has 0.47
    same(kept(top_k=3, top_p=0.45), expected(1))
    same(kept(temperature=0.5), P[0] ** 2 / (P[0] ** 2).sum())
    hot = P[0] ** 0.25 / (P[0] ** 0.25).sum()
    same(kept(temperature=4.0, top_k=2), torch.where(P[0] > 0.22, hot, 0) / hot[[1, 3]].sum())


def test_of_equal_codes_as_many_are_kept_as_are_asked_for() -> None:
    equal = torch.zeros(2, 8)
    assert (TokenSampling(top_k=3).probabilities(equal) > 0).sum(1).tolist() == [3, 3]
    assert (TokenSampling(top_p=0.5).probabilities(equal) > 0).sum(1).tolist() == [4, 4]


def test_one_code_of_top_k_is_the_most_probable_whatever_the_noise() -> None:
    logits = torch.randn(200, 9)
    uniform = Noise(0, range(200)).uniform((), torch.float64)
    assert torch.equal(TokenSampling(top_k=1).choose(logits, uniform), logits.argmax(1))
    assert torch.equal(TokenSampling(top_p=1e-9).choose(logits, uniform), logits.argmax(1))
    assert not torch.equal(TokenSampling().choose(logits, uniform), logits.argmax(1))


@pytest.mark.parametrize("temperature", [1e-300, 1e-310, 5e-324])
def test_the_smallest_temperatures_take_the_most_probable_code(temperature: float) -> None:
    logits = 50 * torch.randn(200, 9)
    logits[0, :8] = -torch.inf
    most_probable = torch.nn.functional.one_hot(logits.argmax(1), 9).double()
    for others in ({}, {"top_k": 3}, {"top_p": 0.9}):
        sampler = TokenSampling(temperature, **others)  # type: ignore[arg-type]
        assert torch.equal(sampler.probabilities(logits), most_probable)
        assert torch.equal(sampler.choose(logits, Noise(0, range(200)).uniform((), torch.float64)), logits.argmax(1))


def test_codes_come_as_often_as_their_probability_says() -> None:
    num = 40_000
    uniform = Noise(1, range(num)).uniform((), torch.float64)
    codes = TokenSampling().choose(P.log().expand(num, 5), uniform)
    counts = torch.bincount(codes, minlength=5).double()
    assert ((counts - num * P[0]).square() / (num * P[0])).sum() < 18.5  # chi-square of 4 degrees, 0.999


def test_no_code_without_mass_is_drawn_at_the_ends() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 1.0, -torch.inf]]).expand(2, 5)
    ends = torch.tensor([2.0**-33, 1 - 2.0**-33], dtype=torch.float64)
    assert TokenSampling().choose(logits, ends).tolist() == [1, 3]


def test_settings_out_of_range_are_refused() -> None:
    for name, value in {"temperature": 0.0, "top_k": 0, "top_p": 1.5}.items():
        with pytest.raises(UserError, match=rf"sampler\.{name}: {value}"):
            TokenSampling(**{name: value})  # type: ignore[arg-type]
