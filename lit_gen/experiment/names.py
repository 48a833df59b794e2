"""Names of classes in files: they are a file format and outlive the modules that define the classes.

A configuration names a class by its public name, that of the package which exports it. A class that has moved keeps the
name under which it was first published for the identities of runs, which hash it. Files with older names are still
read. To move a class, add one line here.
"""

from typing import Any

_MOVED = (
    (
        "lit_gen.pixel_likelihoods",
        "lit_gen.distributions",
        "Bernoulli Categorical DiscretisedLogistic Gaussian LogisticMixture PixelLikelihood",
    ),
    ("lit_gen.models", "lit_gen.families.autoregressive", "FVSBN ImageTransformer MADE NADE PixelCNN PixelCNNPlusPlus"),
    (
        "lit_gen.networks",
        "lit_gen.families.autoregressive",
        "CausalTransformer GatedPixelCNN LogisticRegressions MaskedMLP NADENetwork ResidualPixelCNN",
    ),
    ("lit_gen.data.augment", "lit_gen.families.diffusion", "EDMAugmentation"),
    (
        "lit_gen.diffusion",
        "lit_gen.families.diffusion",
        "Cosine Denoiser DiffusionLikelihood DiscreteVP EDMPreconditioning EDMSchedule ELBO Epsilon ErrorOf "
        "FixedTime GaussianMixtureDenoiser Grid Guidance ImportanceSampling Karras LinearVP LogitNormal "
        "LognormalSigma LossWeight MinSNR MixtureDenoiser NetworkDenoiser Parameterization ProbabilityFlow "
        "Quadratic Rectified Sample Schedule Score SubVP TimeDensity TimeShift Uncertainty Uniform UniformLogSNR "
        "UniformLogSigma UniformSteps UniformTime V VE VariancePreserving VariationalBound Velocity",
    ),
    (
        "lit_gen.models",
        "lit_gen.families.diffusion",
        "DDPM Diffusion EDM FlowMatching ImprovedDDPM RectifiedFlow ScoreSDE",
    ),
    ("lit_gen.networks", "lit_gen.families.diffusion", "DiT ResidualMLP UNet"),
    (
        "lit_gen.diffusion",
        "lit_gen.families.diffusion.samplers",
        "AnnealedLangevin DDIM DDPM DPMSolver DiffusionSampler Euler EulerMaruyama GridSampler Heun "
        "PredictorCorrector RK45 UniPC",
    ),
    (
        "lit_gen.flows",
        "lit_gen.families.flows",
        "ActNorm Additive Affine Base Bijection Channels Compose Coupling Dequantisation DequantisedFlow "
        "DiagonalScaling Flow InvertibleConv Logistic Logit Masked MultiScale Normal Planar Radial Spline Squeeze "
        "Transform UniformDequantisation UnitInterval VariationalDequantisation VariationalDequantiser",
    ),
    ("lit_gen.models", "lit_gen.families.flows", "Glow NICE PointFlow RealNVP"),
    ("lit_gen.networks", "lit_gen.families.flows", "ConvCoupling MLPCoupling"),
    ("lit_gen.adversarial", "lit_gen.families.gan", "AdaptiveAugment Augmentation DiffAugment"),
    ("lit_gen.models", "lit_gen.families.gan", "GAN WGAN"),
    ("lit_gen.models.gan", "lit_gen.families.gan", "AdversarialAdam"),
    (
        "lit_gen.networks",
        "lit_gen.families.gan",
        "Critic DCGANDiscriminator DCGANGenerator Generator MLPCritic MLPGenerator SNGANDiscriminator SNGANGenerator",
    ),
    ("lit_gen.truncation", "lit_gen.families.gan", "Truncation"),
    ("lit_gen.methods", "lit_gen.families.settings", "LikelihoodMethod Sampler Temperature"),
    ("lit_gen.models", "lit_gen.families.vae", "VAE"),
    ("lit_gen.models.vae", "lit_gen.families.vae", "ELBO GaussianMixturePrior ImportanceWeighted"),
    ("lit_gen.networks", "lit_gen.families.vae", "ConvDecoder ConvEncoder"),
    ("lit_gen.variational", "lit_gen.families.vae", "MixtureOfGaussians Prior StandardNormal VampPrior"),
    ("lit_gen.models", "lit_gen.families.vq", "TokenPrior VQGAN VQVAE"),
    ("lit_gen.models.vqgan", "lit_gen.families.vq", "LessMomentumAdam"),
    ("lit_gen.networks", "lit_gen.families.vq", "ConvAutoencoder PatchDiscriminator"),
    ("lit_gen.networks.quantisers", "lit_gen.families.vq", "FSQ Quantiser VectorQuantiser"),
    ("lit_gen.networks.token_transformer", "lit_gen.families.vq", "TokenTransformer"),
    ("lit_gen.token_sampling", "lit_gen.families.vq", "TokenSampling"),
    ("lit_gen.callbacks", "lit_gen.training.callbacks", "Budget Checkpoint EMA Monitor SampleGrid TrainingProgress"),
)
"""Package of the first public name, package of the current name, and the classes that have moved."""

_CURRENT = {f"{first}.{name}": f"{now}.{name}" for first, now, names in _MOVED for name in names.split()}
_FIRST = {now: first for first, now in _CURRENT.items()}
_PACKAGES = frozenset(".".join(now.split(".")[:2]) for now in _FIRST)
"""Current packages: a class named in one of them has not moved."""


def current(name: str) -> str:
    """Return the current public name of a class, given any public or module path that it ever had; else the text."""
    root, cls = ".".join(name.split(".")[:2]), name.rpartition(".")[2]
    if name in _CURRENT or not name.startswith("lit_gen.") or root in _PACKAGES:
        return _CURRENT.get(name, name)
    former = (now for old, now in _CURRENT.items() if old.startswith(f"{root}.") and old.endswith(f".{cls}"))
    return next(former, name)


def first(value: Any) -> Any:
    """Return a configuration with the first public name of each class, which identities hash."""
    if isinstance(value, dict):
        return {key: first(part) for key, part in value.items()}
    if isinstance(value, list):
        return [first(part) for part in value]
    return _FIRST.get(value, value) if isinstance(value, str) else value
