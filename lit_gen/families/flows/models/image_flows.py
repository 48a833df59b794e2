"""Normalizing flows of images: NICE, RealNVP and Glow."""

from abc import ABC
from typing import Any

import torch
from torch import Tensor, nn

from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.data.batches import Batch
from lit_gen.data.module import ImageDataModule
from lit_gen.distributions.dequantisation import bits_per_dim
from lit_gen.families.base import GenerativeModel
from lit_gen.families.capabilities import Capabilities
from lit_gen.families.flows.bijections import (
    ActNorm,
    Bijection,
    Compose,
    DiagonalScaling,
    InvertibleConv,
    Logit,
    MultiScale,
    Squeeze,
    UnitInterval,
)
from lit_gen.families.flows.couplings import (
    Additive,
    Affine,
    Channels,
    Coupling,
    Masked,
    NetworkFactory,
    Transform,
    alternating,
    checkerboard,
)
from lit_gen.families.flows.density import Base, Flow, Logistic, Normal
from lit_gen.families.flows.dequantisers import (
    Dequantisation,
    DequantisedFlow,
    DequantiserFactory,
    UniformDequantisation,
    VariationalDequantisation,
)
from lit_gen.families.flows.networks import ConvCoupling, MLPCoupling
from lit_gen.families.optimizers import OptimizerFactory
from lit_gen.families.settings import LikelihoodMethod, Sampler, Temperature
from lit_gen.networks.blocks import zeros


class NormalizingFlow(GenerativeModel, ABC):
    """A model of 8-bit images by a change of variables, log p(x) = log p(z) + log |det df/dx| with z = f(x).

    Images are dequantised (see `dequantisers`), mapped to [0, 1], and by a logit to unbounded values. Training
    minimises the bits per dimension of the bound on log P of the 8-bit image. A density and a sample take one pass
    each. The sampler `Temperature` multiplies the noise of the base by T. Training images set the data-dependent
    initial values (`ActNorm`) before training starts. A class-conditional model gives p(z) a mean per class.

    Args:
        image_shape: (C, H, W) of one image; comes from the data.
        bijection: The map f of the values behind the logit.
        base: Class of p(z).
        alpha: Margin of the logit; null for no logit, so that f takes values in [0, 1].
        dequantiser: Factory of q(x | u), called with image_shape; null for uniform dequantisation.
        optimizer: Optimizer of all parameters.
    """

    capabilities = Capabilities(
        samplers=(Temperature,),
        likelihood_kind="bound",
        likelihood_methods=(Dequantisation,),
        dequantisation="uniform",
        float32_only=True,
    )

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        bijection: Bijection,
        base: type[Base] = Normal,
        alpha: float | None = 0.05,
        dequantiser: DequantiserFactory | None = None,
        optimizer: OptimizerFactory = lambda p: torch.optim.Adam(p, lr=1e-3),
        **kwargs: Any,
    ) -> None:
        super().__init__(image_shape, **kwargs)
        before = [UnitInterval()] if alpha is None else [UnitInterval(), Logit(alpha)]
        latent = base(bijection.out_shape(self.image_shape), self.num_classes)
        flow = Flow(Compose([*before, bijection]), latent)
        self.network = DequantisedFlow(flow, dequantiser(self.image_shape) if dequantiser else None)
        self.optimizer = optimizer
        if dequantiser:
            self.title = f"Variational-{self.title}"

    @property
    def generator(self) -> nn.Module:
        return self.network

    def check_data(self, data: ImageDataModule) -> None:
        if not data.source.quantised:
            raise UserError(
                f"model: {type(self).__name__} models 8-bit images, and {data.name} holds points; use --model PointFlow"
            )

    def initialise(self, images: Tensor) -> None:
        uniform = Noise(self.clock.seed, range(len(images))).uniform(self.image_shape)
        with torch.no_grad():
            self.network.initialise(images, uniform)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        log_p = self.network(batch.images, torch.rand_like(batch.images), self.conditioning(batch))
        bits = bits_per_dim(log_p, batch.images[0].numel()).mean()
        self.log_training(loss=bits.detach(), bits_per_dim=bits.detach())
        return bits

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        log_p = self.log_likelihood(batch.images, Noise(0, batch.index), batch.labels)
        self.log_validation(batch, bits_per_dim=bits_per_dim(log_p, batch.images[0].numel()).mean())

    def draw(self, noise: Noise, labels: Tensor | None, sampler: Sampler | None) -> Tensor:
        temperature = sampler.temperature if isinstance(sampler, Temperature) else 1.0
        self.nfe = 1.0
        return self.network.flow.sample(noise, labels, temperature)

    def default_likelihood_method(self) -> Dequantisation:
        return UniformDequantisation() if self.network.dequantiser is None else VariationalDequantisation()

    def check_likelihood(self, method: LikelihoodMethod | None = None) -> None:
        super().check_likelihood(method)
        if isinstance(method, VariationalDequantisation) and self.network.dequantiser is None:
            raise UserError(
                "evaluation.likelihood_method: this flow was trained without model.dequantiser; use "
                "UniformDequantisation, or remove the key"
            )

    def log_prob(self, images: Tensor, noise: Noise, labels: Tensor | None, method: LikelihoodMethod | None) -> Tensor:
        assert isinstance(method, Dequantisation)
        self.nfe = float(method.num_draws)
        return method.bound(self.network, images.to(next(self.parameters()).dtype), noise, labels)


