"""Generators and discriminators of generative adversarial networks, for images from 8x8 up.

Three pairs: residual networks without batch normalisation in the manner of WGAN-GP (`Generator`, `Critic`), the plain
convolutions of DCGAN as SNGAN's authors draw them, and the residual networks of SNGAN; and perceptrons for points of
the plane. Each generator maps latents (N, latent_dim) to images in [-1, 1], each discriminator images to scores (N,).
With classes, generators scale and shift their normalised features by class (`Generator` takes an embedding beside the
latent), and discriminators add the projection <embedding of the class, features> to the score.

Papers: Radford et al. 2015, https://arxiv.org/abs/1511.06434 (DCGAN); Gulrajani et al. 2017,
https://arxiv.org/abs/1704.00028 (WGAN-GP); Miyato et al. 2018, https://arxiv.org/abs/1802.05957 (SNGAN); Miyato and
Koyama 2018, https://arxiv.org/abs/1802.05637 (projection)
"""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm, spectral_norm

from lit_gen.core.errors import UserError
from lit_gen.networks.blocks import Contraction, Expansion, _levels, check_positive, check_width

Normalisation = Literal["spectral", "batch", "none"]


def normalise_spectrally(network: nn.Module) -> None:
    """Divides the weight of every convolution, linear layer and embedding by its largest singular value, W / sigma(W).

    A kernel (C_out, C_in, k, k) is the matrix (C_out, C_in k k), and so is that of a transposed convolution, which is
    stored as (C_in, C_out, k, k). It is divided from here on. sigma is estimated by one step of power iteration for
    each pass in training mode; its vectors are buffers. Layers that are normalised already stay as they are.
    """
    for module in list(network.modules()):
        if isinstance(module, (_ConvNd, nn.Linear, nn.Embedding)) and not parametrize.is_parametrized(module):
            spectral_norm(module)


@contextmanager
def statistics_kept(network: nn.Module) -> Iterator[None]:
    """Passes in training mode leave running means and variances, and the vectors of power iterations, as they are.

    Batches are normalised by their own statistics as ever.
    """
    with ExitStack() as stack:
        for module in network.modules():
            if isinstance(module, _BatchNorm) and module.track_running_stats:
                module.track_running_stats = False
                stack.callback(setattr, module, "track_running_stats", True)
            elif isinstance(module, _SpectralNorm) and module.training:
                module.eval()
                stack.callback(module.train)
        yield


def has_batch_norm(network: nn.Module) -> bool:
    """Whether the output for one image depends on the others of its batch in training."""
    return any(isinstance(module, _BatchNorm) for module in network.modules())


class Projection(nn.Module):
    """Score of features: w^T h + b, with classes w^T h + b + <embedding(y), h>; h (N, features) -> (N,).

    Args:
        features: Width of h.
        num_classes: 0 for none.
    """

    def __init__(self, features: int, num_classes: int = 0) -> None:
        super().__init__()
        self.score = nn.Linear(features, 1)
        self.embedding = nn.Embedding(num_classes, features) if num_classes else None
        if self.embedding is not None:
            nn.init.xavier_uniform_(self.embedding.weight)

    def forward(self, h: Tensor, labels: Tensor | None = None) -> Tensor:
        score: Tensor = self.score(h).squeeze(1)
        return score if self.embedding is None else score + (self.embedding(labels) * h).sum(1)


class ConditionalBatchNorm(nn.Module):
    """Batch normalisation, h -> scale h + shift, with a scale and a shift of each class.

    Args:
        channels: Width of h (N, C, H, W).
        num_classes: 0 for one scale and shift.
    """

    def __init__(self, channels: int, num_classes: int = 0) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.scale = nn.Parameter(torch.ones(max(num_classes, 1), channels))
        self.shift = nn.Parameter(torch.zeros(max(num_classes, 1), channels))

    def forward(self, h: Tensor, labels: Tensor | None = None) -> Tensor:
        row = slice(None) if len(self.scale) == 1 else labels
        out: Tensor = self.norm(h) * self.scale[row, :, None, None] + self.shift[row, :, None, None]
        return out


