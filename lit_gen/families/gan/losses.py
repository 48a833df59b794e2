r"""Losses of generative adversarial networks, and penalties on the gradient of the discriminator.

A discriminator D gives each image one real score: the logit of "this image is real" or, for a critic, a height. With
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

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

DiscriminatorLoss = Callable[[Tensor, Tensor], Tensor]
GeneratorLoss = Callable[[Tensor], Tensor]


def cross_entropy_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return E softplus(-D(x)) + E softplus(D(G(z))), given the scores (N,) of real and of generated images."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def minimax_generator_loss(fake: Tensor) -> Tensor:
    """Return E log(1 - sigmoid(D(G(z)))); its gradient vanishes when D is sure that the images are generated."""
    return -F.softplus(fake).mean()


def non_saturating_generator_loss(fake: Tensor) -> Tensor:
    """Return -E log sigmoid(D(G(z)))."""
    return F.softplus(-fake).mean()


def hinge_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return E max(0, 1 - D(x)) + E max(0, 1 + D(G(z)))."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def least_squares_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return E (D(x) - 1)^2 / 2 + E D(G(z))^2 / 2."""
    return 0.5 * (real - 1).square().mean() + 0.5 * fake.square().mean()


def least_squares_generator_loss(fake: Tensor) -> Tensor:
    """Return E (D(G(z)) - 1)^2 / 2."""
    return 0.5 * (fake - 1).square().mean()


def wasserstein_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return E D(G(z)) - E D(x): minus the Wasserstein distance if D is the best of all 1-Lipschitz functions."""
    return fake.mean() - real.mean()


def wasserstein_generator_loss(fake: Tensor) -> Tensor:
    """Return -E D(G(z)), which is also the generator's loss in the hinge pair."""
    return -fake.mean()


LOSSES: dict[str, tuple[DiscriminatorLoss, GeneratorLoss]] = {
    "minimax": (cross_entropy_discriminator_loss, minimax_generator_loss),
    "non_saturating": (cross_entropy_discriminator_loss, non_saturating_generator_loss),
    "hinge": (hinge_discriminator_loss, wasserstein_generator_loss),
    "least_squares": (least_squares_discriminator_loss, least_squares_generator_loss),
    "wasserstein": (wasserstein_discriminator_loss, wasserstein_generator_loss),
}
"""Loss of the discriminator, given the scores of real and generated images, and loss of the generator."""

BOUNDARIES = {"minimax": 0.0, "non_saturating": 0.0, "hinge": 0.0, "least_squares": 0.5}
"""Score above which a discriminator takes an image for real; the heights of a critic have no such boundary."""


def gradient_penalty(critic: Callable[..., Tensor], real: Tensor, fake: Tensor, *conditions: Tensor | None) -> Tensor:
    """Return E (|grad D(x_hat)|_2 - 1)^2 with x_hat = u x + (1 - u) G(z), u ~ U(0, 1) for each image, with its graph.

    The norm runs over all pixels and channels of an image. Paper: Gulrajani et al. 2017,
    https://arxiv.org/abs/1704.00028

    Args:
        critic: Called with images and the conditions, returns scores (N,).
        real: Real images (N, C, H, W).
        fake: Generated images (N, C, H, W).
        *conditions: Further inputs of the critic, such as labels.
    """
    u = torch.rand(len(real), *[1] * (real.dim() - 1), device=real.device, dtype=real.dtype)
    between = (u * real + (1 - u) * fake).requires_grad_()
    out: Tensor = (_gradient(critic(between, *conditions), between).norm(dim=1) - 1).square().mean()
    return out


def r1_penalty(scores: Tensor, real: Tensor, gamma: float) -> Tensor:
    """Return gamma / 2 E |grad D(x)|_2^2 over real images, with its graph.

    Lazy regularization, at every k-th step with k times the weight, does the same at a fraction of the cost (Karras et
    al. 2019, https://arxiv.org/abs/1912.04958). Paper: Mescheder et al. 2018, https://arxiv.org/abs/1801.04406

    Args:
        scores: D(x), (N,).
        real: x (N, C, H, W), which must have required a gradient before D was applied to it.
        gamma: Weight.
    """
    return 0.5 * gamma * _gradient(scores, real).square().sum(1).mean()


def _gradient(scores: Tensor, images: Tensor) -> Tensor:
    """Return the gradient (N, C H W) of each score with respect to its own image, with its graph."""
    (gradient,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
    return gradient.flatten(1)


def wasserstein_of_gap(gap: Tensor, weight: float) -> Tensor:
    """Return the Wasserstein distance W that belongs to the gap E D(x) - E D(G(z)) of a critic with gradient penalty.

    Scaling the best 1-Lipschitz critic by 1 + e costs weight e^2 and gains e W. The best critic under the penalty
    therefore has e = W / (2 weight) and gap = W + W^2 / (2 weight), which is solved for W, with the sign of the gap.
    """
    return gap.sign() * weight * ((1 + 2 * gap.abs() / weight).sqrt() - 1)
