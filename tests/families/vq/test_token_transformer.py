"""The transformer over codes: dependencies of each logit, cached steps, exact sums, windows."""

import itertools

import pytest
import torch

from lit_gen.core.errors import UserError
from lit_gen.families.vq.networks.token_transformer import TokenTransformer


def randomised(grid: tuple[int, int], num_codes: int, num_classes: int = 0, seed: int = 0) -> TokenTransformer:
    torch.manual_seed(seed)
    network = TokenTransformer(grid, num_codes, num_classes, width=16, depth=2, num_heads=2, dropout=0.3)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return network.double().eval()


@pytest.mark.parametrize("num_classes", [0, 3])
def test_cached_steps_give_the_logits_of_a_forward_pass(num_classes: int) -> None:
    network = randomised((3, 4), 7, num_classes)
    codes = torch.randint(7, (5, 12))
    labels = torch.arange(5) % 3 if num_classes else None
    with torch.no_grad():
        whole = network(codes, labels)
        drawn = network.start(5, labels)
        steps = [network.step(drawn, codes[:, t - 1] if t else None) for t in range(12)]
    assert whole.shape == (5, 12, 7)
    torch.testing.assert_close(torch.stack(steps, 1), whole, rtol=0, atol=1e-10)
    torch.testing.assert_close(network(codes[:, :5], labels), whole[:, :5], rtol=0, atol=1e-10)
    if labels is not None:
        others = network(codes, (labels + 1) % 3)
        assert ((others - whole).abs().amax(2) > 1e-6).all(), "every logit depends on the class"


def seen(network: TokenTransformer, logits: torch.Tensor) -> torch.Tensor:
    """Return how strongly each code, which occurs at one position, influences the logits: (K,)."""
    network.zero_grad()
    logits.square().sum().backward()  # a sum would be free of what moves all logits alike
    gradient = network.codes.weight.grad
    return torch.zeros(network.codes.num_embeddings) if gradient is None else gradient.abs().amax(1)


def test_a_logit_depends_on_all_codes_before_it_and_no_others() -> None:
    network = randomised((3, 4), 12)
    codes = torch.randperm(12)
    for t in range(12):
        influence = seen(network, network(codes[None])[0, t])[codes]
        assert (influence[:t] > 1e-9).all() and influence[t:].abs().max() == 0, t


def test_a_window_is_the_whole_grid_of_training() -> None:
    network = randomised((3, 4), 7)
    codes = torch.randint(7, (2, 3, 4))
    whole = network(codes.flatten(1)).unflatten(1, (3, 4))
    for place in itertools.product(range(3), range(4)):
        torch.testing.assert_close(network.at(codes, place), whole[:, place[0], place[1]], rtol=0, atol=1e-10)


def test_a_place_of_a_larger_grid_sees_its_window_before_it_alone() -> None:
    """As in the paper, the window has the training grid's size and is centred on the position, but within the grid."""
    network, (height, width) = randomised((2, 3), 35), (5, 7)
    codes = torch.randperm(35).view(height, width)
    for row, column in itertools.product(range(height), range(width)):
        top, left = network.window((row, column), (height, width))
        assert (top, left) == (min(max(row - 1, 0), 3), min(max(column - 1, 0), 4))
        influence = seen(network, network.at(codes[None], (row, column)))[codes]
        before = torch.arange(35).view(height, width) < row * width + column
        inside = torch.zeros(height, width, dtype=torch.bool)
        inside[top : top + 2, left : left + 3] = True
        assert inside[row, column]
        assert (influence[inside & before] > 1e-9).all()
        assert influence[~(inside & before)].abs().sum() == 0


def test_the_probabilities_of_all_sequences_sum_to_one() -> None:
    network = randomised((2, 2), 3, 2)
    codes = torch.tensor(list(itertools.product(range(3), repeat=4)))
    assert len(codes) == 81
    for label in range(2):
        logits = network(codes, torch.full((81,), label)).log_softmax(2)
        log_p = logits.gather(2, codes[:, :, None]).sum((1, 2))
        assert abs(float(log_p.exp().sum().detach()) - 1) < 1e-10


def test_a_size_that_does_not_suit_is_refused() -> None:
    for wrong in ({"width": 10, "num_heads": 4}, {"depth": 0}, {"dropout": 1.0}):
        with pytest.raises(UserError, match=r"model\.network"):
            TokenTransformer((2, 2), 4, **wrong)  # type: ignore[arg-type]
