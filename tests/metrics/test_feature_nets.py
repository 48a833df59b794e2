import hashlib
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from lit_gen.core.errors import UserError
from lit_gen.data import Digits, FashionMNIST, ImageDataModule
from lit_gen.metrics import DigitsFeatures, FashionFeatures, Inception, Moments, ScoredBatch, frechet_distance
from lit_gen.metrics.train_feature_net import accuracy
from tests.metrics.real import inception as inception_score

FILE_NAME = "weights-inception-2015-12-05-6726825d.pth"


@pytest.fixture(scope="module")
def data() -> ImageDataModule:
    return ImageDataModule(source=Digits())


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory) -> Path:
    """Random weights of Inception's architecture."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    path = tmp_path_factory.mktemp("inception") / FILE_NAME
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "load", lambda *_, **__: {})
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        network = FeatureExtractorInceptionV3("random", ["2048"], feature_extractor_weights_path="none")
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.normal_(0, (2 / module.weight[0].numel()) ** 0.5, generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            module.bias.normal_(0, 0.1, generator=generator)
            module.get_buffer("running_mean").normal_(0, 0.1, generator=generator)
            module.get_buffer("running_var").uniform_(0.5, 2, generator=generator)
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def inception(inception_file) -> Inception:
    return Inception(str(inception_file))


@pytest.fixture(scope="module")
def fashion() -> ImageDataModule:
    data = ImageDataModule(source=FashionMNIST(download=False))
    try:
        data.images("test")
    except UserError as error:
        pytest.skip(f"Fashion-MNIST is not on this machine: {error}")
    return data


@pytest.mark.parametrize(
    ("net", "source", "least"),
    [
        (DigitsFeatures, "data", 0.98),
        pytest.param(FashionFeatures, "fashion", 0.9, marks=[pytest.mark.slow, pytest.mark.exhaustive]),
    ],
)
def test_weights_are_small_and_their_recorded_accuracy_is_true(net, source, least, request):
    assert net.file.stat().st_size <= 1e6
    with safe_open(net.file, framework="pt") as file:
        facts = json.loads(file.metadata()["training"])
    assert facts["test_accuracy"] >= least and facts["train_accuracy"] >= least
    data = request.getfixturevalue(source)
    assert facts["train_fingerprint"] == data.fingerprint("train")
    assert facts["test_fingerprint"] == data.fingerprint("test")
    assert facts["test_accuracy"] == pytest.approx(accuracy(net().network, data, "test"), abs=2e-4)
    if source == "data":
        assert facts["train_accuracy"] == accuracy(net().network, data, "train")


def test_fashion_features_see_the_middle_of_padded_images():
    net = FashionFeatures()
    images = torch.randint(256, (9, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    features, logits = net(images)
    assert features.shape == (9, net.width) and logits.shape == (9, net.num_classes)
    torch.testing.assert_close(net.network.head(features), logits)
    padded = nn.functional.pad(images, (2, 2, 2, 2), value=77)
    torch.testing.assert_close(net(padded), (features, logits), rtol=0, atol=0)
    for shape in ((2, 1, 8, 8), (2, 3, 28, 28), (2, 1, 28, 32), (2, 1, 64, 64)):
        with pytest.raises(UserError, match=f"not {'x'.join(map(str, shape[1:]))}; .*Inception"):
            net(torch.zeros(shape, dtype=torch.uint8))


@pytest.mark.slow
def test_fashion_distance_orders_images_by_their_quality(fashion):
    net = FashionFeatures()
    test = torch.tensor(fashion.images("test"))
    halves = [Moments.of(net(half)[0]) for half in (test[:2000], test[2000:4000])]
    assert (halves[0].cov.diag() > 1e-5).all()  # no dead feature
    noise = torch.randn(2000, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    noisy = [(test[:2000] + strength * noise).clamp(0, 255).to(torch.uint8) for strength in (15, 45)]
    distances = [frechet_distance(halves[0], halves[1])] + [
        frechet_distance(Moments.of(net(images)[0]), halves[1]) for images in noisy
    ]
    assert 0 < distances[0] < distances[1] / 2 < distances[2] / 8


def test_digits_logits_follow_from_the_features(data):
    net = DigitsFeatures()
    features, logits = net(torch.tensor(data.images("test")[:50]))
    assert features.shape == (50, net.width) and logits.shape == (50, net.num_classes)
    torch.testing.assert_close(net.network.head(features), logits)
    assert (Moments.of(net(torch.tensor(data.images("train")))[0]).cov.diag() > 1e-3).all()  # no dead feature


def test_digits_distance_orders_images_by_their_quality(data):
    net = DigitsFeatures()
    train, test = (torch.tensor(data.images(split)) for split in ("train", "test"))
    reference = Moments.of(net(train)[0])
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(train.shape, generator=generator)
    noisy = [(train + strength * noise).clamp(0, 255).to(torch.uint8) for strength in (10, 30, 90)]
    distances = [frechet_distance(Moments.of(net(x)[0]), reference) for x in (train, *noisy)]
    assert distances[0] == pytest.approx(0, abs=1e-6)
    assert distances[1] > 0 and distances[2] > 4 * distances[1] and distances[3] > 4 * distances[2]
    assert 0 < frechet_distance(Moments.of(net(test)[0]), reference) < distances[2]


def test_stays_in_evaluation_mode_and_takes_no_gradients():
    class Parent(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = DigitsFeatures()

    net = Parent().train().net
    assert not any(module.training for module in net.modules())
    assert not any(parameter.requires_grad for parameter in net.parameters())


def test_autocast_does_not_touch_features():
    net = DigitsFeatures()
    images = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    exact = net(images)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert net(images)[0].equal(exact)


def test_digits_takes_only_digits():
    with pytest.raises(UserError, match="evaluation.feature_net: .* takes 1x8x8 images, not 3x32x32; use .* Inception"):
        DigitsFeatures()(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(TypeError, match="quantise"):
        DigitsFeatures()(torch.zeros(2, 1, 8, 8))


def test_version_is_the_hash_of_the_weights(tmp_path):
    net = DigitsFeatures()
    digest = hashlib.sha256(DigitsFeatures.file.read_bytes()).hexdigest()
    assert digest.startswith(net.version) and len(net.version) == 16
    path = tmp_path / "other.safetensors"
    state = {key: value + 1 for key, value in net.network.state_dict().items()}
    save_file(state, path)
    other = DigitsFeatures(str(path))
    assert other.version != net.version
    assert other.network.head.bias.equal(state["head.bias"])
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="other.safetensors: does not hold the weights"):
        DigitsFeatures(str(path))


def test_names_of_distances(inception):
    assert DigitsFeatures().distance_name == "fd_digits"
    assert inception.distance_name == "fid"


def test_inception_computes_what_torch_fidelity_computes(inception, inception_file):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    theirs = FeatureExtractorInceptionV3(
        "theirs", ["logits_unbiased", "2048"], feature_extractor_weights_path=str(inception_file)
    )(images)
    features, logits = inception(images)
    assert features.equal(theirs[1]) and logits.equal(theirs[0])
    assert features.shape == (2, inception.width) and logits.shape == (2, inception.num_classes)
    assert features.std() > 0.01
    assert hashlib.sha256(inception_file.read_bytes()).hexdigest().startswith(inception.version)


def test_inception_repeats_grey_to_three_channels(inception):
    grey = torch.randint(0, 256, (1, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert inception(grey)[0].equal(inception(grey.repeat(1, 3, 1, 1))[0])
    with pytest.raises(UserError, match=r"1 or 3.*\(1, 4, 8, 8\)"):
        inception(grey.repeat(1, 4, 1, 1))


def test_inception_is_found_in_the_hub_cache(inception, inception_file, tmp_path, monkeypatch):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / FILE_NAME).symlink_to(inception_file)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert Inception().version == inception.version


def test_inception_offline_says_what_to_do(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError("Name or service not known")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("urllib.request.OpenerDirector.open", refuse)
    with pytest.raises(UserError) as error:
        Inception()
    message = str(error.value)
    assert "\n" not in message
    for part in ("Name or service not known", "https://", FILE_NAME, "--evaluation.feature_net.weights PATH", "Digits"):
        assert part in message
    with pytest.raises(UserError, match="feature_net.weights: /nowhere.pth does not exist; download https://"):
        Inception("/nowhere.pth")


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty", "other network", "not tensors"])
def test_inception_with_a_broken_file_says_so(damage, inception_file, tmp_path):
    path = tmp_path / "broken.pth"
    if damage == "truncated":
        path.write_bytes(inception_file.read_bytes()[:1_000_000])
    elif damage == "garbage":
        path.write_bytes(b"<html>404</html>")
    elif damage == "empty":
        path.touch()
    elif damage == "other network":
        torch.save(nn.Linear(2, 2).state_dict(), path)
    else:
        torch.save({"Conv2d_1a_3x3.conv.weight": Path("/")}, path)
    with pytest.raises(UserError, match="broken.pth: truncated, or does not hold .* again, then name it with") as error:
        Inception(str(path))
    assert "\n" not in str(error.value)
    assert "weights_only" not in str(error.value), "torch's advice to run what is in the file"


def test_only_inception_needs_torch_fidelity(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    DigitsFeatures()
    with pytest.raises(UserError, match="needs torch-fidelity .* install both, or use .* DigitsFeatures"):
        Inception()


@pytest.fixture
def half_noisy(data) -> tuple[torch.Tensor, torch.Tensor]:
    real = torch.tensor(data.images("train")[:300])
    noise = torch.randn(real.shape, generator=torch.Generator().manual_seed(0))
    return real, (torch.tensor(data.images("train")[300:600]) + 40 * noise).clamp(0, 255).to(torch.uint8)


def test_distance_equals_torchmetrics_on_the_same_images(half_noisy):
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Features(nn.Module):
        num_features = 64

        def __init__(self):
            super().__init__()
            self.net = DigitsFeatures()

        def forward(self, images):
            return self.net(images)[0].double()

    real, fake = half_noisy
    metric = FrechetInceptionDistance(Features())
    metric.update(real, real=True)
    metric.update(fake, real=False)
    net = DigitsFeatures()
    ours = frechet_distance(Moments.of(net(fake)[0]), Moments.of(net(real)[0]))
    assert metric.compute().item() == pytest.approx(ours, rel=1e-9)


def test_distance_and_score_equal_torch_fidelity_on_the_same_images(half_noisy):
    from torch_fidelity import calculate_metrics, register_feature_extractor
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

    class Extractor(FeatureExtractorBase):
        def __init__(self, name, features_list, **kwargs):
            super().__init__(name, features_list)
            self.net = DigitsFeatures()

        @staticmethod
        def get_provided_features_list():
            return "features", "logits"

        @staticmethod
        def get_default_feature_layer_for_metric(metric):
            return "logits" if metric == "isc" else "features"

        @staticmethod
        def can_be_compiled():
            return False

        @staticmethod
        def get_dummy_input_for_compile():
            return torch.zeros(1, 1, 8, 8, dtype=torch.uint8)

        def forward(self, images):
            features, logits = self.net(images[:, :1])
            outputs = {"features": features, "logits": logits}
            return tuple(outputs[name] for name in self.features_list)

    class Images(torch.utils.data.Dataset):
        def __init__(self, images):
            self.images = images.repeat(1, 3, 1, 1)

        def __len__(self):
            return len(self.images)

        def __getitem__(self, index):
            return self.images[index]

    register_feature_extractor("lit-gen-digits", Extractor)
    real, fake = half_noisy
    theirs = calculate_metrics(
        input1=Images(fake),
        input2=Images(real),
        feature_extractor="lit-gen-digits",
        cuda=False,
        fid=True,
        isc=True,
        isc_splits=3,
        samples_shuffle=False,
        cache=False,
        verbose=False,
        save_cpu_ram=True,
    )
    net = DigitsFeatures()
    features, logits = net(fake)
    ours = frechet_distance(Moments.of(features), Moments.of(net(real)[0]))
    assert theirs["frechet_inception_distance"] == pytest.approx(ours, rel=1e-5)  # they average in float32
    score = inception_score(10, len(fake), 3)
    score.update(ScoredBatch(torch.arange(len(fake)), logits=logits))
    mean, std = score.compute().values()
    assert theirs["inception_score_mean"] == pytest.approx(mean.value, rel=1e-6)
    assert theirs["inception_score_std"] == pytest.approx(std.value, rel=1e-5)
