"""Run directories: their files, weights and averages, and what W&B is told of them."""
