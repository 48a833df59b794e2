"""The capabilities of a family: its samplers, its likelihood, its pictures, and what it trains on."""

from dataclasses import dataclass
from typing import Literal

from lit_gen.core.errors import UserError, class_names
from lit_gen.families.settings import LikelihoodMethod, Sampler


@dataclass(frozen=True)
class Capabilities:
    """The abilities of a family, as a class attribute of its models.

    A subclass states the difference: `capabilities = replace(VAE.capabilities, pictures=("reconstructions",))`. A first
    stage or a constructor argument can narrow the capabilities of one model, which then has a record of its own.

    Attributes:
        samplers: Samplers that `sample` accepts; empty for a family with a single way to sample.
        likelihood_kind: What `log_likelihood` returns of the log-density or log-mass that the model defines: its exact
            value, an estimate, or a lower bound. None for a family without a likelihood. The kind of a likelihood
            method takes precedence.
        likelihood_methods: Methods that `log_likelihood` accepts; empty for a family with a single way to compute it.
        dequantisation: How 8-bit values become points of a density, which makes its likelihood a lower bound; none for
            a model that gives masses to the values. A likelihood method can replace it.
        learns: What the family can be trained on: images alone, the codes of a first stage, or also its latents.
        pictures: Names of the pictures that `picture` makes of given images.
        sampled_pictures: Those of `pictures` that are sampled, and so accept a sampler.
        float32_only: Whether training needs float32 weights, so that precisions such as bf16-true are refused.
    """

    samplers: tuple[type[Sampler], ...] = ()
    likelihood_kind: Literal["exact", "estimate", "bound"] | None = None
    likelihood_methods: tuple[type[LikelihoodMethod], ...] = ()
    dequantisation: Literal["uniform", "variational", "none"] = "none"
    learns: Literal["images", "codes", "latents"] = "images"
    pictures: tuple[str, ...] = ()
    sampled_pictures: tuple[str, ...] = ()
    float32_only: bool = False

    def check_sampler(self, family: str, sampler: Sampler | None) -> None:
        """Raise a UserError unless the family, whose name the message states, accepts the sampler."""
        if sampler is None or isinstance(sampler, self.samplers):
            return
        if not self.samplers:
            raise UserError(f"sampler: {family} does not use a sampler; remove --sampler")
        raise UserError(f"sampler: {family} does not support {type(sampler).__name__}; {_one_of(self.samplers)}")

    def check_likelihood_method(self, family: str, method: LikelihoodMethod | None) -> None:
        """Raise a UserError unless the family, whose name the message states, accepts the likelihood method."""
        if method is None or isinstance(method, self.likelihood_methods):
            return
        if not self.likelihood_methods:
            raise UserError(
                f"evaluation.likelihood_method: {family} has a single way to compute its likelihood; remove the key"
            )
        raise UserError(
            f"evaluation.likelihood_method: {family} does not support {type(method).__name__}; "
            f"{_one_of(self.likelihood_methods)}"
        )

    def check_picture(self, family: str, name: str, sampler: Sampler | None) -> None:
        """Raise a UserError unless the family has the picture, and samples it if a sampler is given."""
        if name not in self.pictures:
            remedy = f"choose one of {', '.join(self.pictures)}" if self.pictures else "remove --picture"
            raise UserError(f"--picture: {family} has no picture {name}; {remedy}")
        if sampler is not None and name not in self.sampled_pictures:
            raise UserError(f"sampler: the picture {name} of {family} does not use a sampler; remove --sampler")


def _one_of(bases: tuple[type, ...]) -> str:
    """Return the remedy that lists the classes to choose from."""
    names = {name for base in bases for name in class_names(base)}
    return f"choose one of {', '.join(sorted(names))}, or remove it"
