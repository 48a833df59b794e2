"""Lightning modules of adversarial models."""
