r"""What generative adversarial networks minimise, and what keeps the discriminator honest.

A discriminator D gives each image one real score, the logit of "this image is real" or, for a critic, a height. With
x a real image and G(z) a generated one, the losses are

| loss | D minimises | G minimises |
| --- | --- | --- |
| minimax | E softplus(-D(x)) + E softplus(D(G(z))) | -E softplus(D(G(z))) |
| non_saturating | the same | E softplus(-D(G(z))) |
| hinge | E max(0, 1 - D(x)) + E max(0, 1 + D(G(z))) | -E D(G(z)) |
| least_squares | E (D(x) - 1)^2 / 2 + E D(G(z))^2 / 2 | E (D(G(z)) - 1)^2 / 2 |
| wasserstein | E D(G(z)) - E D(x) | -E D(G(z)) |

softplus(-D) = -log sigmoid(D). Papers: Goodfellow et al. 2014, https://arxiv.org/abs/1406.2661 (the first two); Lim and
Ye 2017, https://arxiv.org/abs/1705.02894 (hinge); Mao et al. 2016, https://arxiv.org/abs/1611.04076 (least squares);
Arjovsky et al. 2017, https://arxiv.org/abs/1701.07875 (Wasserstein).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_gen.core.accumulation import SumOverParts
from lit_gen.core.errors import UserError

DiscriminatorLoss = Callable[[Tensor, Tensor], Tensor]
GeneratorLoss = Callable[[Tensor], Tensor]


def cross_entropy_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """E softplus(-D(x)) + E softplus(D(G(z))), from the scores (N,) of real and of generated images."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def minimax_generator_loss(fake: Tensor) -> Tensor:
    """E log(1 - sigmoid(D(G(z)))); its gradient vanishes where D is sure that the images are generated."""
    return -F.softplus(fake).mean()


def non_saturating_generator_loss(fake: Tensor) -> Tensor:
    """-E log sigmoid(D(G(z)))."""
    return F.softplus(-fake).mean()


def hinge_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """E max(0, 1 - D(x)) + E max(0, 1 + D(G(z)))."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def least_squares_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """E (D(x) - 1)^2 / 2 + E D(G(z))^2 / 2."""
    return 0.5 * (real - 1).square().mean() + 0.5 * fake.square().mean()


def least_squares_generator_loss(fake: Tensor) -> Tensor:
    """E (D(G(z)) - 1)^2 / 2."""
    return 0.5 * (fake - 1).square().mean()


def wasserstein_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """E D(G(z)) - E D(x), minus the Wasserstein distance where D is the best of all 1-Lipschitz functions."""
    return fake.mean() - real.mean()


def wasserstein_generator_loss(fake: Tensor) -> Tensor:
    """-E D(G(z)); the generator's part of the hinge loss as well."""
    return -fake.mean()


LOSSES: dict[str, tuple[DiscriminatorLoss, GeneratorLoss]] = {
    "minimax": (cross_entropy_discriminator_loss, minimax_generator_loss),
    "non_saturating": (cross_entropy_discriminator_loss, non_saturating_generator_loss),
    "hinge": (hinge_discriminator_loss, wasserstein_generator_loss),
    "least_squares": (least_squares_discriminator_loss, least_squares_generator_loss),
    "wasserstein": (wasserstein_discriminator_loss, wasserstein_generator_loss),
}
"""The loss of the discriminator, from the scores of real and generated images, and that of the generator."""

BOUNDARIES = {"minimax": 0.0, "non_saturating": 0.0, "hinge": 0.0, "least_squares": 0.5}
"""The score above which a discriminator takes an image for real; a critic's heights have none."""


def gradient_penalty(critic: Callable[..., Tensor], real: Tensor, fake: Tensor, *conditions: Tensor | None) -> Tensor:
    """E (|grad D(x_hat)|_2 - 1)^2 with x_hat = u x + (1 - u) G(z), u uniform for each image; a scalar with a graph.

    The norm is over all pixels and channels of an image. Paper: Gulrajani et al. 2017,
    https://arxiv.org/abs/1704.00028

    Args:
        critic: Called with images and the conditions, gives scores (N,).
        real: (N, C, H, W).
        fake: (N, C, H, W).
        *conditions: What else the critic takes, such as labels.
    """
    u = torch.rand(len(real), *[1] * (real.dim() - 1), device=real.device, dtype=real.dtype)
    between = (u * real + (1 - u) * fake).requires_grad_()
    penalty: Tensor = (_gradient(critic(between, *conditions), between).norm(dim=1) - 1).square().mean()
    return penalty


def r1_penalty(scores: Tensor, real: Tensor, gamma: float) -> Tensor:
    """gamma / 2 E |grad D(x)|_2^2 over real images; a scalar with a graph.

    Applied lazily, at every k-th step with k times the weight, it does the same at a fraction of the cost (Karras et
    al. 2019, https://arxiv.org/abs/1912.04958). Paper: Mescheder et al. 2018, https://arxiv.org/abs/1801.04406

    Args:
        scores: D(x), (N,).
        real: x (N, C, H, W), which must have required a gradient before D saw it.
        gamma: Weight.
    """
    return 0.5 * gamma * _gradient(scores, real).square().sum(1).mean()


