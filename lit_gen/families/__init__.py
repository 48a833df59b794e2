"""The families of generative models, one folder each: its mathematics, its networks, its models, its samplers.

Each folder has a README that lists its files. What the families share:

| file | content |
| --- | --- |
| `base` | `GenerativeModel`, the interface of every model |
| `training_steps` | the half of it that trains: optimizer, warm-up, logs, state in a checkpoint |
| `pictures` | the half of it that makes pictures of given images |
| `two_networks` | training of two networks against each other, as GANs do |
| `capabilities` | what a family can do |
| `settings` | base classes of samplers and likelihood methods |
| `clock` | images seen, and the random seed of every micro-batch |
| `optimizers` | optimizer factories, checked before training |
| `latents` | the interface of a first stage |
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
