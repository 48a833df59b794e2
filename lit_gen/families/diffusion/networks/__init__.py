"""Networks conditioned on a noise level: UNet, DiT, MLP."""
