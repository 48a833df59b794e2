"""The families of generative models, one folder each: its mathematics, its networks, its models, its samplers.

`base` has what every model has in common, `settings` how a trained model is asked.
"""

from lit_gen.families import autoregressive, diffusion, flows, gan, vae, vq

__all__ = ["autoregressive", "diffusion", "flows", "gan", "vae", "vq"]
