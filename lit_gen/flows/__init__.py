"""Normalizing flows: bijections with tractable Jacobians, and the densities that they make of simple ones."""

from lit_gen.flows.bijections import (
    ActNorm,
    Bijection,
    Compose,
    DiagonalScaling,
    InvertibleConv,
    Logit,
    MultiScale,
    Squeeze,
    UnitInterval,
)
from lit_gen.flows.couplings import (
    Additive,
    Affine,
    Channels,
    Coupling,
    Masked,
    NetworkFactory,
    Spline,
    Transform,
    alternating,
    checkerboard,
)
from lit_gen.flows.density import Base, Flow, Logistic, Normal
from lit_gen.flows.dequantisation import (
    Dequantisation,
    DequantisedFlow,
    DequantiserFactory,
    UniformDequantisation,
    VariationalDequantisation,
    VariationalDequantiser,
)
from lit_gen.flows.planar import Planar, Radial

__all__ = [
    "ActNorm",
    "Additive",
    "Affine",
    "Base",
    "Bijection",
    "Channels",
    "Compose",
    "Coupling",
    "Dequantisation",
    "DequantisedFlow",
    "DequantiserFactory",
    "DiagonalScaling",
    "Flow",
    "InvertibleConv",
    "Logistic",
    "Logit",
    "Masked",
    "MultiScale",
    "NetworkFactory",
    "Normal",
    "Planar",
    "Radial",
    "Spline",
    "Squeeze",
    "Transform",
    "UniformDequantisation",
    "UnitInterval",
    "VariationalDequantisation",
    "VariationalDequantiser",
    "alternating",
    "checkerboard",
]
