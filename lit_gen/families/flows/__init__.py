"""Normalizing flows: bijections with tractable Jacobians, which turn a simple density into that of the data."""

from lit_gen.families.flows.bijections import (
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
from lit_gen.families.flows.couplings import (
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
from lit_gen.families.flows.density import Base, Flow, Logistic, Normal
from lit_gen.families.flows.dequantisers import (
    Dequantisation,
    DequantisedFlow,
    DequantiserFactory,
    UniformDequantisation,
    VariationalDequantisation,
    VariationalDequantiser,
)
from lit_gen.families.flows.models.image_flows import NICE, Glow, RealNVP
from lit_gen.families.flows.models.point_flow import PointFlow
from lit_gen.families.flows.networks import ConvCoupling, MLPCoupling
from lit_gen.families.flows.planar import Planar, Radial

__all__ = [
    "ActNorm",
    "Additive",
    "Affine",
    "Base",
    "Bijection",
    "Channels",
    "Compose",
    "ConvCoupling",
    "Coupling",
    "Dequantisation",
    "DequantisedFlow",
    "DequantiserFactory",
    "DiagonalScaling",
    "Flow",
    "Glow",
    "InvertibleConv",
    "Logistic",
    "Logit",
    "MLPCoupling",
    "Masked",
    "MultiScale",
    "NICE",
    "NetworkFactory",
    "Normal",
    "Planar",
    "PointFlow",
    "Radial",
    "RealNVP",
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
