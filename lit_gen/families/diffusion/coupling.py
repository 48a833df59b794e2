"""Couplings: how training images are paired with noise.

Flow matching learns the mean velocity of straight lines between noise and image. The lines of independent pairs cross.
Pairs of nearby points make the lines nearly parallel, so the learned paths are straighter and need fewer steps.
"""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


@torch.no_grad()
def optimal_transport(images: Tensor, noise: Tensor, labels: Tensor | None = None) -> Tensor:
    """Return the noise permuted to minimise sum_i |images_i - noise_i|^2, the optimal transport between two batches.

    Since |x|^2 and |eps|^2 do not depend on the order, the assignment maximises sum_i <x_i, eps_i>. It is exact and
    takes O(B^3) time, a few milliseconds at B = 128. Couplings of small batches are biased towards independence; the
    marginals are right at every B.

    With labels, noise is permuted only within each class. A permutation across classes would assign each class the
    noise near its images, so the noise of a class would not be normal in training as it is in sampling.

    Papers: Tong et al. 2023, https://arxiv.org/abs/2302.00482; Pooladian et al. 2023, https://arxiv.org/abs/2304.14772

    Args:
        images: Images (B, ...).
        noise: Noise (B, ...), in the shape of the images.
        labels: Classes (B,) of the images, for a conditional model.
    """
    classes = torch.zeros(len(images), dtype=torch.int64) if labels is None else labels.cpu()
    order = torch.arange(len(images))
    for label in classes.unique():
        rows = (classes == label).nonzero()[:, 0]
        similarity = images[rows].flatten(1).double() @ noise[rows].flatten(1).double().T
        _, partner = linear_sum_assignment(similarity.cpu().numpy(), maximize=True)
        order[rows] = rows[torch.from_numpy(partner)]
    return noise[order.to(noise.device)]
