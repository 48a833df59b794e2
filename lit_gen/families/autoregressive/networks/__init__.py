"""Networks in which each value sees those before it."""
