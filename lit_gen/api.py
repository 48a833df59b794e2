"""Public names for extensions, in one import: `from lit_gen.api import GridSampler, Schedule, UserError`.

| to add | subclass | and use |
| --- | --- | --- |
| a sampler | `DiffusionSampler`, `GridSampler` | `Denoiser`, `Schedule`, `Grid`, `Noise` |
| a schedule, a parameterization | `Schedule`, `Parameterization` | |
| a density of times, a loss weight | `TimeDensity`, `LossWeight` | |
| a model | `GenerativeModel`, `Diffusion` | `Capabilities`, `Batch`, `Noise`, `OptimizerFactory` |
| its data and samplers | `Sampler` | `ImageDataModule`, `Temperature` |
| a data set | `ImageSource` | `ImageSet`, `Part` |
| features to compare images by | `FeatureNet` | |
| a likelihood of a trained model | `LikelihoodMethod` | |

Each class is documented where it is defined. Raise a `UserError` of the form `KEY: what is wrong; what to do` for a
mistake in a setting.
"""

from lit_gen.core.errors import UserError
from lit_gen.core.noise import Noise
from lit_gen.data.batches import Batch
from lit_gen.data.module import ImageDataModule
from lit_gen.data.sources import ImageSet, ImageSource, Part
from lit_gen.families.base import GenerativeModel
from lit_gen.families.capabilities import Capabilities
from lit_gen.families.diffusion.denoisers import Denoiser, Parameterization
from lit_gen.families.diffusion.densities import TimeDensity
from lit_gen.families.diffusion.grids import Grid
from lit_gen.families.diffusion.models.general import Diffusion
from lit_gen.families.diffusion.objectives import LossWeight
from lit_gen.families.diffusion.samplers.base import DiffusionSampler, GridSampler
from lit_gen.families.diffusion.schedules import Schedule
from lit_gen.families.optimizers import OptimizerFactory
from lit_gen.families.settings import LikelihoodMethod, Sampler, Temperature
from lit_gen.metrics.feature_nets import FeatureNet

__all__ = [
    "Batch",
    "Capabilities",
    "Denoiser",
    "Diffusion",
    "DiffusionSampler",
    "FeatureNet",
    "GenerativeModel",
    "Grid",
    "GridSampler",
    "ImageDataModule",
    "ImageSet",
    "ImageSource",
    "LikelihoodMethod",
    "LossWeight",
    "Noise",
    "OptimizerFactory",
    "Parameterization",
    "Part",
    "Sampler",
    "Schedule",
    "Temperature",
    "TimeDensity",
    "UserError",
]