# --- residual networks of WGAN-GP ---


class Generator(nn.Module):
    """Residual upsampling generator: latents (N, latent_dim) -> images (N, C, H, W) in [-1, 1].

    It normalises groups of channels within one image, so that no image depends on those beside it.

    Args:
        image_shape: (C, H, W) of the images; H and W at least 8 and multiples of 4.
        latent_dim: Dimension of the latent z ~ N(0, I).
        num_classes: Classes to condition on, by an embedding beside the latent; 0 for none.
        channels: Width at full resolution, a multiple of 8; it doubles at every halving of the resolution.
        max_channels: Limit of that doubling.
        num_blocks: Residual blocks per resolution.

    Raises:
        UserError: if the image size or a width does not suit.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        latent_dim: int,
        num_classes: int = 0,
        channels: int = 32,
        max_channels: int = 256,
        num_blocks: int = 1,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_classes, latent_dim) if num_classes else None
        features = latent_dim * (2 if num_classes else 1)
        self.trunk = Expansion(
            image_shape, features, channels=channels, max_channels=max_channels, num_blocks=num_blocks
        )

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        if self.embedding is not None:
            z = torch.cat([z, self.embedding(labels)], dim=1)
        return torch.tanh(self.trunk(z))


class Critic(nn.Module):
    """Residual critic without normalisation: images (N, C, H, W) -> scores (N,), unbounded.

    The penalty on the norm of its gradient is a statement about single images, which batch normalisation would mix.

    Args:
        image_shape: (C, H, W) of the images; H and W at least 8 and multiples of 4.
        num_classes: Classes to condition on, by projection; 0 for none.
        channels: Width at full resolution, a multiple of 8; it doubles at every halving of the resolution.
        max_channels: Limit of that doubling.
        num_blocks: Residual blocks per resolution.

    Raises:
        UserError: if the image size or a width does not suit.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int = 0,
        channels: int = 32,
        max_channels: int = 256,
        num_blocks: int = 1,
    ) -> None:
        super().__init__()
        self.trunk = Contraction(
            image_shape, 0, channels=channels, max_channels=max_channels, num_blocks=num_blocks, norm=False
        )
        self.head = Projection(self.trunk.num_features, num_classes)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        score: Tensor = self.head(self.trunk(x), labels)
        return score


# --- DCGAN ---


class DCGANGenerator(nn.Module):
    """Transposed convolutions, each doubling the resolution, with batch normalisation and ReLU, then a 3x3 convolution.

    Args:
        image_shape: (C, H, W) of the images; H and W at least 8 and multiples of 4.
        latent_dim: Dimension of the latent.
        num_classes: Classes to condition on; 0 for none.
        channels: Width at full resolution, a multiple of 8; it doubles at every halving of the resolution.
        max_channels: Limit of that doubling.

    Raises:
        UserError: if the image size or a width does not suit.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        latent_dim: int,
        num_classes: int = 0,
        channels: int = 64,
        max_channels: int = 512,
    ) -> None:
        super().__init__()
        sizes, widths = _levels(image_shape, channels, max_channels)
        self.start_shape = (widths[-1], *sizes[-1])
        self.start = nn.Linear(latent_dim, math.prod(self.start_shape))
        self.norms = nn.ModuleList(ConditionalBatchNorm(width, num_classes) for width in reversed(widths))
        between = zip(widths[::-1], widths[-2::-1], strict=False)
        self.convs = nn.ModuleList(
            nn.ConvTranspose2d(before, width, 4, stride=2, padding=1, bias=False) for before, width in between
        )
        self.out = nn.Conv2d(widths[0], image_shape[0], 3, padding=1)
        _initialise(self)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        h = F.relu(self.norms[0](self.start(z).unflatten(1, self.start_shape), labels))
        for conv, norm in zip(self.convs, self.norms[1:], strict=True):
            h = F.relu(norm(conv(h), labels))
        return torch.tanh(self.out(h))


class DCGANDiscriminator(nn.Module):
    """A 3x3 convolution, then for each halving a 4x4 one of stride 2 and a 3x3 one, with leaky ReLU of slope 0.1.

    Args:
        image_shape: (C, H, W) of the images; H and W at least 8 and multiples of 4.
        num_classes: Classes to condition on; 0 for none.
        channels: Width at full resolution, a multiple of 8; it doubles at every halving of the resolution.
        max_channels: Limit of that doubling.
        norm: spectral, of all weights; batch, of the features but those of the first convolution; or none.

    Raises:
        UserError: if the image size or a width does not suit.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int = 0,
        channels: int = 64,
        max_channels: int = 512,
        norm: Normalisation = "spectral",
    ) -> None:
        super().__init__()
        sizes, widths = _levels(image_shape, channels, max_channels)
        layers: list[nn.Module] = [nn.Conv2d(image_shape[0], widths[0], 3, padding=1), nn.LeakyReLU(0.1)]
        for before, width in zip(widths, widths[1:], strict=False):
            for conv in (
                nn.Conv2d(before, width, 4, stride=2, padding=1),
                nn.Conv2d(width, width, 3, padding=1),
            ):
                layers += [conv, *([nn.BatchNorm2d(width)] if norm == "batch" else []), nn.LeakyReLU(0.1)]
        self.layers = nn.Sequential(*layers)
        self.head = Projection(widths[-1] * math.prod(sizes[-1]), num_classes)
        _initialise(self.layers)
        if norm == "spectral":
            normalise_spectrally(self)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        score: Tensor = self.head(self.layers(x).flatten(1), labels)
        return score


