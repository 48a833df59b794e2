"""Lightning modules of normalizing flows."""