def _gradient(scores: Tensor, images: Tensor) -> Tensor:
    """The gradient of each score by its own image, (N, C H W), itself to be differentiated."""
    (gradient,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
    return gradient.flatten(1)


def wasserstein_of_gap(gap: Tensor, weight: float) -> Tensor:
    """The Wasserstein distance behind the gap E D(x) - E D(G(z)) of a critic with gradient penalty.

    Scaling the best 1-Lipschitz critic by 1 + e costs weight e^2 and gains e W, so that the best critic under the
    penalty has e = W / (2 weight) and gap = W + W^2 / (2 weight); here solved for W, with the sign of the gap.
    """
    return gap.sign() * weight * ((1 + 2 * gap.abs() / weight).sqrt() - 1)


# --- augmentation of what the discriminator sees ---


def color(images: Tensor) -> Tensor:
    """Random brightness (+ U(-1/2, 1/2)), saturation (times U(0, 2)) and contrast (times U(1/2, 3/2))."""
    brightness, saturation, contrast = torch.rand(3, len(images), 1, 1, 1, device=images.device, dtype=images.dtype)
    images = images + (brightness - 0.5)
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * (2 * saturation)
    mean = images.mean((1, 2, 3), keepdim=True)
    images = mean + (images - mean) * (contrast + 0.5)
    return images


def translation(images: Tensor, ratio: float = 0.125) -> Tensor:
    """Random shift by whole pixels, at most the ratio of the size; zeros come in at the border."""
    num, _, height, width = images.shape
    rows, columns = (_shifted(num, size, ratio, images.device) for size in (height, width))
    padded = F.pad(images, (1, 1, 1, 1))
    each = torch.arange(num, device=images.device)[:, None, None]
    return padded[each, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _shifted(num: int, size: int, ratio: float, device: torch.device) -> Tensor:
    """Rows of an image padded by 1 that the rows of its shifted copy come from, (num, size)."""
    most = int(size * ratio + 0.5)
    shift = torch.randint(-most, most + 1, (num, 1), device=device)
    return (torch.arange(1, size + 1, device=device) + shift).clamp(0, size + 1)


def cutout(images: Tensor, ratio: float = 0.5) -> Tensor:
    """Zeros in a random rectangle of the ratio of height and width, which may reach over the border."""
    num, _, height, width = images.shape
    rows, columns = (_covered(num, size, ratio, images.device) for size in (height, width))
    return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)


def _covered(num: int, size: int, ratio: float, device: torch.device) -> Tensor:
    length = int(size * ratio + 0.5)
    first = torch.randint(0, size + 1 - length % 2, (num, 1), device=device) - length // 2
    position = torch.arange(size, device=device)
    return (position >= first) & (position < first + length)


TRANSFORMS: dict[str, Callable[[Tensor], Tensor]] = {"color": color, "translation": translation, "cutout": cutout}


class Augmentation(nn.Module, ABC):
    """Random differentiable transforms of all images that a discriminator sees, real and generated."""

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Transforms each image (N, C, H, W) by itself."""

    def observe(self, scores: Tensor, total: Callable[[Tensor], Tensor]) -> None:  # noqa: B027
        """Learns of the scores of real images in one step, or in a part of it; by default nothing.

        Args:
            scores: (N,), less the boundary of the loss: positive where an image is taken for real.
            total: Adds up an integer tensor over processes.
        """


class DiffAugment(Augmentation):
    """Differentiable augmentation: the transforms of a policy, one after another.

    Paper: Zhao et al. 2020, https://arxiv.org/abs/2006.10738

    Args:
        policy: Of color, translation and cutout, those to apply.

    Raises:
        UserError: the policy is empty or names another transform.
    """

    def __init__(
        self, policy: Sequence[Literal["color", "translation", "cutout"]] = ("color", "translation", "cutout")
    ) -> None:
        super().__init__()
        if not policy or set(policy) - TRANSFORMS.keys():
            raise UserError(f"augment.policy: {list(policy)} is not of {', '.join(TRANSFORMS)}; null is none")
        self.policy = tuple(policy)

    def forward(self, images: Tensor) -> Tensor:
        for name in self.policy:
            images = TRANSFORMS[name](images)
        return images


class AdaptiveAugment(DiffAugment):
    """Augmentation whose strength follows how much the discriminator overfits.

    Each transform of the policy is applied to each image with the probability p. Every few steps p moves up if
    r = E sign(D(x) - b) over real images is above its target, else down, so fast that it crosses [0, 1] in `images`
    images. b is the boundary of the loss: 1/2 for least squares, else 0.

    Its state is whole numbers: the same in all processes, and exact in any precision of training. Paper: Karras et al.
    2020, https://arxiv.org/abs/2006.06676 (with other transforms)

    Args:
        policy: Of color, translation and cutout, those to apply.
        target: Of r.
        images: Images in which p goes from 0 to 1.
        every: Steps between two changes of p.

    Raises:
        UserError: the policy is empty or names another transform, or a number is out of range.
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
            raise UserError(f"augment.target: {target} is not in (-1, 1), where the mean of signs lies")
        if images < 1 or every < 1:
            raise UserError(f"augment: images ({images}) and every ({every}) must be at least 1")
        self.target = target
        self.images = images
        self.every = every
        for name in ("position", "signs", "seen", "steps"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))
        self.over_parts = SumOverParts()

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
        of_step = self.over_parts(counts)
        if of_step is None:
            return
        signs, seen = total(of_step)
        self.signs += signs
        self.seen += seen
        self.steps += 1
        moves = (self.steps % self.every == 0).long()  # no branch, which would wait for the device
        direction = (self.signs - self.target * self.seen).sign().long()
        self.position.copy_((self.position + moves * direction * self.seen).clamp(0, self.images))
        self.signs *= 1 - moves
        self.seen *= 1 - moves
