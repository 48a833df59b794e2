"""The families of generative models, one folder each: its mathematics, its networks, its models, its samplers.

`base` is the base class of all models, `capabilities` the record of what a family can do, `clock` the progress of a
training run, and `settings` how a trained model is sampled and scored.
"""

import inspect

from lit_gen.families import autoregressive, diffusion, flows, gan, vae, vq
from lit_gen.families.base import GenerativeModel

__all__ = ["autoregressive", "diffusion", "flows", "gan", "list_models", "vae", "vq"]

FAMILIES = (autoregressive, diffusion, flows, gan, vae, vq)


def list_models() -> dict[str, type[GenerativeModel]]:
    """Return the models of all families by name."""
    public = (value for family in FAMILIES for value in vars(family).values() if isinstance(value, type))
    models = (cls for cls in public if issubclass(cls, GenerativeModel) and not inspect.isabstract(cls))
    return {cls.__name__: cls for cls in models}
