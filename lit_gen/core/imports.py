"""Which import paths a configuration may name: decided by the path alone, before anything is imported.

A configuration may come from someone else, and what it names is imported and called. Of the packages that are installed
it may name those in `ALLOWED`, whose classes are known to run nothing but themselves; of Python's standard library
nothing; and any other module, which then lies in the current folder or in PYTHONPATH and is the user's own.
"""

import pkgutil
import sys
import sysconfig
from functools import cache

ALLOWED = (
    *("lit_gen", "torch.nn", "torch.optim", "torchvision", "torchmetrics", "diffusers"),
    *("lightning.pytorch", "lightning.fabric"),
)
"""Import paths, each with all below it, of installed packages whose classes a configuration may name."""
REFUSED = (
    "of the standard library or of an installed package that a configuration may not name; give a class of "
    f"{', '.join(ALLOWED)}, or a module of your own in the current folder or in PYTHONPATH"
)


@cache
def installed() -> frozenset[str]:
    """Return the top-level modules of the standard library and of all installed packages."""
    folders = [sysconfig.get_path(name) for name in ("purelib", "platlib")]
    names = {module.name for module in pkgutil.iter_modules(folders)}
    return frozenset(name for name in names | set(sys.stdlib_module_names) if name.isidentifier()) | {"torch"}


def may_be_named(path: str) -> bool:
    """Return whether a configuration may name an import path."""
    if "__main__" in path.split("."):  # imported, it is a command that runs
        return False
    allowed = any(path == entry or path.startswith(f"{entry}.") for entry in ALLOWED)
    return allowed or path.partition(".")[0] not in installed()


def is_of_a_package(module: str) -> bool:
    """Return whether a module is of the standard library or an installed package other than lit_gen."""
    top = module.partition(".")[0]
    return top != "lit_gen" and top in installed()
