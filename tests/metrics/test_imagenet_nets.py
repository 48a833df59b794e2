"""EfficientNet-Lite0, DINOv2 and CLIP against other implementations, the default net, and nets of the user."""

import importlib.util
import math
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lit_gen.core.errors import UserError
from lit_gen.metrics import (
    CLIP,
    DigitsFeatures,
    DINOv2,
    EfficientNetLite0,
    FeatureNet,
    Moments,
    default_feature_net,
    frechet_distance,
)
from lit_gen.metrics.feature_nets import NoWeightsError, default, dinov2
from lit_gen.metrics.feature_nets.base import REQUIRED
from lit_gen.metrics.feature_nets.dinov2 import Block, DINOv2Network
from lit_gen.metrics.feature_nets.efficientnet import EfficientNetLite0Network, PaddedConv2d, find_weights

needs_weights = pytest.mark.skipif(find_weights() is None, reason="needs the extra imagenet")


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def fill(tensors: dict[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
    """Return random weights of the same shapes, such that activations keep their size; variances stay positive."""
    generator = torch.Generator().manual_seed(seed)
    filled = {}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            filled[name] = tensor
        elif name.endswith("running_var") or (tensor.dim() == 1 and name.endswith("weight")):
            filled[name] = torch.empty_like(tensor).uniform_(0.5, 1.5, generator=generator)
        else:
            fan = max(tensor[0].numel(), 1) if tensor.dim() > 1 else 25
            filled[name] = torch.empty_like(tensor).normal_(0, fan**-0.5, generator=generator)
    return filled


@needs_weights
def test_efficientnet_computes_what_its_companion_package_computes() -> None:
    companion = pytest.importorskip("efficientnet_lite_pytorch")
    net = EfficientNetLite0()
    theirs = companion.EfficientNet.from_name("efficientnet-lite0")
    weights = find_weights()
    assert weights is not None
    theirs.load_state_dict(torch.load(weights, weights_only=True))
    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features, logits = net.network(x)
        torch.testing.assert_close(logits, theirs.eval()(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(features, theirs.extract_features(x).mean((2, 3)), rtol=1e-5, atol=1e-5)
    assert logits.std() > 0.1


@needs_weights
def test_efficientnet_knows_what_real_pictures_show() -> None:
    from sklearn.datasets import load_sample_image
    from torchvision.models._meta import _IMAGENET_CATEGORIES

    net = EfficientNetLite0()
    for name, classes in (
        ("china.jpg", {"bell cote", "palace", "boathouse", "lakeside", "dome"}),
        ("flower.jpg", {"daisy", "bee"}),  # a dahlia, which ImageNet lacks
    ):
        picture = torch.from_numpy(load_sample_image(name).copy()).permute(2, 0, 1)[None]
        best = net(picture)[1][0].topk(3).indices
        assert len({_IMAGENET_CATEGORIES[index] for index in best} & classes) >= 2, name


@needs_weights
def test_efficientnet_is_given_images_as_in_its_training() -> None:
    """The statistics of its first normalisation are those of pictures after (u - 127) / 128, and not of others."""
    from sklearn.datasets import load_sample_images

    net = EfficientNetLite0()
    pictures = [torch.from_numpy(each.copy()).permute(2, 0, 1)[None].float() for each in load_sample_images().images]
    x = torch.cat([nn.functional.interpolate(each, (224, 224), mode="bilinear", antialias=True) for each in pictures])
    mean, std = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True)
    of_imagenet = torch.tensor([123.7, 116.3, 103.5]).view(3, 1, 1), torch.tensor([58.4, 57.1, 57.4]).view(3, 1, 1)
    x = (x - mean) / std * of_imagenet[1] + of_imagenet[0]  # the colours of two pictures are not those of all

    def likeness(normalised: Tensor) -> float:
        expected = net.network.bn0.get_buffer("running_mean")
        means = torch.stack([net.network.conv_stem(normalised).mean((0, 2, 3)), expected])
        return float(torch.corrcoef(means)[0, 1])

    assert likeness((x - 127) / 128) > 0.9
    assert likeness((x - of_imagenet[0]) / of_imagenet[1]) < 0.6 and likeness(x / 255) < 0.6
    seen: list[Tensor] = []
    net.network.conv_stem.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    grey = torch.full((1, 1, 9, 7), 255, dtype=torch.uint8)
    net(grey)
    assert seen[0].shape == (1, 3, 224, 224) and seen[0].unique().tolist() == [1.0]


@needs_weights
@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore:the covariance of 1280 features")
def test_efficientnet_distance_orders_pictures_by_their_quality() -> None:
    from sklearn.datasets import load_sample_image

    net, generator = EfficientNetLite0(), torch.Generator().manual_seed(0)
    picture = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)
    corners = torch.stack([torch.randint(0, size - 64, (80,), generator=generator) for size in (427, 640)], 1).tolist()
    crops = torch.stack([picture[:, row : row + 64, column : column + 64] for row, column in corners])
    noise = torch.randn(40, 3, 64, 64, generator=generator)
    noisy = [(crops[:40] + strength * noise).clamp(0, 255).to(torch.uint8) for strength in (0, 15, 45)]
    moments = [Moments.of(net(each)[0]) for each in (crops[40:], *noisy)]
    distances = [frechet_distance(moments[0], each) for each in moments[1:]]
    assert 0 < 1.2 * distances[0] < distances[1] and 1.2 * distances[1] < distances[2]


def test_padding_is_that_of_tensorflow() -> None:
    for size, kernel, stride in ((8, 3, 2), (9, 3, 2), (7, 5, 2), (8, 5, 1), (6, 1, 1)):
        conv = PaddedConv2d(1, 1, kernel, stride)
        x = torch.randn(1, 1, size, size, generator=torch.Generator().manual_seed(size))
        out = -(-size // stride)
        before = max((out - 1) * stride + kernel - size, 0) // 2
        expected = torch.zeros(out, out)
        for i in range(out):
            for j in range(out):
                for a in range(kernel):
                    for b in range(kernel):
                        row, column = i * stride + a - before, j * stride + b - before
                        if 0 <= row < size and 0 <= column < size:
                            expected[i, j] += conv.weight[0, 0, a, b].detach() * x[0, 0, row, column]
        torch.testing.assert_close(conv(x)[0, 0], expected, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def efficientnet_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights under the names of the published file."""
    path = tmp_path_factory.mktemp("efficientnet") / "weights.pth"
    published = r"(^|\.)(?=(conv_stem|conv_head|expand|depthwise|project|bn|blocks|fc))"
    tensors = fill(EfficientNetLite0Network().state_dict())
    torch.save({re.sub(published, r"\1_", name): value for name, value in tensors.items()}, path)
    return path


def test_efficientnet_from_a_file(efficientnet_file: Path, tmp_path: Path) -> None:
    net = EfficientNetLite0(str(efficientnet_file))
    assert net.distance_name == "fd_efficientnet_lite0" and net.resize == "bilinear-224" and len(net.version) == 16
    colour = images(2, 3, 32, 40)
    features, logits = net(colour)
    assert features.shape == (2, 1280) and logits.shape == (2, 1000) and features.std() > 1e-3
    torch.testing.assert_close(net.network.fc(features), logits)
    resized = nn.functional.interpolate(colour.double(), (224, 224), mode="bilinear", antialias=True)
    exact = net.double().network((resized - 127) / 128)[0].float()
    torch.testing.assert_close(features, exact, rtol=1e-3, atol=1e-3)
    with pytest.raises(UserError, match=r"EfficientNetLite0 takes images \(N, 1 or 3, H, W\), not \(1, 4, 8, 8\)"):
        net(images(1, 4, 8, 8))
    for content in ({"_fc.weight": torch.zeros(2)}, {"_fc.weight": Path("/")}, [torch.zeros(2)]):
        torch.save(content, tmp_path / "other.pth")
        with pytest.raises(UserError, match=r"other.pth: does not hold the weights of EfficientNet-Lite0 .*; install"):
            EfficientNetLite0(str(tmp_path / "other.pth"))


def test_efficientnet_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if "lite0" in name else found(name))
    with pytest.raises(UserError, match=r"feature_net: EfficientNetLite0 needs .*; pip install 'lit_gen\[imagenet\]'$"):
        EfficientNetLite0()


@pytest.fixture(scope="module")
def dinov2_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of ViT-S/14, with the tensor that only training uses."""
    path = tmp_path_factory.mktemp("dinov2") / "dinov2_vits14_pretrain.pth"
    torch.save(fill(DINOv2Network(384, 12, 37).state_dict()) | {"mask_token": torch.zeros(1, 384)}, path)
    return path


def test_dinov2_is_torch_fidelitys_extractor_bit_for_bit(dinov2_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch_fidelity.feature_extractor_dinov2 import FeatureExtractorDinoV2

    net = DINOv2(str(dinov2_file))
    assert (net.name, net.width, net.num_classes, net.resize) == ("dinov2_vits14", 384, 0, "tf1-bilinear-224")
    monkeypatch.setattr(torch.hub, "load", lambda repository, model: net.network)
    theirs = FeatureExtractorDinoV2("dinov2-vit-s-14", ["dinov2"])
    colour = images(2, 3, 20, 31)
    features, logits = net(colour)
    assert features.equal(theirs(colour)[0]) and logits.shape == (2, 0)
    assert (features[0] - features[1]).abs().mean() > 0.01
    assert net(colour[:, :1])[0].equal(theirs(colour[:, :1].repeat(1, 3, 1, 1))[0])


def cubic(distance: float) -> float:
    """Return the kernel of bicubic interpolation with a = -0.75."""
    t = abs(distance)
    if t <= 1:
        return 1.25 * t**3 - 2.25 * t**2 + 1
    return -0.75 * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0.0


def test_dinov2_positions_are_sampled_as_published() -> None:
    network = DINOv2Network(384, 1, 37)
    network.load_state_dict(fill(network.state_dict(), seed=3))
    weights = torch.zeros(16, 37, dtype=torch.float64)
    for i in range(16):
        place = (i + 0.5) * 37 / 16.1 - 0.5
        for k in range(math.floor(place) - 1, math.floor(place) + 3):
            weights[i, min(max(k, 0), 36)] += cubic(place - k)
    grid = network.pos_embed.detach()[0, 1:].view(37, 37, 384).double()
    expected = torch.einsum("ia,jb,abc->ijc", weights, weights, grid).flatten(0, 1)
    found = network.positions(16).detach()
    torch.testing.assert_close(found[0, 1:].double(), expected, rtol=1e-4, atol=1e-5)
    assert found[0, 0].equal(network.pos_embed.detach()[0, 0])
    assert network.positions(37) is network.pos_embed


def test_dinov2_blocks_are_torchs_transformer_with_scaled_branches() -> None:
    network = DINOv2Network(384, 2, 4)
    network.load_state_dict(fill(network.state_dict(), seed=4))
    x = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    tokens = torch.cat([network.cls_token.expand(2, -1, -1), network.patch_embed(x)], 1) + network.pos_embed
    for block in network.blocks:
        assert isinstance(block, Block)
        layer = nn.TransformerEncoderLayer(384, 6, 1536, 0.0, "gelu", 1e-6, batch_first=True, norm_first=True).eval()
        for theirs, ours, scale in (
            (layer.self_attn.out_proj, block.attn.proj, block.ls1.gamma),
            (layer.linear1, block.mlp.fc1, torch.ones(1536)),
            (layer.linear2, block.mlp.fc2, block.ls2.gamma),
        ):
            theirs.load_state_dict({"weight": scale[:, None] * ours.weight, "bias": scale * ours.bias})
        layer.self_attn.load_state_dict(
            layer.self_attn.state_dict()
            | {"in_proj_weight": block.attn.qkv.weight, "in_proj_bias": block.attn.qkv.bias}
        )
        layer.norm1.load_state_dict(block.norm1.state_dict())
        layer.norm2.load_state_dict(block.norm2.state_dict())
        tokens = layer(tokens)
    expected = nn.functional.layer_norm(tokens[:, 0], (384,), network.norm.weight, network.norm.bias, 1e-6)
    torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("net", [DINOv2, CLIP])
def test_transformers_need_a_file_of_tensors(net: type[FeatureNet], tmp_path: Path) -> None:
    for given in (None, "/nowhere.pth"):
        with pytest.raises(UserError, match=rf"^evaluation.feature_net.weights: {net.__name__} needs .*name the file$"):
            net(given)  # type: ignore[call-arg]
    for content in ({"cls_token": Path("/")}, {"cls_token": torch.zeros(1, 1, 7)}, {}, [torch.zeros(2)], 3):
        torch.save(content, tmp_path / "other.pth")
        with pytest.raises(UserError, match="other.pth: does not hold the ") as error:
            net(str(tmp_path / "other.pth"))  # type: ignore[call-arg]
        assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def clip_tensors() -> dict[str, Tensor]:
    """Random tensors of OpenAI's ViT-B/32 in float16, with some of the encoder of texts."""
    from torch_fidelity.feature_extractor_clip import VisionTransformer

    network = VisionTransformer(224, 32, 768, 12, 12, 512)
    tensors = {f"visual.{name}": value.half() for name, value in fill(network.state_dict()).items()}
    return tensors | {
        "text_projection": torch.zeros(512, 512),
        "logit_scale": torch.zeros(()),
        "transformer.resblocks.0.attn.in_proj_weight": torch.zeros(9, 3),
        "input_resolution": torch.tensor(224),
    }


@pytest.mark.slow
def test_clip_is_torch_fidelitys_extractor_bit_for_bit(
    clip_tensors: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch_fidelity.feature_extractor_clip import FeatureExtractorCLIP

    torch.save(clip_tensors, tmp_path / "clip.pth")
    save_file(clip_tensors, tmp_path / "clip.safetensors")
    net = CLIP(str(tmp_path / "clip.pth"))
    assert (net.name, net.width, net.num_classes, net.resize) == ("clip_vitb32", 512, 0, "tf1-bilinear-224")
    program = SimpleNamespace(state_dict=lambda: dict(clip_tensors))
    monkeypatch.setattr(torch.jit, "load", lambda path, map_location: program)
    theirs = FeatureExtractorCLIP("clip-vit-b-32", ["clip"], feature_extractor_weights_path="given")
    colour = images(2, 3, 20, 31)
    features, logits = net(colour)
    assert features.equal(theirs(colour)[0]) and logits.shape == (2, 0)
    assert (features[0] - features[1]).abs().mean() > 0.01
    other = CLIP(str(tmp_path / "clip.safetensors"))
    assert other(colour)[0].equal(features) and other.version != net.version


def test_only_the_resize_of_tensorflow_needs_torch_fidelity(dinov2_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity.interpolate_compat_tensorflow", None)
    with pytest.raises(UserError, match="needs torch-fidelity .* EfficientNetLite0"):
        dinov2.resize_and_normalise(images(1, 3, 8, 8), 224, dinov2.MEAN, dinov2.STD)


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No weights of Inception, in the cache or on the network."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError("Name or service not known")

    default._for_colour.cache_clear()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("urllib.request.OpenerDirector.open", refuse)


@pytest.mark.usefixtures("offline")
def test_the_default_of_colour_images_without_inception(
    efficientnet_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(default, "find_weights", lambda: efficientnet_file)
    monkeypatch.setattr("lit_gen.metrics.feature_nets.efficientnet.find_weights", lambda: efficientnet_file)
    assert isinstance(default_feature_net((3, 32, 32)), EfficientNetLite0)
    assert isinstance(default_feature_net((3, 8, 8)), EfficientNetLite0)
    (line,) = capsys.readouterr().out.splitlines()
    assert "Name or service not known" in line and "the distance is fd_efficientnet_lite0 and not FID" in line
    with pytest.raises(NoWeightsError, match=r"cannot download .* EfficientNetLite0 .*lit_gen\[imagenet\]"):
        default_feature_net((1, 32, 32))
    monkeypatch.setattr(default, "find_weights", lambda: None)
    default._for_colour.cache_clear()
    with pytest.raises(NoWeightsError, match=r"cannot download .* --evaluation.feature_net EfficientNetLite0 for"):
        default_feature_net((3, 32, 32))
    default._for_colour.cache_clear()


def test_the_default_is_inception_where_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    default._for_colour.cache_clear()
    monkeypatch.setattr(default, "find_inception", lambda: Path())
    monkeypatch.setattr(default, "Inception", DigitsFeatures)
    for channels in (1, 3):
        assert isinstance(default_feature_net((channels, 8, 8)), DigitsFeatures)
    assert capsys.readouterr().out == ""
    default._for_colour.cache_clear()


class Means(FeatureNet):
    """The means of the rows of an image: a user's own net, with no weights."""

    name = "row_means"
    version = "1"
    width = 8
    num_classes = 0
    resize = "none"

    def extract(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return images.float().mean((1, 3)), images.new_zeros(len(images), 0, dtype=torch.float32)


def test_a_net_of_the_user_has_its_own_name() -> None:
    net, grey = Means(), images(5, 1, 8, 4)
    torch.testing.assert_close(net(grey)[0], grey[:, 0].float().mean(2))
    assert net.distance_name == "fd_row_means" and not net.train().training


@pytest.mark.parametrize("attribute", REQUIRED)
def test_a_net_that_lacks_an_attribute_is_told_which(attribute: str) -> None:
    members: dict[str, Any] = {key: getattr(Means, key) for key in REQUIRED if key != attribute}
    net = type("Mine", (FeatureNet,), members | {"extract": Means.extract})()
    with pytest.raises(UserError, match=f"^evaluation.feature_net: Mine has no attribute {attribute}; set it to "):
        getattr(net, attribute)
    with pytest.raises(AttributeError, match="other"):
        net.other  # noqa: B018


def test_a_net_of_other_shapes_than_it_states_is_refused() -> None:
    for attribute, what in (("width", "features"), ("num_classes", "logits")):
        net = type("Mine", (Means,), {attribute: 5})()
        expected = rf"Mine computes {what} \(3, \d\), not \(3, 5\); correct its attribute {attribute}"
        with pytest.raises(UserError, match=expected):
            net(images(3, 1, 8, 8))
