"""Tests of the shared networks."""
