"""Differentiable augmentation of all images that a discriminator sees, real and generated.

The generator does not learn the transforms, because real images undergo them too. Papers: Zhao et al. 2020,
https://arxiv.org/abs/2006.10738 (DiffAugment); Karras et al. 2020, https://arxiv.org/abs/2006.06676 (adaptive strength)
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_gen.core.accumulation import SumOverMicroBatches
from lit_gen.core.errors import UserError


def color(images: Tensor) -> Tensor:
    """Apply random brightness (+ U(-1/2, 1/2)), saturation (times U(0, 2)) and contrast (times U(1/2, 3/2))."""
    brightness, saturation, contrast = torch.rand(3, len(images), 1, 1, 1, device=images.device, dtype=images.dtype)
    images = images + (brightness - 0.5)
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * (2 * saturation)
    mean = images.mean((1, 2, 3), keepdim=True)
    out: Tensor = mean + (images - mean) * (contrast + 0.5)
    return out


def translation(images: Tensor, ratio: float = 0.125) -> Tensor:
    """Shift each image by a random number of whole pixels, at most `ratio` of its size, and fill with zeros."""
    num, _, height, width = images.shape
    rows, columns = (_shifted(num, size, ratio, images.device) for size in (height, width))
    padded = F.pad(images, (1, 1, 1, 1))
    each = torch.arange(num, device=images.device)[:, None, None]
    return padded[each, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _shifted(num: int, size: int, ratio: float, device: torch.device) -> Tensor:
    """Return the source row, in an image padded by 1, of each row of its shifted copy, (num, size)."""
    most = int(size * ratio + 0.5)
    shift = torch.randint(-most, most + 1, (num, 1), device=device)
    return (torch.arange(1, size + 1, device=device) + shift).clamp(0, size + 1)


def cutout(images: Tensor, ratio: float = 0.5) -> Tensor:
    """Zero a random rectangle of `ratio` times height and width, which may extend over the border."""
    num, _, height, width = images.shape
    rows, columns = (_covered(num, size, ratio, images.device) for size in (height, width))
    return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)


def _covered(num: int, size: int, ratio: float, device: torch.device) -> Tensor:
    """Return a mask (num, size) of the rows that the rectangle of each image covers."""
    length = int(size * ratio + 0.5)
    first = torch.randint(0, size + 1 - length % 2, (num, 1), device=device) - length // 2
    position = torch.arange(size, device=device)
    return (position >= first) & (position < first + length)


TRANSFORMS: dict[str, Callable[[Tensor], Tensor]] = {"color": color, "translation": translation, "cutout": cutout}


class Augmentation(nn.Module, ABC):
    """Random differentiable transforms of all images that a discriminator sees, real and generated."""

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Transform each image (N, C, H, W) independently of the others."""

    def observe(self, scores: Tensor, total: Callable[[Tensor], Tensor]) -> None:  # noqa: B027
        """Observe the scores of real images in one step, or in one micro-batch of it; does nothing by default.

        Args:
            scores: Scores (N,) minus the boundary of the loss: positive for an image that is taken for real.
            total: Sums an integer tensor over processes.
        """


class DiffAugment(Augmentation):
    """Differentiable augmentation: the transforms of a policy, one after another.

    Paper: Zhao et al. 2020, https://arxiv.org/abs/2006.10738

    Args:
        policy: Transforms to apply: any of color, translation and cutout.

    Raises:
        UserError: If the policy is empty or names another transform.
    """

    def __init__(
        self, policy: Sequence[Literal["color", "translation", "cutout"]] = ("color", "translation", "cutout")
    ) -> None:
        super().__init__()
        if not policy or set(policy) - TRANSFORMS.keys():
            raise UserError(
                f"model.augment.policy: {list(policy)} is not a list of transforms; choose from "
                f"{', '.join(TRANSFORMS)}, or set model.augment to null for no augmentation"
            )
        self.policy = tuple(policy)

    def forward(self, images: Tensor) -> Tensor:
        for name in self.policy:
            images = TRANSFORMS[name](images)
        return images


class AdaptiveAugment(DiffAugment):
    """Augmentation whose strength follows the overfitting of the discriminator.

    Each transform of the policy is applied to each image with probability p. Every few steps p rises if
    r = E sign(D(x) - b) over real images is above its target, and otherwise falls. It crosses [0, 1] in `images`
    images. b is the boundary of the loss: 1/2 for least squares, otherwise 0.

    The state consists of integers: it is the same in all processes, and exact in any training precision. Paper: Karras
    et al. 2020, https://arxiv.org/abs/2006.06676 (with other transforms)

    Args:
        policy: Transforms to apply: any of color, translation and cutout.
        target: Target of r, in (-1, 1).
        images: Number of images in which p goes from 0 to 1.
        every: Number of steps between two changes of p.

    Raises:
        UserError: If the policy is empty or names another transform, or if a number is out of range.
    """

    seen: Tensor
    signs: Tensor
    steps: Tensor
    position: Tensor

    def __init__(
        self,
        policy: Sequence[Literal["color", "translation", "cutout"]] = ("color", "translation", "cutout"),
        target: float = 0.6,
        images: int = 500_000,
        every: int = 4,
    ) -> None:
        super().__init__(policy)
        if not -1 < target < 1:
            raise UserError(
                f"model.augment.target: {target} is not a possible mean of signs; give a number above -1 and below 1"
            )
        for name, value in (("images", images), ("every", every)):
            if value < 1:
                raise UserError(f"model.augment.{name}: {value} is not a positive number; give at least 1")
        self.target = target
        self.images = images
        self.every = every
        for name in ("position", "signs", "seen", "steps"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))
        self.over_micro_batches = SumOverMicroBatches()

    @property
    def p(self) -> Tensor:
        """Probability of each transform."""
        return self.position / self.images

    def forward(self, images: Tensor) -> Tensor:
        for name in self.policy:
            chosen = torch.rand(len(images), device=images.device) < self.p
            images = torch.where(chosen[:, None, None, None], TRANSFORMS[name](images), images)
        return images

    @torch.no_grad()
    def observe(self, scores: Tensor, total: Callable[[Tensor], Tensor]) -> None:
        counts = torch.stack([scores.sign().long().sum(), torch.tensor(len(scores), device=scores.device)])
        of_step = self.over_micro_batches(counts)
        if of_step is None:
            return
        signs, seen = total(of_step)
        self.signs += signs
        self.seen += seen
        self.steps += 1
        moves = (self.steps % self.every == 0).long()  # no branch, which would synchronize with the device
        direction = (self.signs - self.target * self.seen).sign().long()
        self.position.copy_((self.position + moves * direction * self.seen).clamp(0, self.images))
        self.signs *= 1 - moves
        self.seen *= 1 - moves
