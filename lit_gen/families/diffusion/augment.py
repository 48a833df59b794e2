r"""EDM's non-leaking augmentation: geometric transforms of the training images, with labels that condition the network.

Each image undergoes x -> G x about its centre. G is the product of the transforms below, each applied with its own
probability and otherwise the identity. Nine numbers a describe G and condition the network. An untransformed image has
a = 0, and sampling uses a = 0: the network also learns the transformed images, but its samples contain none of them.

| transform | matrix, applied in this order | distribution | labels |
| --- | --- | --- | --- |
| mirror | diag(1 - 2 a_0, 1) | a_0 = 1 with probability `mirror` | a_0 |
| turn upside down | diag(1, 1 - 2 a_1) | a_1 = 0 or 1 | a_1 |
| scale | s^a_2 | a_2 ~ N(0, 1) | a_2 |
| rotate | R(a_3) | a_3 ~ U(-pi, pi) | cos a_3 - 1, sin a_3 |
| stretch | R(a_4) diag(s^a_5, s^-a_5) R(-a_4) | a_4 ~ U(-pi, pi), a_5 ~ N(0, 1) | a_5 cos 2 a_4, a_5 sin 2 a_4 |
| shift | x + (W a_6, H a_7) / 8 | a_6, a_7 ~ N(0, 1) | a_6, a_7 |

with s = 2^0.2 and R(a) the rotation from the x axis (right) towards the y axis (down). All transforms except the mirror
have probability p. The paper uses a_4 instead of 2 a_4 in the labels of the stretch; two different transforms,
(a_4, a_5) and (a_4 + pi, -a_5), would then have the same labels. The stretch is exp(ln s [[u, v], [v, -u]]) for the
labels (u, v).

Paper: Karras et al. 2022, https://arxiv.org/abs/2206.00364, appendix F.2
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise

LOG_SCALE = 0.2 * math.log(2)
SHIFT = 1 / 8


class EDMAugmentation:
    """Random transform of each image.

    Values between pixels are interpolated by cubic convolution, and images are reflected at their borders. (The paper
    resamples at twice the resolution with wavelet filters; scaling down by the usual s^-1 = 0.87 aliases little.)
    Images that are only mirrored or turned upside down are exact.

    Args:
        p: Probability of each transform except the mirror; the paper uses 0.12 for CIFAR-10 and 0.15 for larger images.
        mirror: Probability of the mirror. It replaces the flips of the data, which do not condition the network.

    Raises:
        UserError: If a probability is not in [0, 1].
    """

    dim = 9
    """Length of the labels."""

    def __init__(self, p: float = 0.12, mirror: float = 0.5) -> None:
        for key, value in (("p", p), ("mirror", mirror)):
            if not 0 <= value <= 1:
                raise UserError(f"augment.{key}: {value} is not a probability; give a number in [0, 1]")
        self.p = p
        self.mirror = mirror

    def __call__(self, images: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """Return the transformed images (N, C, H, W) and their labels (N, 9), both in the data type of the images.

        Args:
            images: Images (N, C, H, W), floating-point.
            noise: Random numbers of each image.
        """
        labels = self.labels(noise)
        return transform(images, labels), labels.to(images.dtype)

    def labels(self, noise: Noise) -> Tensor:
        """Sample labels (N, 9), float64."""
        chosen = (noise.uniform((5,), torch.float64) < self.p).double()
        mirrored, turned = noise.uniform((2,), torch.float64).unbind(1)
        rotation, axis = (math.pi * (2 * noise.uniform((2,), torch.float64) - 1)).unbind(1)
        scale, stretch, right, down = noise.normal((4,), torch.float64).unbind(1)
        turn, resize, rotate, deform, shift = chosen.unbind(1)
        return torch.stack(
            [
                (mirrored < self.mirror).double(),
                turn * (turned < 0.5),
                resize * scale,
                rotate * (rotation.cos() - 1),
                rotate * rotation.sin(),
                deform * stretch * (2 * axis).cos(),
                deform * stretch * (2 * axis).sin(),
                shift * right,
                shift * down,
            ],
            dim=1,
        )


def matrix(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the matrices G (N, 3, 3), float64, in pixels from the centre of the image.

    Args:
        labels: Labels (N, 9) of the transforms.
        size: Height and width of the images.
    """
    mirror, turn, scale, cos, sin, u, v, right, down = labels.double().unbind(1)
    cos = cos + 1
    norm = torch.hypot(u, v).clamp_min(1e-12)  # sinh(x) / x is 1 near 0
    even, odd = (LOG_SCALE * norm).cosh(), (LOG_SCALE * norm).sinh() / norm
    stretch = _stack([[even + odd * u, odd * v], [odd * v, even - odd * u]])
    rotation = _stack([[cos, -sin], [sin, cos]])
    flips = torch.stack([1 - 2 * mirror, 1 - 2 * turn], dim=1)
    linear = stretch @ rotation * ((LOG_SCALE * scale).exp()[:, None] * flips)[:, None]
    height, width = size
    shift = torch.stack([right * width, down * height], dim=1) * SHIFT
    last = linear.new_tensor([0.0, 0.0, 1.0]).expand(len(labels), 1, 3)
    return torch.cat([torch.cat([linear, shift[:, :, None]], dim=2), last], dim=1)


def transform(images: Tensor, labels: Tensor) -> Tensor:
    """Return the images (N, C, H, W) transformed by labels (N, 9); images with zero labels are unchanged."""
    mirrored, turned = (labels[:, :2] > 0.5)[:, :, None, None, None].unbind(1)
    images = torch.where(mirrored, images.flip(3), images)
    images = torch.where(turned, images.flip(2), images)
    rest = torch.cat([torch.zeros_like(labels[:, :2]), labels[:, 2:]], dim=1)
    height, width = images.shape[2:]
    # Map from each pixel of the result back to a point of the image, both in units of half the image size.
    half = torch.tensor([width / 2, height / 2, 1], dtype=torch.float64, device=labels.device)
    back = torch.linalg.inv_ex(matrix(rest, (height, width))).inverse * half / half[:, None]
    # Computed in float64, which autocast does not change.
    grid = F.affine_grid(back[:, :2], list(images.shape), align_corners=False).to(images.dtype)
    warped = F.grid_sample(images, grid, mode="bicubic", padding_mode="reflection", align_corners=False)
    return torch.where((rest != 0).any(1)[:, None, None, None], warped, images)


def _stack(rows: list[list[Tensor]]) -> Tensor:
    return torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)