# --- SNGAN ---


class UpBlock(nn.Module):
    """y = conv(up(x)) + conv(act(norm(conv(up(act(norm(x))))))), at twice the resolution.

    Args:
        channels: Width of x and y.
        num_classes: Classes to condition the normalisation on.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.norm1 = ConditionalBatchNorm(channels, num_classes)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = ConditionalBatchNorm(channels, num_classes)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.skip = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        h = self.conv1(F.interpolate(F.relu(self.norm1(x, labels)), scale_factor=2))
        h = self.conv2(F.relu(self.norm2(h, labels)))
        # a 1x1 convolution and the copying of pixels commute
        out: Tensor = F.interpolate(self.skip(x), scale_factor=2) + h
        return out


class SNGANGenerator(nn.Module):
    """Residual blocks of constant width with (conditional) batch normalisation, each doubling the resolution.

    Args:
        image_shape: (C, H, W) of the images; H and W at least 8 and multiples of 4.
        latent_dim: Dimension of the latent.
        num_classes: Classes to condition on; 0 for none.
        channels: Width, a multiple of 8.

    Raises:
        UserError: if the image size or the width does not suit.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], latent_dim: int, num_classes: int = 0, channels: int = 256
    ) -> None:
        super().__init__()
        sizes, _ = _levels(image_shape, channels, channels)
        self.start_shape = (channels, *sizes[-1])
        self.start = nn.Linear(latent_dim, math.prod(self.start_shape))
        self.blocks = nn.ModuleList(UpBlock(channels, num_classes) for _ in sizes[1:])
        self.norm = ConditionalBatchNorm(channels)
        self.out = nn.Conv2d(channels, image_shape[0], 3, padding=1)
        _initialise(self)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        h = self.start(z).unflatten(1, self.start_shape)
        for block in self.blocks:
            h = block(h, labels)
        return torch.tanh(self.out(F.relu(self.norm(h))))


class DownBlock(nn.Module):
    """y = skip(x) + pool(conv(act(conv(act(x))))), without the first activation where x is an image.

    Args:
        in_channels: Width of x.
        out_channels: Width of y.
        pool: Halve the resolution.
        first: x is an image.
    """

    def __init__(self, in_channels: int, out_channels: int, pool: bool, first: bool = False) -> None:
        super().__init__()
        self.first = first
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip = nn.Conv2d(in_channels, out_channels, 1) if pool or in_channels != out_channels else nn.Identity()
        self.pool = nn.AvgPool2d(2) if pool else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.relu(self.conv1(x if self.first else F.relu(x))))
        # a 1x1 convolution and pooling commute
        out: Tensor = self.skip(self.pool(x)) + self.pool(h)
        return out


