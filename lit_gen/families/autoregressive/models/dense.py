"""Autoregressive models, which have an exact likelihood and sample pixel by pixel: FVSBN, NADE and MADE."""

import math
from abc import ABC
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Protocol, cast

import torch
from torch import Tensor, nn

from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.data.batches import Batch
from lit_gen.data.module import ImageDataModule
from lit_gen.distributions.dequantisation import bits_per_dim
from lit_gen.distributions.pixels import Bernoulli, LogisticMixture, PixelLikelihood
from lit_gen.families.autoregressive.networks.masked import LogisticRegressions, MaskedMLP, NADENetwork
from lit_gen.families.base import GenerativeModel
from lit_gen.families.capabilities import Capabilities
from lit_gen.families.optimizers import OptimizerFactory
from lit_gen.families.settings import LikelihoodMethod, Sampler, Temperature

NetworkFactory = Callable[[tuple[int, int, int], int, int, bool], nn.Module]
LikelihoodFactory = Callable[[], PixelLikelihood]


class CausalNetwork(Protocol):
    """A network that computes the parameters of every pixel from the pixels before it, in raster order.

    Attributes:
        num_groups: Number of steps per pixel: one, or one per channel.
    """

    num_groups: int

    def __call__(self, images: Tensor, labels: Tensor | None) -> Tensor:
        """Return the parameters (N, P, H, W) of all pixels of images (N, C, H, W)."""

    def start(self, num: int, labels: Tensor | None) -> Any:
        """Return the state before the first pixel of `num` images."""

    def step(self, state: Any, values: Tensor | None) -> Tensor:
        """Return the parameters (N, P / num_groups) of the next step.

        Args:
            state: The state from `start`, which is changed in place.
            values: (N, C / num_groups), values sampled from the parameters of the step before; None at the first step.
        """


class CausalDistribution(nn.Module):
    """The distribution p(image | label) = prod p(pixel | pixels before, label) of a network and a likelihood."""

    def __init__(self, network: nn.Module, likelihood: PixelLikelihood) -> None:
        super().__init__()
        self.network = network
        self.likelihood = likelihood

    def forward(self, images: Tensor, labels: Tensor | None) -> Tensor:
        """Return log p (N,), in nats."""
        return self.likelihood.log_prob(images, self.network(images, labels))


class Autoregressive(GenerativeModel, ABC):
    """A distribution of images as the product of the distributions of their pixels, each given the pixels before it.

    Sampling takes one step per pixel, or one per channel of a pixel, and each step updates the state that the network
    keeps. `nfe` is the number of steps. `Temperature` divides the logits.

    Args:
        network: Factory of the network, called with the shape of the images, the number of parameter maps, the number
            of classes, and whether the channels of a pixel come one by one.
        likelihood: Distribution of a pixel given the output of the network.
        optimizer: Optimizer of all parameters.
    """

    capabilities = Capabilities(
        samplers=(Temperature,),
        likelihood_kind="exact",
        pictures=("completions",),
        sampled_pictures=("completions",),
        float32_only=True,
    )

    distribution_type: ClassVar[type[CausalDistribution]] = CausalDistribution

    def __init__(
        self,
        network: NetworkFactory,
        likelihood: LikelihoodFactory,
        optimizer: OptimizerFactory,
        **kwargs: Any,
    ) -> None:
        if "image_shape" not in kwargs:
            name = type(self).__name__
            raise UserError(f"{name}: no image_shape; give it by its name, as in {name}(image_shape=(1, 28, 28))")
        super().__init__(**kwargs)
        pixel_likelihood = likelihood()
        channels = self.image_shape[0]
        channelwise = not isinstance(pixel_likelihood, LogisticMixture)
        built = network(self.image_shape, pixel_likelihood.num_params(channels), self.num_classes, channelwise)
        self.distribution = self.distribution_type(built, pixel_likelihood)
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
                f"model.likelihood: {type(likelihood).__name__} is a density, and {type(self).__name__} needs masses "
                "of values; choose Categorical, LogisticMixture, DiscretisedLogistic or Bernoulli"
            )
        likelihood.check_levels(data.name, data.num_levels)

    def initialise(self, images: Tensor) -> None:
        initialise = getattr(self.network, "initialise", None)
        if initialise is not None:
            labels = torch.arange(len(images)) % self.num_classes if self.num_classes else None
            initialise(images, labels)

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
        """Sample the remaining pixels of images, given their first pixels.

        Args:
            images: (N, C, H, W) in [-1, 1].
            num_given: Number of given pixels, in raster order.
            noise: Random numbers keyed by the index of the image.
            labels: (N,) classes for a conditional model.
            sampler: A `Temperature`; T = 1 if not given.
        """
        network = cast(CausalNetwork, self.network)
        state = network.start(len(images), labels)
        tokens = range(self.image_shape[1] * self.image_shape[2] * network.num_groups)
        return self.complete_from(state, tokens, images, num_given, noise, sampler)

    def complete_from(
        self,
        state: Any,
        tokens: Iterable[int],
        images: Tensor,
        num_given: int,
        noise: Noise,
        sampler: Sampler | None = None,
    ) -> Tensor:
        """Sample the remaining pixels of images, from the state of the network before its first step.

        Args:
            state: The state from the `start` of the network.
            tokens: Token of each step, in order: g + num_groups p is group g of the channels of pixel p.
            images: (N, C, H, W) in [-1, 1].
            num_given: Number of given pixels, in raster order.
            noise: Random numbers keyed by the index of the image.
            sampler: A `Temperature`; T = 1 if not given.
        """
        temperature = sampler.temperature if isinstance(sampler, Temperature) else 1.0
        network = cast(CausalNetwork, self.network)
        groups = images.flatten(2).unflatten(1, (network.num_groups, -1)).clone()  # (N, G, C / G, H W)
        values = None
        noise.reads_ahead = True  # drawing numbers per pixel would take longer than the steps of a small network
        self.nfe = 0.0
        for token in tokens:
            pixel, group = divmod(token, network.num_groups)
            params = network.step(state, values)
            self.nfe += 1
            if pixel >= num_given:
                drawn = self.distribution.likelihood.sample(params[:, :, None, None], noise, temperature)
                groups[:, group, :, pixel] = drawn[:, :, 0, 0]
            values = groups[:, group, :, pixel]
        completed: Tensor = groups.flatten(1, 2).unflatten(2, self.image_shape[1:])
        return completed

    def picture(
        self, name: str, images: Tensor, labels: Tensor | None, noise: Noise, sampler: Sampler | None = None
    ) -> Tensor:
        """Return rows of an image, its upper half, and four completions of that half."""
        _, height, width = self.image_shape
        num_given = height // 2 * width
        half = images.clone()
        half.flatten(2)[:, :, num_given:] = 0
        completions = [self.complete(images, num_given, noise, labels, sampler) for _ in range(4)]
        return torch.stack([images, half, *completions], 1)