class NICE(NormalizingFlow):
    """Additive couplings, which preserve volume, and one scaling of each dimension.

    Every other value of the image stays fixed, alternating between layers. The base is logistic. Paper: Dinh et al.
    2014, https://arxiv.org/abs/1410.8516.

    Args:
        num_couplings: Number of coupling layers.
        network: Factory of the coupling networks, called with the shape of the input and the number of output channels.
        alpha: Margin of the logit; null for no logit, as in the paper.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        num_couplings: int = 4,
        network: NetworkFactory = MLPCoupling,
        alpha: float | None = None,
        **kwargs: Any,
    ) -> None:
        parts: list[Bijection] = [
            Coupling(image_shape, Masked(alternating(image_shape, i % 2)), Additive(), network)
            for i in range(_at_least_one(num_couplings, "num_couplings"))
        ]
        bijection = Compose([*parts, DiagonalScaling(image_shape)])
        super().__init__(image_shape, bijection=bijection, base=Logistic, alpha=alpha, **kwargs)


class RealNVP(NormalizingFlow):
    """Affine couplings at several scales (Dinh et al. 2016, https://arxiv.org/abs/1605.08803).

    Each scale but the last has `num_couplings` couplings with checkerboard masks. It then squeezes every 2x2 pixels
    into one, applies as many couplings with channel masks, and half of the channels leave. The last scale has
    `num_couplings` + 1 checkerboard couplings. In place of the paper's batch normalisation, an `ActNorm` precedes each
    coupling, so that the density of an image does not depend on its batch.

    Args:
        num_levels: Number of scales.
        num_couplings: Number of couplings with each kind of mask.
        coupling: Transform of the couplings; null for affine.
        network: Factory of the coupling networks, called with the shape of the input and the number of output channels.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        num_levels: int = 2,
        num_couplings: int = 3,
        coupling: Transform | None = None,
        network: NetworkFactory = ConvCoupling,
        **kwargs: Any,
    ) -> None:
        transform = coupling or Affine()
        _at_least_one(num_couplings, "num_couplings")
        shape, levels = image_shape, []
        for level in range(_at_least_one(num_levels, "num_levels")):
            last = level == num_levels - 1
            parts: list[Bijection] = []
            for i in range(num_couplings + last):
                parts += [
                    ActNorm(shape[0]),
                    Coupling(shape, Masked(checkerboard(shape, i % 2)), transform, network),
                ]
            if not last:
                parts.append(Squeeze())
                channels, height, width = parts[-1].out_shape(shape)
                shape = (channels, height, width)
                for i in range(num_couplings):
                    parts += [ActNorm(channels), Coupling(shape, Channels(swap=bool(i % 2)), transform, network)]
                shape = (channels // 2, height, width)
            levels.append(Compose(parts))
        super().__init__(image_shape, bijection=MultiScale(image_shape, levels), **kwargs)
        self.title = _title(self.title, transform)


class Glow(NormalizingFlow):
    """Steps of an actnorm, an invertible 1x1 convolution and a coupling, at several levels.

    Each level squeezes every 2x2 pixels into one and takes `num_steps` steps. After each level but the last, half of
    the channels leave, with a normal density whose mean and standard deviation depend on the other half. Paper: Kingma
    and Dhariwal 2018, https://arxiv.org/abs/1807.03039.

    Args:
        num_levels: Number of levels; height and width are multiples of 2^num_levels.
        num_steps: Number of steps per level.
        coupling: Transform of the couplings, Additive, Affine or Spline; null for affine.
        network: Factory of the coupling networks, called with the shape of the input and the number of output channels.
        alpha: Margin of the logit; null for no logit, as in the paper.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        num_levels: int = 2,
        num_steps: int = 8,
        coupling: Transform | None = None,
        network: NetworkFactory = ConvCoupling,
        alpha: float | None = None,
        **kwargs: Any,
    ) -> None:
        transform = coupling or Affine()
        _at_least_one(num_steps, "num_steps")
        shape, levels = image_shape, []
        for level in range(_at_least_one(num_levels, "num_levels")):
            parts: list[Bijection] = [Squeeze()]
            channels, height, width = parts[0].out_shape(shape)
            shape = (channels, height, width)
            for _ in range(num_steps):
                parts += [
                    ActNorm(channels),
                    InvertibleConv(channels),
                    Coupling(shape, Channels(), transform, network),
                ]
            if level < num_levels - 1:
                parts.append(Coupling(shape, Channels(), Affine(), _one_convolution))
                shape = (channels // 2, height, width)
            levels.append(Compose(parts))
        super().__init__(image_shape, bijection=MultiScale(image_shape, levels), alpha=alpha, **kwargs)
        self.title = _title(self.title, transform)


def _one_convolution(shape: tuple[int, int, int], out_channels: int) -> nn.Module:
    return zeros(nn.Conv2d(shape[0], out_channels, 3, padding=1))


def _at_least_one(number: int, name: str) -> int:
    if number < 1:
        raise UserError(f"model.{name}: {number} is too few; give at least 1")
    return number


def _title(title: str, transform: Transform) -> str:
    return title if isinstance(transform, Affine) else f"{type(transform).__name__}-{title}"
