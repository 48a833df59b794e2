"""Loss and samples of the prior over codes, without a first stage."""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.data import Batch
from lit_gen.families.settings import Temperature
from lit_gen.families.vq import TokenPrior
from lit_gen.families.vq.networks.token_transformer import TokenTransformer
from lit_gen.families.vq.token_sampling import TokenSampling


def randomised(grid: tuple[int, int], num_codes: int, num_classes: int = 0) -> TokenPrior:
    torch.manual_seed(1)
    model = TokenPrior(
        (4, *grid),
        num_classes=num_classes,
        num_codes=num_codes,
        class_conditional=bool(num_classes),
        network=partial(TokenTransformer, width=16, depth=2, num_heads=2),
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.double().eval()


def all_log_probs(model: TokenPrior, labels: torch.Tensor | None = None) -> torch.Tensor:
    """Return log p of all 3^4 sequences of a 2x2 grid of 3 codes."""
    codes = torch.tensor(list(itertools.product(range(3), repeat=4)))
    logits = model.network(codes, labels).log_softmax(2)
    return logits.gather(2, codes[:, :, None]).sum((1, 2)).detach()


def test_the_loss_is_that_of_the_sequences_in_nats_per_code() -> None:
    model = randomised((2, 2), 3, 2)
    codes = torch.tensor(list(itertools.product(range(3), repeat=4)))
    labels = torch.arange(81) % 2
    batch = Batch(codes.view(81, 2, 2).int(), labels, torch.arange(81))
    loss = model.loss(batch).detach()
    torch.testing.assert_close(loss.double(), -all_log_probs(model, labels).mean() / 4, rtol=1e-5, atol=1e-6)
    alike = [float(model.loss(batch._replace(labels=torch.full((81,), label))).detach()) for label in (0, 1)]
    assert abs(alike[0] - alike[1]) > 1e-4


@pytest.mark.parametrize("label", [None, 1])
def test_sequences_come_as_often_as_their_probability_says(label: int | None) -> None:
    model, num = randomised((2, 2), 3, 0 if label is None else 2), 40_000
    labels = None if label is None else torch.full((num,), label)
    with torch.no_grad():
        codes = model.draw(Noise(5, range(num)), labels, TokenSampling())
    assert model.nfe == 4
    number = (codes.flatten(1) * torch.tensor([27, 9, 3, 1])).sum(1)
    counts = torch.bincount(number, minlength=81).double()
    expected = num * all_log_probs(model, None if label is None else torch.full((81,), label)).exp()
    assert float(((counts - expected).square() / expected).sum()) < 125  # chi-square of 80 degrees, 0.999
    uniform = torch.full((81,), num / 81)
    assert float(((counts - uniform).square() / uniform).sum()) > 1000


def test_drawing_by_cached_steps_is_drawing_by_forward_passes() -> None:
    model, sampler = randomised((3, 3), 5), TokenSampling(temperature=0.8, top_k=4, top_p=0.9)
    with torch.no_grad():
        codes = model.draw(Noise(2, range(40)), None, sampler).flatten(1)
        uniform = Noise(2, range(40)).uniform((9,), torch.float64)
        for t in range(9):
            logits = model.network(codes)[:, t]
            assert torch.equal(sampler.choose(logits, uniform[:, t]), codes[:, t])


def test_the_most_probable_code_is_drawn_greedily() -> None:
    model = randomised((2, 3), 7, 3)
    labels = torch.arange(3)
    with torch.no_grad():
        codes = model.draw(Noise(0, range(3)), labels, TokenSampling(top_k=1)).flatten(1)
        assert torch.equal(model.network(codes, labels).argmax(2), codes)
        assert torch.equal(model.draw(Noise(9, range(3)), labels, TokenSampling(top_k=1)).flatten(1), codes)


@pytest.mark.parametrize(("size", "nfe"), [(None, 6), ((2, 3), 6), ((4, 5), 20)])
def test_nfe_is_how_often_the_network_was_called(
    size: tuple[int, int] | None, nfe: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = randomised((2, 3), 7)
    calls: list[str] = []

    def counted(name: str) -> Callable[..., torch.Tensor]:
        call = getattr(model.network, name)

        def counting(*words: Any) -> torch.Tensor:
            calls.append(name)
            logits: torch.Tensor = call(*words)
            return logits

        return counting

    for name in ("step", "forward"):
        monkeypatch.setattr(model.network, name, counted(name))
    with torch.no_grad():
        model.draw(Noise(0, range(2)), None, TokenSampling(size=size))
        assert model.nfe == len(calls) == nfe and set(calls) == {"step" if nfe == 6 else "forward"}
        model.draw(Noise(0, range(2)), None, TokenSampling(size=size))
    assert model.nfe == nfe, "of an image, not of all that were drawn"


def test_a_larger_grid_is_drawn_through_windows() -> None:
    model, sampler = randomised((2, 3), 7), TokenSampling(size=(4, 5))
    with torch.no_grad():
        codes = model.draw(Noise(0, range(6)), None, sampler)
        uniform = Noise(0, range(6)).uniform((20,), torch.float64)
        for number, (row, column) in enumerate(itertools.product(range(4), range(5))):
            logits = model.network.at(codes, (row, column))  # type: ignore[operator]
            assert torch.equal(sampler.choose(logits, uniform[:, number]), codes[:, row, column])
    assert codes.shape == (6, 4, 5) and model.nfe == 20
    whole = model.draw(Noise(0, range(6)), None, TokenSampling(size=(2, 3)))
    assert torch.equal(whole, model.draw(Noise(0, range(6)), None, TokenSampling()))


@pytest.mark.parametrize("size", [None, (4, 5)])
def test_logits_that_are_not_finite_are_one_line(size: tuple[int, int] | None) -> None:
    for value in (torch.nan, torch.inf):
        model = randomised((2, 3), 7)
        with torch.no_grad():
            model.network.out.bias[4] = value  # type: ignore[union-attr, index]
            says = "^TokenPrior .* logits that are not finite: .*; train with a lower learning rate$"
            with pytest.raises(UserError, match=says):
                model.draw(Noise(0, range(6)), None, TokenSampling(size=size))
    model = randomised((2, 3), 7)
    with torch.no_grad():
        assert (model.draw(Noise(0, range(40)), None, TokenSampling(size=size)) == 4).any()
        model.network.out.bias[4] = -torch.inf  # type: ignore[union-attr, index]
        codes = model.draw(Noise(0, range(40)), None, TokenSampling(size=size))
    assert codes.unique().tolist() == [0, 1, 2, 3, 5, 6], "a code without mass is none of the kind"


def test_what_it_does_not_take_is_refused() -> None:
    with pytest.raises(UserError, match=r"first_stage\.run: TokenPrior learns the codes"):
        TokenPrior((4, 2, 2))
    model = randomised((2, 3), 7)
    with pytest.raises(UserError, match=r"sampler\.size: \[2, 2\] is smaller"):
        model.check_sampler(TokenSampling(size=(2, 2)))
    with pytest.raises(UserError, match="TokenPrior does not support Temperature; choose one of TokenSampling"):
        model.check_sampler(Temperature())
    with pytest.raises(UserError, match="has no likelihood"):
        model.check_likelihood()
