"""Normalizing flows of points in the plane, whose density can be plotted."""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.data.batches import Batch
from lit_gen.data.module import ImageDataModule
from lit_gen.data.points import PointSource, grid_of_points
from lit_gen.families.base import GenerativeModel
from lit_gen.families.capabilities import Capabilities
from lit_gen.families.flows.bijections import ActNorm, Bijection, Compose
from lit_gen.families.flows.couplings import Channels, Coupling, Spline
from lit_gen.families.flows.density import Flow, Normal
from lit_gen.families.flows.networks import MLPCoupling
from lit_gen.families.flows.planar import Planar, Radial
from lit_gen.families.optimizers import OptimizerFactory
from lit_gen.families.settings import LikelihoodMethod, Sampler, Temperature

Layer = Literal["planar", "radial", "spline"]
NUM_PIXELS = 160


class PointFlow(GenerativeModel):
    """A flow of points, log p(x) = log N(f(x); 0, I) + log |det df/dx|.

    Its layers are planar or radial (Rezende and Mohamed 2015, https://arxiv.org/abs/1505.05770) or, for comparison,
    spline couplings (Durkan et al. 2019, https://arxiv.org/abs/1906.04032). They map points to noise, so a density
    takes one pass, and samples come from the inverses. The first layer standardises points with the mean and standard
    deviation of training points. Training minimises -log p(x).

    Args:
        image_shape: (2, 1, 1) of one point; comes from the data.
        layer: Kind of the layers.
        num_layers: Number of layers.
        optimizer: Optimizer of all parameters.
    """

    capabilities = Capabilities(
        samplers=(Temperature,), likelihood_kind="exact", pictures=("density",), float32_only=True
    )

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        layer: Layer = "planar",
        num_layers: int = 32,
        optimizer: OptimizerFactory = lambda p: torch.optim.Adam(p, lr=5e-3),
        **kwargs: Any,
    ) -> None:
        super().__init__(image_shape, **kwargs)
        if num_layers < 1:
            raise UserError(f"model.num_layers: {num_layers} is too few; give at least 1")
        layers = [self._layer(layer, i) for i in range(num_layers)]
        scale = ActNorm(self.image_shape[0])
        self.flow = Flow(Compose([scale, *layers]), Normal(self.image_shape, self.num_classes))
        self.optimizer = optimizer
        self.title = f"{layer.capitalize()}Flow"

    def _layer(self, layer: Layer, number: int) -> Bijection:
        if layer == "spline":
            return Coupling(self.image_shape, Channels(swap=bool(number % 2)), Spline(), MLPCoupling)
        return {"planar": Planar, "radial": Radial}[layer](math.prod(self.image_shape))

    @property
    def generator(self) -> nn.Module:
        return self.flow

    def check_data(self, data: ImageDataModule) -> None:
        if not isinstance(data.source, PointSource):
            raise UserError(
                f"model: PointFlow models points in the plane, and {data.name} holds images; use --model Glow, RealNVP "
                "or NICE"
            )

    def initialise(self, images: Tensor) -> None:
        self.flow.initialise(images)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss: Tensor = -self.flow(batch.images, self.conditioning(batch)).mean()
        self.log_training(loss=loss.detach())
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.log_validation(batch, nll=-self.flow(batch.images, self.conditioning(batch)).mean())

    def draw(self, noise: Noise, labels: Tensor | None, sampler: Sampler | None) -> Tensor:
        temperature = sampler.temperature if isinstance(sampler, Temperature) else 1.0
        self.nfe = 1.0
        return self.flow.sample(noise, labels, temperature)

    def log_prob(self, images: Tensor, noise: Noise, labels: Tensor | None, method: LikelihoodMethod | None) -> Tensor:
        """Return the log-density of points, (N,) in nats; points have no mass."""
        self.nfe = 1.0
        log_p: Tensor = self.flow(images, labels)
        return log_p

    def show(self, name: str, data: ImageDataModule, num: int, seed: int, sampler: Sampler | None = None) -> Tensor:
        """Return the learned density and the true one side by side, darker at higher density, black at the maximum."""
        learned = super().show(name, data, num, seed, sampler)
        assert isinstance(data.source, PointSource)
        one = torch.ones((), dtype=torch.float64)
        exact = torch.cat([data.source.exact.log_density(part, one, 0 * one) for part in _grid().split(4096)])
        return torch.cat([learned.cpu(), _heat_map(exact)], 1)

    def picture(
        self, name: str, images: Tensor, labels: Tensor | None, noise: Noise, sampler: Sampler | None = None
    ) -> Tensor:
        x = _grid().float().to(self.device)[:, :, None, None]
        if not self.num_classes:
            return _heat_map(self.flow(x).cpu())
        classes = torch.arange(self.num_classes, device=self.device)
        each = torch.stack([self.flow(x, label.expand(len(x))) for label in classes])
        counts = torch.tensor(self.class_counts or (1,) * self.num_classes, dtype=each.dtype, device=self.device)
        return _heat_map((each + (counts / counts.sum()).log()[:, None]).logsumexp(0).cpu())


def _grid() -> Tensor:
    return grid_of_points(1.0, NUM_PIXELS)


def _heat_map(log_density: Tensor) -> Tensor:
    """Return tiles (1, 1, 1, H, W) in [-1, 1] of a density at the points of the grid."""
    shade = (log_density - log_density.max()).exp().reshape(1, 1, 1, NUM_PIXELS, NUM_PIXELS)
    return 1 - 2 * shade.flip(3).float()
