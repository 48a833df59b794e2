r"""Guidance: a denoiser D led away from what a weaker one D_w answers at the same x.

    D_guided = D_w + w (D - D_w),

so that w = 0 is the weaker one, w = 1 the denoiser itself, and above 1 goes beyond it. The same then holds of eps_hat,
the score and the velocity, which are linear in D: it does not matter which of them is guided. The guided score is that
of p(x_t)^w / p_w(x_t)^(w - 1).

- Classifier-free guidance: D knows the class, D_w is the same network without a class (Ho and Salimans 2022,
  https://arxiv.org/abs/2207.12598).
- Autoguidance: D_w is a smaller or less trained network of the same data and classes (Karras et al. 2024,
  https://arxiv.org/abs/2406.02507).
- Both may be confined to an interval of noise levels (Kynkaanniemi et al. 2024, https://arxiv.org/abs/2404.07724).
"""

import math

import torch
from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.families.diffusion.denoisers import Denoiser, NetworkDenoiser


class Guidance:
    """How a sampler guides the denoiser of a model: by itself without a class, or by the model of another run.

    A guided evaluation is two evaluations of a network, and counts as two; where the weight is 1 and outside of the
    interval there is only one. A denoiser that clamps D to the range of the data is clamped after guidance as well.

    Args:
        weight: w; 1 is none.
        interval: noise levels sigma / alpha, above the first and up to the second, that are guided.
        run: directory of the run that holds the weaker model, for autoguidance. Default: classifier-free guidance, by
            the model itself without a class, which needs a model trained with `label_drop`.

    Raises:
        UserError: the weight is not finite, or the interval is empty.
    """

    def __init__(
        self, weight: float = 1.0, interval: tuple[float, float] = (0.0, math.inf), run: str | None = None
    ) -> None:
        if not math.isfinite(weight):
            raise UserError(f"sampler.guidance.weight: {weight} is not a finite number")
        low, high = interval
        if not 0 <= low < high:
            raise UserError(
                f"sampler.guidance.interval: there is no noise level sigma / alpha above {low} and up to {high}"
            )
        self.weight = weight
        self.interval = (low, high)
        self.run = run
        self.weaker: Denoiser | None = None
        """The denoiser of the weaker model; set by whoever can read a run."""

    @property
    def classifier_free(self) -> bool:
        """Whether the model without a class is asked."""
        return self.weight != 1 and self.run is None and self.weaker is None

    @property
    def evaluations(self) -> int:
        """The network evaluations, at most, of one call of the guided denoiser."""
        return 1 if self.weight == 1 else 2

    def __call__(self, denoiser: Denoiser, labels: Tensor | None) -> Denoiser:
        """The guided denoiser, given its labels; all evaluations count at the denoiser.

        Raises:
            UserError: there are no labels to leave out, or the weaker model has not been loaded.
        """
        given = denoiser.given(labels)
        if self.weight == 1:
            return given
        if self.weaker is not None:
            weaker = _CountedBy(denoiser, self.weaker).given(labels)
        elif self.run is not None:
            raise UserError(f"sampler.guidance.run: the model of {self.run} was not loaded; set Guidance.weaker to it")
        elif labels is not None:
            weaker = denoiser.given(torch.full_like(labels, -1))
        else:
            raise UserError(
                "sampler.guidance: without a weaker run, guidance is by the model without a class, and this one has "
                "none; train with --model.class_conditional true --model.label_drop 0.1, or name a run in "
                "sampler.guidance.run"
            )
        return _Guided(self, given, weaker, denoiser.clip if isinstance(denoiser, NetworkDenoiser) else None)


class _Guided(Denoiser):
    def __init__(self, guidance: Guidance, denoiser: Denoiser, weaker: Denoiser, clip: float | None) -> None:
        self.guidance = guidance
        self.denoiser = denoiser
        self.weaker = weaker
        self.clip = clip

    def denoise(self, x: Tensor, alpha: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        return self.denoise_with_variance(x, alpha, sigma, labels)[0]

    def denoise_with_variance(
        self, x: Tensor, alpha: Tensor, sigma: Tensor, labels: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        denoised, between = self.denoiser.with_variance(x, alpha, sigma)
        alpha, sigma = torch.broadcast_tensors(alpha, sigma)
        low, high = self.guidance.interval
        inside = (low < sigma / alpha) & (sigma / alpha <= high)
        if inside.all():
            denoised = self._extrapolated(denoised, self.weaker(x, alpha, sigma))
        elif inside.any():  # images at times of their own
            rows = inside.nonzero()[:, 0]
            weak = self.weaker.part(rows, len(x))(x[rows], alpha[rows], sigma[rows])
            denoised = denoised.index_copy(0, rows, self._extrapolated(denoised[rows], weak))
        return denoised, between

    def _extrapolated(self, denoised: Tensor, weak: Tensor) -> Tensor:
        guided = weak + self.guidance.weight * (denoised - weak)
        return guided if self.clip is None else guided.clamp_(-self.clip, self.clip)

    def part(self, rows: Tensor, num: int) -> Denoiser:
        return _Guided(self.guidance, self.denoiser.part(rows, num), self.weaker.part(rows, num), self.clip)


class _CountedBy(Denoiser):
    """A denoiser whose evaluations count at another one."""

    def __init__(self, counter: Denoiser, denoiser: Denoiser, share: float = 1.0) -> None:
        self.counter = counter
        self.denoiser = denoiser
        self.share = share

    def denoise(self, x: Tensor, alpha: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        self.counter.evaluations += self.share
        return self.denoiser(x, alpha, sigma, labels)

    def part(self, rows: Tensor, num: int) -> Denoiser:
        return _CountedBy(self.counter, self.denoiser, self.share * len(rows) / num)
