"""What autoregressive models share: an exact likelihood in one evaluation, and images drawn pixel by pixel."""

from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from lit_gen.data import Batch, ImageDataModule
from lit_gen.dequantisation import bits_per_dim
from lit_gen.errors import UserError
from lit_gen.methods import LikelihoodMethod, Sampler, Temperature
from lit_gen.models.base import GenerativeModel, OptimizerFactory
from lit_gen.noise import Noise
from lit_gen.pixel_likelihoods import LogisticMixture, PixelLikelihood

NetworkFactory = Callable[[tuple[int, int, int], int, int, bool], nn.Module]
LikelihoodFactory = Callable[[], PixelLikelihood]


class CausalNetwork(Protocol):
    """A network that gives the parameters of every pixel from those before it, in raster order.

    Attributes:
        num_groups: How many steps a pixel takes: one, or one for each of its channels.
    """

    num_groups: int

    def __call__(self, images: Tensor, labels: Tensor | None) -> Tensor:
        """The parameters (N, P, H, W) of all pixels of images (N, C, H, W)."""

    def start(self, num: int, labels: Tensor | None) -> Any:
        """What is known of as many images before their first pixel."""

    def step(self, state: Any, values: Tensor | None) -> Tensor:
        """The parameters (N, P / num_groups) that come next, and changes the state.

        Args:
            state: What `start` gave.
            values: (N, C / num_groups), drawn of the parameters of the step before; None at the first.
        """


class CausalDistribution(nn.Module):
    """p(image | label) = prod p(pixel | pixels before, label): a network and what its parameters are of."""

    def __init__(self, network: nn.Module, likelihood: PixelLikelihood) -> None:
        super().__init__()
        self.network = network
        self.likelihood = likelihood

    def forward(self, images: Tensor, labels: Tensor | None) -> Tensor:
        """log p (N,), in nats."""
        return self.likelihood.log_prob(images, self.network(images, labels))


class Autoregressive(GenerativeModel):
    """A distribution of images as a product of those of their pixels, each given the pixels before it.

    Drawing takes as many steps as an image has pixels, each an increment of what the network keeps: `nfe` is the number
    of steps. `Temperature` divides the logits.

    Args:
        network: The network, called with the images' shape, the number of parameter maps, that of classes, and whether
            the channels of a pixel come one by one.
        likelihood: What the parameters of a pixel are of.
        optimizer: Optimizer of all parameters.
    """

    sampler_type = Temperature
    likelihood_kind = "exact"
    pictures = ("completions",)

    def __init__(
        self,
        network: NetworkFactory,
        likelihood: LikelihoodFactory,
        optimizer: OptimizerFactory,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        pixel_likelihood = likelihood()
        channels = self.image_shape[0]
        channelwise = not isinstance(pixel_likelihood, LogisticMixture)
        built = network(self.image_shape, pixel_likelihood.num_params(channels), self.num_classes, channelwise)
        self.distribution = CausalDistribution(built, pixel_likelihood)
        self.optimizer = optimizer

    @property
    def generator(self) -> nn.Module:
        return self.distribution

    @property
    def network(self) -> nn.Module:
        """The network within the distribution."""
        return self.distribution.network

    def check_data(self, data: ImageDataModule) -> None:
        likelihood = self.distribution.likelihood
        if likelihood.dequantisation != "none":
            raise UserError(
                f"model.likelihood: {type(likelihood).__name__} is a density, and {type(self).__name__} gives masses "
                "to values; choose Categorical, LogisticMixture, DiscretisedLogistic or Bernoulli"
            )
        likelihood.check_data(data)

    def initialise(self, images: Tensor) -> None:
        initialise = getattr(self.network, "initialise", None)
        if initialise is not None:
            labels = torch.arange(len(images)) % self.num_classes if self.num_classes else None
            initialise(images, labels)

    def configure_optimizers(self) -> Any:
        return self.warmup_schedule(self.optimizer(self.parameters()))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        log_p = self.distribution(batch.images, self.conditioning(batch))
        loss = bits_per_dim(log_p, batch.images[0].numel()).mean()
        self.log_training(loss=loss.detach())
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        log_p = self.distribution(batch.images, self.conditioning(batch))
        self.log_validation(batch, bits_per_dim=bits_per_dim(log_p, batch.images[0].numel()).mean())

    def log_prob(self, images: Tensor, noise: Noise, labels: Tensor | None, method: LikelihoodMethod | None) -> Tensor:
        self.nfe = 1.0
        return cast(Tensor, self.distribution(images, labels))

    def draw(self, noise: Noise, labels: Tensor | None, sampler: Sampler | None) -> Tensor:
        like = next(self.distribution.parameters())
        empty = like.new_zeros(len(noise), *self.image_shape)
        return self.complete(empty, 0, noise, labels, sampler)

    def complete(
        self, images: Tensor, num_given: int, noise: Noise, labels: Tensor | None, sampler: Sampler | None = None
    ) -> Tensor:
        """Draws the pixels of images that come after those given.

        Args:
            images: (N, C, H, W) in [-1, 1].
            num_given: Number of pixels, in raster order, that stay as they are.
            noise: Random numbers keyed by the index of the image.
            labels: (N,) classes for a conditional model.
            sampler: A temperature; 1 if not given.
        """
        temperature = sampler.temperature if isinstance(sampler, Temperature) else 1.0
        network = cast(CausalNetwork, self.network)
        groups = images.flatten(2).unflatten(1, (network.num_groups, -1)).clone()  # (N, G, C / G, H W)
        state, values = network.start(len(images), labels), None
        self.nfe = 0.0
        for pixel in range(groups.shape[3]):
            for group in range(network.num_groups):
                params = network.step(state, values)
                self.nfe += 1
                if pixel >= num_given:
                    drawn = self.distribution.likelihood.sample(params[:, :, None, None], noise, temperature)
                    groups[:, group, :, pixel] = drawn[:, :, 0, 0]
                values = groups[:, group, :, pixel]
        return groups.flatten(1, 2).unflatten(2, self.image_shape[1:])

    def picture(self, name: str, images: Tensor, labels: Tensor | None, noise: Noise) -> Tensor:
        """Rows of an image, its upper half, and four ways to go on from there."""
        _, height, width = self.image_shape
        num_given = height // 2 * width
        half = images.clone()
        half.flatten(2)[:, :, num_given:] = 0
        completions = [self.complete(images, num_given, noise, labels) for _ in range(4)]
        return torch.stack([images, half, *completions], 1)
