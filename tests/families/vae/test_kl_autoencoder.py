"""KL autoencoder: its loss against distributions of torch, its latents, and a second stage of them."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from lit_gen.cli import commands
from lit_gen.cli.main import main
from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.data.batches import Batch
from lit_gen.experiment.loading import load_model, open_first_stage
from lit_gen.experiment.parser import ExperimentCLI
from lit_gen.families.vae import GaussianConvAutoencoder, KLAutoencoder
from lit_gen.families.vae.kl_autoencoder import GaussianAutoencoder
from lit_gen.families.vq.networks.autoencoder import AutoencoderNetwork
from tests.conftest import arguments
from tests.families.random_networks import randomise

SHAPE = (3, 6, 4)


def small(weight: float = 1e-6) -> KLAutoencoder:
    def network(shape: tuple[int, int, int], dim: int) -> GaussianConvAutoencoder:
        return GaussianConvAutoencoder(shape, dim, channels=8, channel_mult=(1, 1))

    return randomise(KLAutoencoder(SHAPE, latent_dim=2, kl_weight=weight, network=network)).double()


@pytest.mark.parametrize("weight", [0.0, 1e-3, 2.5])
def test_the_loss_is_that_of_normal_distributions(weight: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model, logged = small(weight), {}
    monkeypatch.setattr(model, "log_training", lambda **values: logged.update(values))
    images, eps = torch.rand(5, *SHAPE).double() * 2 - 1, torch.randn(5, 2, 3, 2)
    monkeypatch.setattr(torch, "randn", lambda *_, **__: eps)
    loss = model.training_step(Batch(images, None, torch.arange(5)), 0)
    monkeypatch.undo()
    network = model.autoencoder.network
    moments = network.encoder(images)
    q = Normal(moments[:, :2], torch.exp(0.5 * moments[:, 2:]))
    assert q.stddev.std() > 0.01 and (q.mean.std() > 0.01), "neither is constant"
    kl = kl_divergence(q, Normal(0.0, 1.0)).sum() / 5
    error = (network.decoder(q.mean + q.stddev * eps.double()) - images).square().sum() / images.numel()
    assert float(loss.detach()) == pytest.approx(float((error + weight * kl / 72).detach()), rel=1e-12)
    assert float(logged["kl"]) == pytest.approx(float(kl.detach()), rel=1e-12)
    assert float(logged["psnr"]) == pytest.approx(10 * math.log10(4 / float(error.detach())), rel=1e-9)
    gradient = torch.autograd.grad(loss, network.encoder[-1].weight, retain_graph=True)[0]
    expected = torch.autograd.grad(error + weight * kl / 72, network.encoder[-1].weight)[0]
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)


def test_latents_are_means_and_their_images_the_reconstructions() -> None:
    model = small()
    images = torch.rand(4, *SHAPE).double() * 2 - 1
    assert model.latent_shape == (2, 3, 2) and model.num_codes == 0
    latents = model.latents(images)
    assert torch.equal(latents, model.autoencoder.network.encoder(images)[:, :2])
    assert torch.equal(model.reconstruct(images), model.autoencoder.network.decoder(latents))
    drawn = model.float().sample(Noise(3, range(4)))
    assert torch.equal(drawn, model.decode_latents(Noise(3, range(4)).normal((2, 3, 2))))


def test_a_log_variance_stays_finite() -> None:
    class Far(AutoencoderNetwork):
        def __init__(self) -> None:
            super().__init__()

        def encoder(self, images: torch.Tensor) -> torch.Tensor:
            return torch.cat([images, 1e4 * images], 1)

        def decoder(self, latents: torch.Tensor) -> torch.Tensor:
            return latents

    images = torch.tensor([1.0, -1.0]).view(2, 1, 1, 1)
    mean, log_var = GaussianAutoencoder(Far()).encode(images)
    assert mean.flatten().tolist() == [1, -1] and log_var.flatten().tolist() == [20, -20]


@pytest.mark.parametrize(("settings", "key"), [({"latent_dim": 0}, "latent_dim"), ({"kl_weight": -1.0}, "kl_weight")])
def test_a_wrong_setting_is_named(settings: dict, key: str) -> None:
    with pytest.raises(UserError, match=f"model.{key}: "):
        KLAutoencoder(SHAPE, **settings)


@pytest.mark.slow
def test_a_second_stage_learns_its_latents(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    words = arguments("KLAutoencoder", tmp_path, 64 * 60, "--model.optimizer=Adam", "--model.optimizer.lr=5e-3")
    first = commands.fit(words)
    objects = ExperimentCLI(["--config", str(first.config)]).objects()
    model = load_model(first, objects.model, "ema")
    assert isinstance(model, KLAutoencoder)
    images = objects.data.examples("test", 100).images
    error = (model.reconstruct(images) - images).square().mean()
    assert error < 0.3 * images.var(), "it has learned"
    stage = [f"--first_stage.run={first.directory}"]
    second = commands.fit(arguments("LatentEDM", tmp_path, 128, *stage))
    copy = open_first_stage(second.directory / "first_stage")
    train = objects.data.examples("train", 50).images
    latents = (model.latents(train) - copy.mean) / copy.std * 0.5
    torch.testing.assert_close(copy.decode(latents), model.reconstruct(train), rtol=1e-4, atol=1e-4)
    assert main(["evaluate", str(second.directory), "--sampler=Heun", "--sampler.steps=2"]) == 0
    assert "KLAutoencoder + EDM" in capsys.readouterr().out
    assert main(["fit", *arguments("TokenPrior", tmp_path / "none", 64, *stage)]) == 2
    assert "TokenPrior learns the codes of a first stage, and there are none" in capsys.readouterr().err
