r"""The likelihood of 8-bit images under a density.

For x in the bin of u, drawn from some q(x | u), Jensen's inequality gives

    log P(u) = log of the mass of p in the bin  >=  E_q [log p(x) - log q(x | u)].

q is uniform (Theis et al. 2016, https://arxiv.org/abs/1511.01844), or a second flow that is trained with the first for
a tighter bound (Ho et al. 2019, Flow++, https://arxiv.org/abs/1902.00275). The bound becomes tighter still with the
logarithm of a mean over several x in place of the mean of logarithms (Burda et al. 2015,
https://arxiv.org/abs/1509.00519; Hoogeboom et al. 2020, https://arxiv.org/abs/2001.11235).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.core.pixels import BIN_WIDTH
from lit_gen.families.flows.bijections import Compose, Logit, squash
from lit_gen.families.flows.couplings import Affine, Coupling, Masked, checkerboard
from lit_gen.families.flows.density import Flow
from lit_gen.families.flows.networks import ConvCoupling
from lit_gen.families.settings import LikelihoodMethod

DequantiserFactory = Callable[[tuple[int, int, int]], nn.Module]


class VariationalDequantiser(nn.Module):
    """A learned q(x | u) of the place in a bin, sigmoid(g(logit(U); u)), with U uniform and g affine couplings.

    The image u is the context of the couplings. q starts as the uniform distribution.

    Args:
        image_shape: (C, H, W) of one image.
        num_couplings: Number of couplings of g, with alternating checkerboards.
        channels: Width of the coupling networks, a multiple of 8.
        num_blocks: Residual blocks of each coupling network.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], num_couplings: int = 4, channels: int = 32, num_blocks: int = 2
    ) -> None:
        super().__init__()
        self.logit = Logit(alpha=0.0)

        def network(shape: tuple[int, int, int], out_channels: int) -> nn.Module:
            return ConvCoupling(shape, out_channels, channels=channels, num_blocks=num_blocks)

        self.couplings = Compose(
            [
                Coupling(image_shape, Masked(checkerboard(image_shape, i % 2)), Affine(), network, image_shape[0])
                for i in range(num_couplings)
            ]
        )

    def forward(self, images: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Return places (N, C, H, W) in (0, 1), and their log q, (N,)."""
        limit = torch.finfo(uniform.dtype).eps
        place, log_1 = self.logit(uniform.clamp(limit, 1 - limit))
        place, log_2 = self.couplings(place, images)
        place, log_3 = squash(place)
        return place, -(log_1 + log_2 + log_3)


class DequantisedFlow(nn.Module):
    """A density with a q(x | u), which bounds the likelihood of 8-bit images.

    Args:
        flow: Density p(x) of dequantised images.
        dequantiser: Network that returns places in the bin and their log q; None for the uniform distribution.
    """

    def __init__(self, flow: Flow, dequantiser: nn.Module | None = None) -> None:
        super().__init__()
        self.flow = flow
        self.dequantiser = dequantiser

    def forward(
        self, images: Tensor, uniform: Tensor, labels: Tensor | None = None, variational: bool = True
    ) -> Tensor:
        """Return log p(x) - log q(x | u) at one x per image, (N,) in nats; its expectation is the bound.

        Args:
            images: (N, C, H, W), the values u / 127.5 - 1.
            uniform: Random numbers of the same shape, uniform in (0, 1).
            labels: (N,) classes for a conditional density.
            variational: Use the dequantiser, if there is one.
        """
        log_q = images.new_zeros(len(images))
        if variational and self.dequantiser is not None:
            uniform, log_q = self.dequantiser(images, uniform)
        log_p: Tensor = self.flow(images + (uniform - 0.5) * BIN_WIDTH, labels)
        return log_p - log_q + images[0].numel() * math.log(BIN_WIDTH)

    def initialise(self, images: Tensor, uniform: Tensor) -> None:
        """Set data-dependent initial values of the flow from uniformly dequantised images."""
        self.flow.initialise(images + (uniform - 0.5) * BIN_WIDTH)


class Dequantisation(LikelihoodMethod):
    """Base class of bounds on log P(u) by dequantisation, averaged over one or more x per image.

    Args:
        num_draws: Number of x per image.
        importance_weighted: Take the logarithm of the mean of p / q in place of the mean of its logarithms. This
            bound approaches log P(u) as `num_draws` grows.

    Raises:
        UserError: If `num_draws` is not positive.
    """

    kind = "bound"

    def __init__(self, num_draws: int = 1, importance_weighted: bool = False) -> None:
        if num_draws < 1:
            raise UserError(
                f"evaluation.likelihood_method.num_draws: {num_draws} is not a positive number; give at least 1"
            )
        self.num_draws = num_draws
        self.importance_weighted = importance_weighted

    def bound(self, flow: nn.Module, images: Tensor, noise: Noise, labels: Tensor | None) -> Tensor:
        """Return the bound of each image, (N,) in nats.

        Args:
            flow: A `DequantisedFlow`.
            images: (N, C, H, W), the values u / 127.5 - 1.
            noise: Random numbers keyed by the index of the image.
            labels: (N,) classes for a conditional density.
        """
        variational = self.dequantisation == "variational"
        draws = []
        for _ in range(self.num_draws):
            uniform = noise.uniform(images.shape[1:], images.dtype).to(images.device)
            draws.append(flow(images, uniform, labels, variational).double())
        log_ratios = torch.stack(draws)
        if self.importance_weighted:
            return log_ratios.logsumexp(0) - math.log(self.num_draws)
        return log_ratios.mean(0)


class UniformDequantisation(Dequantisation):
    """The bound with x uniform in the bin.

    Args:
        num_draws: Number of x per image.
        importance_weighted: Take the logarithm of the mean of p / q in place of the mean of its logarithms. This
            bound approaches log P(u) as `num_draws` grows.
    """

    dequantisation = "uniform"


class VariationalDequantisation(Dequantisation):
    """The bound with x from the dequantiser that was trained with the flow.

    Args:
        num_draws: Number of x per image.
        importance_weighted: Take the logarithm of the mean of p / q in place of the mean of its logarithms. This
            bound approaches log P(u) as `num_draws` grows.
    """

    dequantisation = "variational"
