"""Autoregressive prior over the codes of a first stage (van den Oord et al. 2017; Esser et al. 2021)."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.data.batches import Batch
from lit_gen.data.module import ImageDataModule
from lit_gen.families.base import GenerativeModel
from lit_gen.families.capabilities import Capabilities
from lit_gen.families.optimizers import OptimizerFactory
from lit_gen.families.settings import Sampler
from lit_gen.families.vq.networks.token_transformer import TokenTransformer
from lit_gen.families.vq.token_sampling import TokenSampling

TransformerFactory = Callable[[tuple[int, int], int, int], TokenTransformer]


class TokenPrior(GenerativeModel):
    """An autoregressive model of the codes into which a first stage (`first_stage.run`) encodes images.

    log p(x) = sum_t log p(x_t | x_0 ... x_{t-1}, label) over the codes x of an image in raster order; training
    minimises its negative mean over codes, in nats per code. An image is sampled code by code, with cached keys and
    values, and then decoded once; `nfe` counts the steps of the network. Validation logs the likelihood of codes. It
    is not a likelihood of images, because the decoder defines no distribution of images.

    Args:
        image_shape: (C, h, w) of the latents that the codes represent; comes from the first stage.
        num_codes: Number K of codes; comes from the first stage.
        network: Called with the grid (h, w), the number of codes and the number of classes.
        optimizer: Optimizer of the network's parameters.

    Raises:
        UserError: If there is no first stage.
    """

    capabilities = Capabilities(samplers=(TokenSampling,), learns="codes")

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        num_codes: int = 0,
        network: TransformerFactory = TokenTransformer,
        optimizer: OptimizerFactory = lambda p: torch.optim.AdamW(p, lr=1e-3),
        **kwargs: Any,
    ) -> None:
        if not num_codes:
            raise UserError(
                "first_stage.run: TokenPrior learns the codes of a first stage, and there are none; name the run or "
                "the experiment of a VQVAE or VQGAN"
            )
        super().__init__(image_shape, **kwargs)
        self.grid = self.image_shape[1:]
        self.network = network(self.grid, num_codes, self.num_classes)
        self.optimizer = optimizer

    @property
    def generator(self) -> nn.Module:
        return self.network

    def loss(self, batch: Batch) -> Tensor:
        """Return -log p, averaged over the codes (N, h, w), in nats per code."""
        codes = batch.images.flatten(1).long()
        logits = self.network(codes, self.conditioning(batch))
        return functional.cross_entropy(logits.flatten(0, 1).float(), codes.flatten())

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log_training(loss=loss.detach())
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.log_validation(batch, nats_per_token=self.loss(batch))

    def default_sampler(self) -> TokenSampling:
        return TokenSampling()

    def check_sampler(self, sampler: Sampler | None) -> None:
        super().check_sampler(sampler)
        if not isinstance(sampler, TokenSampling) or sampler.size is None:
            return
        if any(asked < own for asked, own in zip(sampler.size, self.grid, strict=True)):
            raise UserError(
                f"sampler.size: {list(sampler.size)} is smaller than the training grid, {list(self.grid)}; remove "
                "the key for the training grid, or give a larger size"
            )

    def check_scored(self, sampler: Sampler | None, data: ImageDataModule) -> None:
        if not isinstance(sampler, TokenSampling) or sampler.size is None or tuple(sampler.size) == self.grid:
            return
        channels, *own = data.image_shape
        drawn = (size * whole // codes for size, whole, codes in zip(sampler.size, own, self.grid, strict=True))
        raise UserError(
            f"sampler.size: images of {'x'.join(map(str, (channels, *drawn)))} are not those of {data.name}, "
            f"{'x'.join(map(str, data.image_shape))}; remove the key, or sample images with lit-gen sample"
        )

    def draw(self, noise: Noise, labels: Tensor | None, sampler: Sampler | None) -> Tensor:
        """Sample codes (N, h, w), or a grid of the sampler's size.

        Raises:
            UserError: If the logits of the network are not finite.
        """
        assert isinstance(sampler, TokenSampling)
        size = sampler.size or self.grid
        uniform = noise.uniform((math.prod(size),), torch.float64).to(self.device)
        codes = torch.zeros(len(noise), *size, dtype=torch.int64, device=self.device)
        drawn, last = self.network.start(len(noise), labels), None
        self.nfe, finite = 0.0, torch.ones((), dtype=torch.bool, device=self.device)
        for number, (row, column) in enumerate(itertools.product(*map(range, size))):
            if size == self.grid:
                logits = self.network.step(drawn, last)
            else:
                logits = self.network.at(codes, (row, column), labels)
            self.nfe += 1
            finite &= logits.amax(-1).isfinite().all()
            codes[:, row, column] = last = sampler.choose(logits, uniform[:, number])
        if not finite:  # checked once: a GPU would synchronize at every code
            raise UserError(
                f"{self.title} returns logits that are not finite: its training diverged, or its weights are damaged; "
                "train with a lower learning rate"
            )
        return codes
