"""The models that can be trained by name."""

from lit_gen import families
from lit_gen.families.base import GenerativeModel

MODELS: dict[str, type[GenerativeModel]] = {
    name: getattr(package, name)
    for package in (getattr(families, name) for name in families.__all__)
    for name in package.__all__
    if isinstance(getattr(package, name), type) and issubclass(getattr(package, name), GenerativeModel)
}
MODELS.pop("NormalizingFlow")  # a base class: it needs a bijection
