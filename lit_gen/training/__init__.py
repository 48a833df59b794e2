"""What happens around a training step: processes, precision, callbacks."""
