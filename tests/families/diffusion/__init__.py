"""Tests of diffusion and flow matching."""
