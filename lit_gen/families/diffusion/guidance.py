r"""Guidance: extrapolation of a denoiser D away from a weaker denoiser D_w at the same x.

    D_guided = D_w + w (D - D_w),

so w = 0 gives the weaker denoiser, w = 1 the denoiser itself, and w > 1 extrapolates. Guiding eps_hat, the score or the
velocity is equivalent, because they are affine in D. The guided score is that of p(x_t)^w / p_w(x_t)^(w - 1).

- Classifier-free guidance: D is conditioned on the class, and D_w is the same network without a class (Ho and Salimans
  2022, https://arxiv.org/abs/2207.12598).
- Autoguidance: D_w is a smaller or less trained network for the same data and classes (Karras et al. 2024,
  https://arxiv.org/abs/2406.02507).
- Both can be limited to an interval of noise levels (Kynkaanniemi et al. 2024, https://arxiv.org/abs/2404.07724).
"""

import copy
import math

import torch
from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.families.diffusion.denoisers import Denoiser, NetworkDenoiser


class Guidance:
    """Guidance of a sampler's denoiser by the same model without a class, or by the model of another run.

    A guided evaluation takes and counts as two network evaluations. With weight 1, or outside the interval, there is
    only one. If the denoiser clamps D to the range of the data, the guided D is clamped as well.

    Args:
        weight: Guidance weight w; 1 disables guidance.
        interval: Guided noise levels sigma / alpha, above the first value and up to the second.
        run: Directory of the run with the weaker model, for autoguidance. Default: classifier-free guidance by the
            model itself without a class, which needs a model trained with `label_drop`.

    Raises:
        UserError: If the weight is not finite, or the interval is empty.
    """

    def __init__(
        self, weight: float = 1.0, interval: tuple[float, float] = (0.0, math.inf), run: str | None = None
    ) -> None:
        if not math.isfinite(weight):
            raise UserError(f"sampler.guidance.weight: {weight} is not a finite number; give a finite weight")
        low, high = interval
        if not 0 <= low < high:
            raise UserError(
                f"sampler.guidance.interval: no noise level sigma / alpha is above {low} and at most {high}; give two "
                "numbers with 0 <= low < high"
            )
        self.weight = weight
        self.interval = (low, high)
        self.run = run
        self.weaker: Denoiser | None = None
        """Denoiser of the weaker model, for autoguidance; `by` gives it."""

    def by(self, weaker: Denoiser, run: str | None = None) -> "Guidance":
        """Return this guidance with the denoiser of a weaker model.

        Args:
            weaker: The denoiser.
            run: Name of its run in results; this guidance's `run` if not given.
        """
        loaded = copy.copy(self)
        loaded.weaker = weaker
        loaded.run = self.run if run is None else run
        return loaded

    @property
    def classifier_free(self) -> bool:
        """Whether the guidance evaluates the model without a class."""
        return self.weight != 1 and self.run is None and self.weaker is None

    @property
    def evaluations(self) -> int:
        """Maximum number of network evaluations per call of the guided denoiser."""
        return 1 if self.weight == 1 else 2

    def __call__(self, denoiser: Denoiser, labels: Tensor | None) -> Denoiser:
        """Return the guided denoiser with fixed labels; all evaluations count towards `denoiser`.

        Args:
            denoiser: Denoiser of the model.
            labels: Classes (N,), or None for an unconditional model.

        Raises:
            UserError: If there are no labels to drop, or the weaker model has not been loaded.
        """
        given = denoiser.given(labels)
        if self.weight == 1:
            return given
        if self.weaker is not None:
            weaker = _CountedBy(denoiser, self.weaker).given(labels)
        elif self.run is not None:
            raise UserError(
                f"sampler.guidance.run: the model of {self.run} is not loaded; use Guidance.by with its denoiser"
            )
        elif labels is not None:
            weaker = denoiser.given(torch.full_like(labels, -1))
        else:
            raise UserError(
                "sampler.guidance: without a weaker run, guidance drops the class, and this model has no classes; "
                "train with --model.class_conditional true --model.label_drop 0.1, or name a run in "
                "sampler.guidance.run"
            )
        return _Guided(self, given, weaker, denoiser.clip if isinstance(denoiser, NetworkDenoiser) else None)


class _Guided(Denoiser):
    """A denoiser extrapolated away from a weaker denoiser."""

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
        elif inside.any():  # per-image times
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
    """A denoiser whose evaluations count towards another denoiser."""

    def __init__(self, counter: Denoiser, denoiser: Denoiser, share: float = 1.0) -> None:
        self.counter = counter
        self.denoiser = denoiser
        self.share = share

    def denoise(self, x: Tensor, alpha: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        self.counter.evaluations += self.share
        return self.denoiser(x, alpha, sigma, labels)

    def part(self, rows: Tensor, num: int) -> Denoiser:
        return _CountedBy(self.counter, self.denoiser, self.share * len(rows) / num)
