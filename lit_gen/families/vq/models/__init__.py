"""Lightning modules of two-stage models."""