class FVSBN(Autoregressive):
    """The fully visible sigmoid belief network (Frey et al. 1996), a logistic regression per pixel.

    Args:
        network: The network.
        likelihood: Distribution of a pixel given the output of the network.
        optimizer: Optimizer of all parameters.
    """

    def __init__(
        self,
        network: NetworkFactory = LogisticRegressions,
        likelihood: LikelihoodFactory = Bernoulli,
        optimizer: OptimizerFactory = lambda p: torch.optim.Adam(p, lr=1e-3),
        **kwargs: Any,
    ) -> None:
        super().__init__(network=network, likelihood=likelihood, optimizer=optimizer, **kwargs)


class NADE(Autoregressive):
    """The neural autoregressive distribution estimator (Larochelle and Murray 2011).

    Each pixel has a perceptron with one hidden layer, and all of them share the weights of that layer.

    Args:
        network: The network.
        likelihood: Distribution of a pixel given the output of the network.
        optimizer: Optimizer of all parameters.
    """

    def __init__(
        self,
        network: NetworkFactory = NADENetwork,
        likelihood: LikelihoodFactory = Bernoulli,
        optimizer: OptimizerFactory = lambda p: torch.optim.Adam(p, lr=1e-3),
        **kwargs: Any,
    ) -> None:
        super().__init__(network=network, likelihood=likelihood, optimizer=optimizer, **kwargs)


class MaskMixture(CausalDistribution):
    """The mixture p(x) = 1/M sum_m p(x | mask m); in training, log p(x | mask m) of one random mask."""

    def forward(self, images: Tensor, labels: Tensor | None) -> Tensor:
        """Return log p (N,), in nats."""
        num_masks = cast(MaskedMLP, self.network).num_masks
        masks = [int(torch.randint(num_masks, ()))] if self.training else range(num_masks)
        log_p = [self.likelihood.log_prob(images, self.network(images, labels, mask)) for mask in masks]
        return torch.stack(log_p).logsumexp(0) - math.log(len(log_p))


class MADE(Autoregressive):
    """The masked autoencoder for distribution estimation (Germain et al. 2015, https://arxiv.org/abs/1502.03509).

    With M masks, each training step uses a random one (the paper cycles through them). The model is their mixture,
    1/M sum_m p_m, whose likelihood takes M evaluations. An image is sampled under a random mask, in the order of that
    mask. An image is completed under the first mask, in raster order.

    Args:
        network: The network.
        likelihood: Distribution of a pixel given the output of the network.
        optimizer: Optimizer of all parameters.
    """

    distribution_type = MaskMixture

    def __init__(
        self,
        network: Callable[[tuple[int, int, int], int, int, bool], MaskedMLP] = MaskedMLP,
        likelihood: LikelihoodFactory = Bernoulli,
        optimizer: OptimizerFactory = lambda p: torch.optim.Adam(p, lr=1e-3),
        **kwargs: Any,
    ) -> None:
        super().__init__(network=network, likelihood=likelihood, optimizer=optimizer, **kwargs)

    def log_prob(self, images: Tensor, noise: Noise, labels: Tensor | None, method: LikelihoodMethod | None) -> Tensor:
        log_p = super().log_prob(images, noise, labels, method)
        self.nfe = float(cast(MaskedMLP, self.network).num_masks)
        return log_p

    def draw(self, noise: Noise, labels: Tensor | None, sampler: Sampler | None) -> Tensor:
        network = cast(MaskedMLP, self.network)
        images = network.bias.new_zeros(len(noise), *self.image_shape)
        chosen = (noise.uniform(()) * network.num_masks).long()
        for mask in chosen.unique().tolist():
            rows = (chosen == mask).nonzero()[:, 0]
            own = Noise(noise.seed, noise.index[rows], noise.device)
            own.draws = noise.draws
            state = network.start(len(rows), None if labels is None else labels[rows], mask)
            order = network.orders[mask].tolist()
            images[rows] = self.complete_from(state, order, images[rows], 0, own, sampler)
        return images
