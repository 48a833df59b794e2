"""DiT: block against equation, symmetries, sizes of the paper's networks, equality with diffusers, errors."""

import math

import pytest
import torch
from torch import Tensor, nn

from lit_gen.core.errors import UserError
from lit_gen.families.diffusion import DiT
from lit_gen.families.diffusion.networks.dit import DiTBlock, positions
from tests.families.random_networks import batch, randomise


def small_dit(image_shape: tuple[int, int, int] = (2, 8, 8), num_classes: int = 3, **kwargs: object) -> DiT:
    settings: dict = {"patch_size": 2, "width": 24, "depth": 2, "num_heads": 2} | kwargs
    return randomise(DiT(image_shape, num_classes, **settings)).double()


def test_block_against_its_equation() -> None:
    block = randomise(DiTBlock(12, num_heads=3, mlp_ratio=2.5, dropout=0.0)).double()
    x, emb = torch.randn(2, 5, 12, dtype=torch.float64), torch.randn(2, 12, dtype=torch.float64)

    def normalise(h: Tensor) -> Tensor:
        return (h - h.mean(2, keepdim=True)) / (h.var(2, correction=0, keepdim=True) + 1e-6).sqrt()

    def gelu(h: Tensor) -> Tensor:
        return h / 2 * (1 + (math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)).tanh())

    scale_1, shift_1, gate_1, scale_2, shift_2, gate_2 = block.modulation(emb).reshape(2, 6, 1, 12).unbind(1)
    q, k, v = block.qkv(normalise(x) * (1 + scale_1) + shift_1).chunk(3, dim=2)
    heads = []
    for head in (slice(0, 4), slice(4, 8), slice(8, 12)):
        weights = (q[..., head] @ k[..., head].transpose(1, 2) / 2).softmax(dim=2)
        heads.append(weights @ v[..., head])
    y = x + gate_1 * block.out(torch.cat(heads, dim=2))
    h = block.mlp[0](normalise(y) * (1 + scale_2) + shift_2)
    assert h.shape[2] == 30
    expected = y + gate_2 * block.mlp[2](gelu(h))
    torch.testing.assert_close(block(x, emb), expected, rtol=0, atol=1e-12)


def test_blocks_begin_as_the_identity() -> None:
    network = DiT((2, 8, 8), 3, patch_size=2, width=24, depth=2, num_heads=2)
    x, emb = torch.randn(2, 16, 24), torch.randn(2, 24)
    for block in network.blocks:
        assert torch.equal(block(x, emb), x)


def test_positions_against_their_formula() -> None:
    found = positions(3, 2, 12)
    for row in range(3):
        for column in range(2):
            expected = []
            for axis in (row, column):
                phases = [axis * 10000 ** (-k / 2) for k in range(3)]
                expected += [math.cos(p) for p in phases] + [math.sin(p) for p in phases]
            assert found[2 * row + column].tolist() == pytest.approx(expected, abs=1e-6)
    assert torch.pdist(positions(16, 16, 64)).min() > 0.5


def patches_of(x: Tensor, size: int) -> list[Tensor]:
    """Return the patches (N, C, size, size), row by row."""
    rows = range(0, x.shape[2], size)
    return [x[:, :, i : i + size, j : j + size] for i in rows for j in range(0, x.shape[3], size)]