class SNGANDiscriminator(nn.Module):
    """Residual blocks of constant width, the sum over positions, and a linear layer; all weights spectrally normalised.

    Args:
        image_shape: (C, H, W) of the images.
        num_classes: Classes to condition on; 0 for none.
        channels: Width, a multiple of 8.
        depth: Number of residual blocks.
        num_halvings: Of the blocks, how many halve the resolution, the first ones.
        spectral: Normalise all weights.

    Raises:
        UserError: if the image size, the width or a number of blocks does not suit.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int = 0,
        channels: int = 128,
        depth: int = 4,
        num_halvings: int = 2,
        spectral: bool = True,
    ) -> None:
        super().__init__()
        check_width("channels", channels)
        check_positive("depth", depth)
        if not 0 <= num_halvings <= depth or any(size % 2**num_halvings for size in image_shape[1:]):
            raise UserError(
                f"num_halvings: images of {image_shape[1]}x{image_shape[2]} cannot be halved {num_halvings} times in "
                f"{depth} blocks; set a smaller number"
            )
        self.blocks = nn.Sequential(
            *(
                DownBlock(channels if i else image_shape[0], channels, pool=i < num_halvings, first=i == 0)
                for i in range(depth)
            )
        )
        self.head = Projection(channels, num_classes)
        _initialise(self)
        self.spectral = spectral
        if spectral:
            normalise_spectrally(self)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        score: Tensor = self.head(F.relu(self.blocks(x)).sum((2, 3)), labels)
        return score


# --- perceptrons ---


class MLPGenerator(nn.Module):
    """Perceptron: latents (N, latent_dim) -> (N, C, H, W), not bounded; for points of the plane.

    Args:
        image_shape: (C, H, W).
        latent_dim: Dimension of the latent.
        num_classes: Classes to condition on, by an embedding beside the latent; 0 for none.
        width: Of the hidden layers.
        depth: Number of hidden layers.

    Raises:
        UserError: if there is no hidden layer, or none of any width.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        latent_dim: int,
        num_classes: int = 0,
        width: int = 128,
        depth: int = 3,
    ) -> None:
        super().__init__()
        self.image_shape = image_shape
        self.embedding = nn.Embedding(num_classes, latent_dim) if num_classes else None
        features = latent_dim * (2 if num_classes else 1)
        self.layers = nn.Sequential(*_hidden(features, width, depth), nn.Linear(width, math.prod(image_shape)))

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        if self.embedding is not None:
            z = torch.cat([z, self.embedding(labels)], dim=1)
        images: Tensor = self.layers(z).unflatten(1, self.image_shape)
        return images


class MLPCritic(nn.Module):
    """Perceptron: (N, C, H, W) -> scores (N,); for points of the plane.

    Args:
        image_shape: (C, H, W).
        num_classes: Classes to condition on, by projection; 0 for none.
        width: Of the hidden layers.
        depth: Number of hidden layers.

    Raises:
        UserError: if there is no hidden layer, or none of any width.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], num_classes: int = 0, width: int = 128, depth: int = 3
    ) -> None:
        super().__init__()
        self.layers = nn.Sequential(*_hidden(math.prod(image_shape), width, depth))
        self.head = Projection(width, num_classes)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        score: Tensor = self.head(self.layers(x.flatten(1)), labels)
        return score


def _hidden(features: int, width: int, depth: int) -> list[nn.Module]:
    check_positive("width", width)
    check_positive("depth", depth)
    sizes = [features, *[width] * depth]
    pairs = zip(sizes, sizes[1:], strict=False)
    return [layer for before, after in pairs for layer in (nn.Linear(before, after), nn.LeakyReLU(0.2))]


def _initialise(network: nn.Module) -> None:
    """Xavier's uniform weights, with gain sqrt(2) for kernels larger than 1x1, and biases of zero."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            spatial = math.prod(getattr(module, "kernel_size", (1,))) > 1
            nn.init.xavier_uniform_(module.weight, gain=math.sqrt(2) if spatial else 1.0)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
