"""Networks that take a noise level: UNet, DiT, MLP."""