@pytest.mark.parametrize("patch_size", [1, 2, 4])
def test_without_positions_permuted_patches_give_permuted_patches(patch_size: int) -> None:
    network = small_dit((2, 8, 4), patch_size=patch_size, out_channels=3).requires_grad_(False)
    x, c_noise, labels = batch(2, (2, 8, 4))
    order = torch.randperm(32 // patch_size**2, generator=torch.Generator().manual_seed(1)).tolist()
    assert order != sorted(order)

    def permuted(image: Tensor) -> Tensor:
        result, parts = torch.empty_like(image), patches_of(image, patch_size)
        for part, source in zip(patches_of(result, patch_size), order, strict=True):
            part.copy_(parts[source])
        return result

    with_positions = network(permuted(x), c_noise, labels) - permuted(network(x, c_noise, labels))
    assert with_positions.abs().max() > 1e-3
    network.positions.zero_()
    torch.testing.assert_close(
        network(permuted(x), c_noise, labels), permuted(network(x, c_noise, labels)), rtol=0, atol=1e-10
    )


def test_output_patches_lie_where_their_tokens_do() -> None:
    """If the blocks are the identity, an output patch depends only on the same patch of the image."""
    network = small_dit((2, 8, 4))
    for name, parameter in network.named_parameters():
        if ".modulation." in name:
            nn.init.zeros_(parameter)
    x, c_noise, labels = batch(1, (2, 8, 4))
    x.requires_grad_()
    output = network(x, c_noise, labels)
    for part in range(8):
        (gradient,) = torch.autograd.grad(patches_of(output, 2)[part].sum(), x, retain_graph=True)
        reached = [bool((patch != 0).any()) for patch in patches_of(gradient, 2)]
        assert reached == [other == part for other in range(8)]


def parameters(network_width: int, depth: int, patch_size: int, channels: int, out_channels: int, classes: int) -> int:
    """Count the parameters from the equations."""
    d, pixels = network_width, patch_size**2
    linears = [(channels * pixels, d), (256, d), (d, d), (d, 2 * d), (d, out_channels * pixels)]
    linears += [(d, 6 * d), (d, 3 * d), (d, d), (d, 4 * d), (4 * d, d)] * depth
    return sum(inputs * outputs + outputs for inputs, outputs in linears) + (classes + 1) * d


@pytest.mark.parametrize(
    "width, depth, num_heads, millions",
    [(384, 12, 6, 33), (768, 12, 12, 130), (1024, 24, 16, 458), (1152, 28, 16, 675)],
    ids=["S", "B", "L", "XL"],
)
def test_sizes_of_the_networks_of_the_paper(width: int, depth: int, num_heads: int, millions: int) -> None:
    """Peebles and Xie, Table 1: patches of 2 in latents 32x32x4, ImageNet's classes, a mean and a learned variance."""
    with torch.device("meta"):
        network = DiT((4, 32, 32), 1000, patch_size=2, width=width, depth=depth, num_heads=num_heads, out_channels=8)
    count = sum(p.numel() for p in network.parameters())
    assert count == parameters(width, depth, 2, 4, 8, 1000)
    assert count == pytest.approx(millions * 1e6, rel=0.005)


def diffusers_weights(own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert the weights of a DiT of width 16 with two blocks to those of DiTTransformer2DModel."""

    def shift_first(value: Tensor) -> Tensor:
        parts = value.chunk(len(value) // 16)
        swapped = [parts[i + 1 - 2 * (i % 3)] if i % 3 < 2 else parts[i] for i in range(len(parts))]
        return torch.cat(swapped)

    weights = {
        "pos_embed.proj.weight": own["patches.weight"].reshape(16, 2, 2, 2),
        "pos_embed.proj.bias": own["patches.bias"],
    }
    for i in range(2):
        block = f"transformer_blocks.{i}"
        weights[f"{block}.norm1.emb.class_embedder.embedding_table.weight"] = own["embed_label.weight"]
        for kind in ("weight", "bias"):
            q, k, v = own[f"blocks.{i}.qkv.{kind}"].chunk(3)
            weights |= {
                f"{block}.norm1.emb.timestep_embedder.linear_1.{kind}": own[f"embed_noise.0.{kind}"],
                f"{block}.norm1.emb.timestep_embedder.linear_2.{kind}": own[f"embed_noise.2.{kind}"],
                f"{block}.norm1.linear.{kind}": shift_first(own[f"blocks.{i}.modulation.{kind}"]),
                f"{block}.attn1.to_q.{kind}": q,
                f"{block}.attn1.to_k.{kind}": k,
                f"{block}.attn1.to_v.{kind}": v,
                f"{block}.attn1.to_out.0.{kind}": own[f"blocks.{i}.out.{kind}"],
                f"{block}.ff.net.0.proj.{kind}": own[f"blocks.{i}.mlp.0.{kind}"],
                f"{block}.ff.net.2.{kind}": own[f"blocks.{i}.mlp.2.{kind}"],
            }
    for kind in ("weight", "bias"):
        weights[f"proj_out_1.{kind}"] = shift_first(own[f"modulation.{kind}"])
        pixels_last = own[f"out.{kind}"].reshape(4, 4, -1).transpose(0, 1).reshape(own[f"out.{kind}"].shape)
        weights[f"proj_out_2.{kind}"] = pixels_last
    return weights


def test_equality_with_diffusers() -> None:
    """Compare with DiTTransformer2DModel, whose blocks embed the condition separately, with the same weights.

    It normalises with 1e-5 in the blocks by default, and uses a different order of shift, scale and patch values.
    """
    diffusers = pytest.importorskip("diffusers")
    ours = small_dit((2, 8, 8), 3, width=16, out_channels=4).float()
    theirs = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=2,
        out_channels=4,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=3,
        norm_eps=1e-6,
    ).eval()
    theirs.load_state_dict(diffusers_weights(ours.state_dict()))
    theirs.pos_embed.pos_embed.copy_(ours.positions[None])

    x, c_noise, labels = batch(3, (2, 8, 8))
    x, c_noise = x.float(), c_noise.float()
    expected = theirs(x, timestep=c_noise, class_labels=labels).sample
    torch.testing.assert_close(ours(x, c_noise, labels), expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 0.1


def test_dropout_acts_in_training_only() -> None:
    network = small_dit(dropout=0.5)
    x, c_noise, labels = batch(2, (2, 8, 8))
    assert not torch.equal(network(x, c_noise, labels), network(x, c_noise, labels))
    network.eval()
    assert torch.equal(network(x, c_noise, labels), network(x, c_noise, labels))


@pytest.mark.parametrize(
    "image_shape, settings, message",
    [
        ((1, 9, 8), {}, "images of 9x8 cannot be cut into patches of 2x2"),
        ((1, 8, 28), {"patch_size": 8}, "images of 8x28 cannot be cut into patches of 8x8"),
        ((1, 8, 8), {"width": 20, "num_heads": 3}, "width: 20 is not a multiple of 4 and of the 3 heads"),
        ((1, 8, 8), {"width": 18, "num_heads": 3}, "width: 18 is not a multiple of 4 and of the 3 heads"),
        ((1, 8, 8), {"depth": 0}, "must all be positive"),
    ],
)
def test_unsuitable_settings(image_shape: tuple[int, int, int], settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        DiT(image_shape, **settings)
