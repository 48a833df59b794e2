"""Run directories: their files, weights and averages, and their records in W&B, TensorBoard and MLflow."""
