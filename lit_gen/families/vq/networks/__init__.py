"""Autoencoder, codebooks and the transformer of codes."""
