"""Lightning modules of diffusion and flow matching."""
