"""Quantisers against brute force, exact gradients, k-means, and each other over two processes."""

import itertools
import math
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor, distributed

from lit_gen.core.errors import UserError
from lit_gen.core.processes import gather
from lit_gen.families.vq.networks.quantisers import (
    FSQ,
    Quantiser,
    VectorQuantiser,
    draw_codes,
    frequencies,
    k_means,
    nearest,
    perplexity,
    usage,
)
from tests.families.random_networks import randomise
from tests.processes import in_two_processes

Similarity = Literal["euclidean", "cosine"]


def latents(num: int = 4, dim: int = 6, size: int = 5, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, dim, size, size, generator=generator, dtype=torch.float64)


def quantiser(num_codes: int = 16, dim: int = 6, seed: int = 0, **options: object) -> VectorQuantiser:
    torch.manual_seed(seed)
    made = VectorQuantiser(dim, num_codes, **{"revive_below": 0.0, **options}).double()  # type: ignore[arg-type]
    randomise(made, seed)
    return made


def fsq(dim: int = 6, levels: tuple[int, ...] = (4, 3, 5)) -> FSQ:
    return randomise(FSQ(dim, levels).double())


@pytest.mark.parametrize("similarity", ["euclidean", "cosine"])
def test_the_nearest_code_is_that_of_brute_force(similarity: Similarity) -> None:
    vq, z = quantiser(similarity=similarity), latents()
    x = vq.vectors(z).movedim(1, -1)
    codes = vq.codes / vq.codes.norm(dim=1, keepdim=True) if similarity == "cosine" else vq.codes
    expected = torch.cdist(x.reshape(-1, 6), codes, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
    assert torch.equal(vq(z).indices.flatten(), expected)
    assert len(expected.unique()) > 8
    if similarity == "cosine":
        torch.testing.assert_close(vq(z).z_q.norm(dim=1), torch.ones(4, 5, 5).double())
        by_angle = torch.nn.functional.cosine_similarity(z.movedim(1, -1)[..., None, :], vq.codes, dim=-1).argmax(-1)
        assert torch.equal(vq(z).indices, by_angle)


def test_far_from_the_origin_the_nearest_code_is_still_that_of_brute_force() -> None:
    """The comparison omits |x|^2, which would swamp the differences."""
    generator = torch.Generator().manual_seed(0)
    x, codes = torch.randn(200, 3, generator=generator).double(), torch.randn(9, 3, generator=generator).double()
    assert torch.equal(nearest(x + 1e5, codes + 1e5), torch.cdist(x, codes).argmin(1))


def test_the_value_is_the_code_and_the_gradient_goes_straight_through() -> None:
    for made in (quantiser(), quantiser(ema=False)):
        z = latents(num=2, size=2).requires_grad_()
        before = made.codes.detach().clone()
        z_q, indices, _, _ = made(z)
        assert torch.equal(z_q.movedim(1, -1), before[indices]), "to the last bit"
        jacobian = torch.autograd.functional.jacobian(lambda z: made(z).z_q, z)  # noqa: B023
        assert torch.equal(jacobian.reshape(48, 48), torch.eye(48).double())
        weights = torch.randn_like(z)
        (gradient,) = torch.autograd.grad((z_q * weights).sum(), z)
        assert torch.equal(gradient, weights)
        if not made.ema:
            assert torch.autograd.grad((made(z).z_q * weights).sum(), made.codes, allow_unused=True) == (None,)


def test_with_low_dimensional_codes_the_gradient_is_that_of_the_two_maps() -> None:
    vq, z = quantiser(code_dim=2), latents(num=1, size=1).requires_grad_()
    jacobian = torch.autograd.functional.jacobian(lambda z: vq(z).z_q, z).reshape(6, 6)
    inwards, outwards = vq.inwards.weight[:, :, 0, 0], vq.outwards.weight[:, :, 0, 0]  # type: ignore[index]
    torch.testing.assert_close(jacobian, outwards @ inwards, rtol=1e-12, atol=1e-14)
    assert vq.codes.shape == (16, 2) and vq.vectors(z).shape == (1, 2, 1, 1)


@pytest.mark.parametrize("beta", [0.0, 0.25, 3.0])
def test_codes_learn_by_the_codebook_loss_alone_and_the_encoder_by_commitment_alone(beta: float) -> None:
    """The exact gradients of |sg(x) - e|^2 and beta |x - sg(e)|^2: the wrong term would carry beta."""
    vq, z = quantiser(ema=False, beta=beta), latents().requires_grad_()
    _, indices, loss, _ = vq(z)
    to_z, to_codes = torch.autograd.grad(loss, [z, vq.codes])
    x, codes = z.detach().movedim(1, -1), vq.codes.detach()
    difference = codes[indices] - x
    expected = torch.zeros_like(codes).index_add_(0, indices.flatten(), 2 * difference.reshape(-1, 6) / z.numel())
    torch.testing.assert_close(to_codes, expected, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(to_z.movedim(1, -1), -2 * beta * difference / z.numel(), rtol=1e-12, atol=1e-15)
    assert (to_z.abs().max() == 0) == (beta == 0)
    averaged = quantiser(beta=beta)
    averaged.codes.copy_(codes)
    torch.testing.assert_close(averaged(z).loss, beta * difference.square().mean())


def test_without_decay_codes_are_the_means_of_their_vectors() -> None:
    vq, z = quantiser(decay=0.0), latents(num=8)
    before = vq.codes.clone()
    indices = vq(z).indices.flatten()
    x = z.movedim(1, -1).reshape(-1, 6)
    used = indices.unique()
    assert 1 < len(used) < 16 or len(used) == 16
    for k in range(16):
        expected = x[indices == k].mean(0) if k in used else before[k]
        torch.testing.assert_close(vq.codes[k], expected, rtol=1e-12, atol=1e-14)


def test_averages_forget_by_the_decay() -> None:
    vq = quantiser(num_codes=2, dim=1, decay=0.75)
    vq._set(torch.arange(2), torch.tensor([[-1.0], [1.0]]).double())
    vq(torch.tensor([-2.0, 3.0, 5.0, 4.0]).double().reshape(4, 1, 1, 1))
    share, total = (0.75 * 0.5 + 0.25 * 0.75), (0.75 * 0.5 * 1 + 0.25 * 12 / 4)
    torch.testing.assert_close(vq.share, torch.tensor([1 - share, share]).double())
    torch.testing.assert_close(vq.codes[1], torch.tensor([total / share]).double())
    vq.eval()
    before = vq.codes.clone()
    vq(torch.full((4, 1, 1, 1), 9.0).double())
    assert torch.equal(vq.codes, before), "nothing is learnt outside of training"


def test_the_steady_state_is_that_of_k_means() -> None:
    """If one batch is repeated, the averages converge to the result of Lloyd's iterations."""
    z = latents(num=8, dim=3)
    x = z.movedim(1, -1).reshape(-1, 3)
    vq = quantiser(num_codes=5, dim=3, decay=0.5)
    for _ in range(200):
        vq(z)
    chosen = vq(z).indices.flatten()
    assert len(chosen.unique()) == 5
    means = torch.stack([x[chosen == k].mean(0) for k in range(5)])
    torch.testing.assert_close(vq.codes, means, rtol=1e-10, atol=1e-12)
    assert torch.equal(torch.cdist(x, means).argmin(1), chosen), "a fixed point of k-means"


@pytest.mark.parametrize("ema", [True, False])
def test_a_dead_code_moves_to_a_vector_and_its_averages_start_anew(ema: bool) -> None:
    """With its old sums, the next step would move it back."""
    vq, z = quantiser(ema=ema, revive_below=0.1, decay=0.9), latents()
    with torch.no_grad():
        vq.codes[3] = vq.codes[11] = 100.0
        vq.share[[3, 11]] = 1e-4
        if ema:
            vq.total[[3, 11]] = 100.0 * 1e-4
    x = z.movedim(1, -1).reshape(-1, 6)
    torch.manual_seed(1)
    vq.prepare(x)
    distances = torch.cdist(vq.codes.detach()[[3, 11]], x)
    assert distances.min(1).values.max() == 0 and not torch.equal(vq.codes[3], vq.codes[11])
    assert torch.equal(vq.share[[3, 11]], torch.full((2,), 1 / 16).double()) and vq.revived == 2
    if ema:
        assert torch.equal(vq.total[[3, 11]], vq.codes[[3, 11]] / 16)
    moved = vq.codes.detach()[3].clone()
    indices = vq(z).indices
    assert (indices == 3).any(), "in use at once"
    if ema:
        mean = x[indices.flatten() == 3].mean(0)
        share = (indices == 3).double().mean()
        expected = (0.9 / 16 * moved + 0.1 * share * mean) / (0.9 / 16 + 0.1 * share)
        torch.testing.assert_close(vq.codes[3], expected)
    assert vq.revived == 2, "it is not dead again"


def test_no_code_is_dead_when_all_are_used_and_a_dead_one_waits_for_its_share_to_fall() -> None:
    vq, z = quantiser(revive_below=0.1, decay=0.9), latents(num=8)
    vq.codes[0] = vq.total[0] = 100.0
    vq.total[0] /= 16
    revived = [int(vq(z).stats["revived"]) for _ in range(30)]
    assert revived.index(1) == 22, "0.9^n < 0.1 from n = 22 steps on, which the next step sees"
    for _ in range(100):
        assert int(vq(z).stats["revived"]) == int(vq.revived)


@pytest.mark.parametrize("ema", [True, False])
def test_averages_move_once_for_all_parts_of_a_step(ema: bool) -> None:
    whole, split, z = quantiser(ema=ema, decay=0.5), quantiser(ema=ema, decay=0.5), latents(num=6)
    split.over_micro_batches.num_micro_batches = 3
    for _ in range(2):
        at_once, before = whole(z).indices, {name: value.clone() for name, value in split.state_dict().items()}
        parts = []
        for part in z.chunk(3):
            assert all(torch.equal(value, before[name]) for name, value in split.state_dict().items())
            parts.append(split(part).indices)
        assert torch.equal(torch.cat(parts), at_once)
        assert not torch.equal(split.share, before["share"])
        for name, value in split.state_dict().items():
            torch.testing.assert_close(value, whole.state_dict()[name], rtol=1e-12, atol=1e-12)


def test_more_dead_codes_than_vectors_are_revived_in_turn() -> None:
    vq = quantiser(revive_below=0.1)
    vq.share.zero_()
    vq.prepare(torch.randn(6, 6).double())
    assert vq.revived == 6 and int((vq.share == 0).sum()) == 10


def chi_square(counts: Tensor, p: Tensor) -> float:
    """Return Pearson's statistic; outcomes of probability zero must have no count."""
    assert bool((counts[p == 0] == 0).all())
    expected = counts.sum() * p[p > 0]
    return float(((counts[p > 0] - expected).square() / expected).sum())


def test_revived_codes_are_drawn_in_proportion_to_the_squared_distance_without_replacement() -> None:
    """The first is vector i with p_i = d_i^2 / sum_j d_j^2, and the second j with p_j / (1 - p_i)."""
    vq, num = quantiser(num_codes=3, dim=1, revive_below=0.1), 2000
    codes, share = torch.tensor([[0.0], [1e3], [1e3]]).double(), torch.tensor([1.0, 0.0, 0.0]).double()
    x = torch.tensor([[1.0], [0.0], [-2.0], [3.0]]).double()  # one of them is the code itself
    counts = torch.zeros(4, 4).double()
    torch.manual_seed(0)
    for _ in range(num):
        vq.codes.copy_(codes)
        vq.share.copy_(share)
        vq.prepare(x)
        first, second = (int((x == code).nonzero()[0, 0]) for code in vq.codes[1:])
        counts[first, second] += 1
    p = x[:, 0].square() / x.square().sum()
    both = p[:, None] * p / (1 - p)[:, None] * (1 - torch.eye(4))
    assert chi_square(counts.sum(1), p) < 13.9, "2 degrees, 0.999"
    assert chi_square(counts, both) < 20.6, "5 degrees, 0.999"


def test_k_means_starts_from_vectors_in_proportion_to_the_squared_distance() -> None:
    """The first centre i is uniform, and the second is j with probability d_ij^2 / sum_k d_ik^2."""
    x, num = torch.tensor([[0.0], [1.0], [3.0], [7.0]]).double(), 2000
    counts = torch.zeros(4, 4).double()
    for seed in range(num):
        first, second = torch.cdist(k_means(x, 2, iterations=0, seed=seed), x).argmin(1)
        counts[first, second] += 1
    squares = torch.cdist(x, x).square()
    both = squares / squares.sum(1, keepdim=True) / 4
    assert chi_square(counts, both) < 31.3, "11 degrees, 0.999"


def test_k_means_finds_separate_clusters_whatever_the_shares() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = 10 * torch.randn(12, 4, generator=generator).double()
    sizes = [2000, *[20] * 11]
    x = torch.cat([c + 0.01 * torch.randn(n, 4, generator=generator).double() for c, n in zip(centres, sizes)])  # noqa: B905
    found = k_means(x, 12)
    assert torch.cdist(centres, found).min(1).values.max() < 0.02
    assert torch.equal(found, k_means(x, 12)), "its draws are its own"
    torch.rand(3)
    assert torch.equal(found, k_means(x, 12))
    few = k_means(x[:5], 12)
    assert few.shape == (12, 4) and bool(torch.isfinite(few).all())
    same = k_means(torch.ones(50, 4).double(), 3)
    torch.testing.assert_close(same, torch.ones(3, 4).double(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("similarity", ["euclidean", "cosine"])
def test_codes_start_at_the_clusters_of_the_latents(similarity: Similarity) -> None:
    vq, z = quantiser(code_dim=3, similarity=similarity), latents(num=16)
    before = vq(z).loss.detach()
    vq = quantiser(code_dim=3, similarity=similarity)
    state = torch.get_rng_state()
    vq.start(z)
    assert torch.equal(state, torch.get_rng_state())
    assert vq(z).loss < 0.7 * before and len(vq(z).indices.unique()) == 16
    if similarity == "cosine":
        torch.testing.assert_close(vq.codes.norm(dim=1), torch.ones(16).double())


def test_perplexity_is_between_one_and_all_codes() -> None:
    torch.testing.assert_close(perplexity(torch.full((16,), 1 / 16)), torch.tensor(16.0))
    assert perplexity(torch.tensor([0.0, 1.0, 0.0])) == 1 and usage(torch.tensor([0.0, 1.0, 0.0, 0.0])) == 0.25
    torch.manual_seed(0)
    for _ in range(20):
        share = torch.rand(16).pow(4)
        assert 1 < perplexity(share / share.sum()) < 16
    vq, z = quantiser(), latents()
    _, indices, _, stats = vq.eval()(z)
    counts = torch.bincount(indices.flatten(), minlength=16) / indices.numel()
    torch.testing.assert_close(
        stats["perplexity"].double(), torch.distributions.Categorical(counts).entropy().exp().double()
    )
    assert stats["usage"] == (counts > 0).float().mean()


def test_codes_are_drawn_by_the_inverse_of_their_distribution_function() -> None:
    share = torch.tensor([[0.0, 1.0, 0.0, 3.0, 0.0], [2.0, 0.0, 2.0, 0.0, 4.0]])
    uniform = torch.tensor([2.0**-33, 0.2499, 0.25, 0.4999, 0.5, 1 - 2.0**-33], dtype=torch.float64)
    assert draw_codes(share, uniform.expand(2, 6)).tolist() == [[1, 1, 3, 3, 3, 3], [0, 0, 2, 2, 4, 4]]
    assert draw_codes(torch.full((1, 5), torch.nan), uniform[None]).max() == 4, "in range, for a GPU to go on"


@pytest.mark.parametrize("made", [quantiser(), quantiser(ema=False), fsq()])
def test_what_is_logged_in_training_is_of_the_batch(made: Quantiser) -> None:
    _, indices, _, stats = made.train()(latents())
    share = torch.bincount(indices.flatten(), minlength=made.num_codes) / indices.numel()
    assert stats["usage"] == (share > 0).float().mean()
    torch.testing.assert_close(stats["perplexity"].double(), perplexity(share).double(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("levels", [(2,), (3,), (4, 3, 5), (8, 5, 5, 5)])
def test_every_index_of_fsq_is_a_code_and_every_code_an_index(levels: tuple[int, ...]) -> None:
    made = FSQ(6, levels).double()
    assert made.num_codes == math.prod(levels) and made.code_dim == len(levels)
    indices = torch.arange(made.num_codes)
    codes = made.lookup(indices)
    assert len(codes.unique(dim=0)) == made.num_codes and codes.abs().max() <= 1
    assert torch.equal(made.nearest(codes), indices)
    values = [{(digit - level // 2) / (level // 2) for digit in range(level)} for level in levels]
    assert {tuple(code.tolist()) for code in codes} == set(itertools.product(*values))


@pytest.mark.parametrize("levels", [(2, 2), (4, 3, 5), (8, 7)])
def test_fsq_reaches_all_its_codes_and_no_others_by_rounding(levels: tuple[int, ...]) -> None:
    made = randomise(FSQ(6, levels).double())
    generator = torch.Generator().manual_seed(0)
    y = 5 * torch.randn(5000, len(levels), 1, 1, generator=generator, dtype=torch.float64)
    made.inwards = torch.nn.Identity()
    x = made.vectors(y).movedim(1, -1)
    indices = made.nearest(x)
    assert len(indices.unique()) == made.num_codes
    half = torch.tensor([level // 2 for level in levels])
    assert torch.equal(made.lookup(indices) * half, (x * half).round()), "no value lies out of range"
    assert made.vectors(torch.zeros(1, len(levels), 1, 1).double()).abs().max() < 1e-12
    far = made.nearest(torch.full((1, len(levels)), 9.0).double())
    assert int(far) == made.num_codes - 1, "latents of a second stage may leave the range"


def test_fsq_passes_the_gradient_of_its_bound() -> None:
    made, z = fsq(), latents(num=1, size=2).requires_grad_()
    weights = torch.randn(1, 3, 2, 2).double()
    made.outwards = torch.nn.Identity()
    (gradient,) = torch.autograd.grad((made(z).z_q * weights).sum(), z)
    (expected,) = torch.autograd.grad((made.vectors(z) * weights).sum(), z)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=0)
    assert made(z).loss == 0 and gradient.abs().min() > 0


@pytest.mark.parametrize("made", [quantiser(code_dim=3), quantiser(similarity="cosine"), fsq()])
def test_a_vector_has_its_code_whatever_stands_beside_it(made: Quantiser) -> None:
    z = latents()
    z_q, indices, _, _ = made.eval()(z)
    assert z_q.shape == z.shape and indices.shape == (4, 5, 5) and indices.dtype == torch.int64
    assert torch.equal(made(z[2:3]).indices, indices[2:3])
    torch.testing.assert_close(made(z[2:3, :, 1:2, 3:4]).z_q, z_q[2:3, :, 1:2, 3:4])


def test_settings_out_of_range_are_named() -> None:
    for key, value in {"num_codes": 1, "code_dim": 0, "beta": -1.0, "decay": 1.0, "revive_below": 1.0}.items():
        with pytest.raises(UserError, match=f"model.quantiser.{key}: "):
            VectorQuantiser(4, **{key: value})  # type: ignore[arg-type]
    for levels in ((), (8, 1)):
        with pytest.raises(UserError, match="model.quantiser.levels"):
            FSQ(4, levels)


def keep_the_same_codes(rank: int, folder: Path) -> None:
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    for ema in (True, False):
        torch.manual_seed(0)
        similarity: Similarity = "cosine" if ema else "euclidean"
        vq = VectorQuantiser(4, 64, ema=ema, code_dim=3, decay=0.9, revive_below=0.3, similarity=similarity)
        vq.start(torch.randn(16, 4, 4, 4))
        start = vq.codes.detach().clone()
        torch.manual_seed(1 + rank)
        for _ in range(30):
            z = torch.randn(2, 4, 2, 2) * torch.tensor([1.0, 1.0, 0.1, 3.0])[:, None, None]
            quantised = vq(z)
            if not ema:
                gradient = torch.autograd.grad(quantised.loss, vq.codes)[0]
                distributed.all_reduce(gradient)
                with torch.no_grad():
                    vq.codes -= 0.1 * gradient
        assert int(vq.revived) > 20, int(vq.revived)
        state = {name: value.detach().clone() for name, value in vq.state_dict().items() if "wards" not in name}
        first, second = gather(state)
        for name in state:
            assert torch.equal(first[name], second[name]), (ema, name)
        assert not torch.equal(state["codes"], start)

    # without decay codes are the means over the vectors of both
    torch.manual_seed(0)
    vq = VectorQuantiser(4, 8, decay=0.0, revive_below=0.0).double()
    torch.manual_seed(1 + rank)
    z = torch.randn(2, 4, 3, 3).double()
    indices = vq(z).indices.flatten()
    x = z.movedim(1, -1).reshape(-1, 4)
    x, indices = (torch.cat(part) for part in zip(*gather((x, indices)), strict=True))
    for k in indices.unique():
        torch.testing.assert_close(vq.codes[k], x[indices == k].mean(0))

    # what is logged of a training batch is of the batches of both, and not of one
    for each in (VectorQuantiser(4, 64), VectorQuantiser(4, 64, ema=False), FSQ(4)):
        z = torch.randn(2, 4, 3, 3)
        _, indices, _, stats = each(z)
        share = frequencies(torch.cat(gather(indices)), each.num_codes)
        assert stats["perplexity"] == perplexity(share) and stats["usage"] == usage(share)
        assert stats["usage"] != usage(frequencies(indices, each.num_codes))


@pytest.mark.slow
def test_two_processes_keep_the_same_codes_through_revivals(tmp_path: Path) -> None:
    """Each process sees other vectors; codes, averages and the number of revivals are equal to the last bit."""
    in_two_processes(keep_the_same_codes, tmp_path)
