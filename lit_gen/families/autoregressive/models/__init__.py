"""Lightning modules of the autoregressive family."""
