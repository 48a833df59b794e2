"""Generators and discriminators for images from 8x8 up, and perceptrons for points of the plane."""
