"""Tests of grids, trajectories and figures."""
