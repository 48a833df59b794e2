"""Tests of the shared distributions."""
