"""Check which import paths a configuration may name, before anything is imported.

A configuration may come from someone else, and the classes that it names are imported and called. A path may name

- an installed package in `ALLOWED`, whose classes are known to run no foreign code;
- any module that is neither installed nor part of the standard library: it lies in the current folder or in PYTHONPATH,
  and is the user's own.
"""

import os
import pkgutil
import sys
import sysconfig
from functools import cache
from importlib.machinery import PathFinder

ALLOWED = (
    *("lit_gen", "torch.nn", "torch.optim", "torchvision", "torchmetrics", "diffusers"),
    *("lightning.pytorch", "lightning.fabric"),
)
"""Import paths of installed packages, with everything below them, whose classes a configuration may name."""
REFUSED = (
    "of the standard library or of an installed package that a configuration may not name; give a class of "
    f"{', '.join(ALLOWED)}, or a module of your own in the current folder or in PYTHONPATH"
)


@cache
def installed() -> frozenset[str]:
    """Return the top-level modules of the standard library and of all installed packages.

    A module that is found earlier on the path, such as a user's `tests`, is not among them.
    """
    folders = [sysconfig.get_path(name) for name in ("purelib", "platlib")]
    names = {module.name for module in pkgutil.iter_modules(folders)}
    theirs = {name for name in names if name.isidentifier() and _found_in(name, folders)}
    return frozenset(theirs | set(sys.stdlib_module_names) | {"torch"})


def _found_in(name: str, folders: list[str]) -> bool:
    """Return whether a top-level module is imported from one of the folders."""
    spec = PathFinder.find_spec(name)
    places = [] if spec is None else [spec.origin, *(spec.submodule_search_locations or [])]
    return not places or any(place and place.startswith(folder + os.sep) for place in places for folder in folders)


def may_be_named(path: str) -> bool:
    """Return whether a configuration may name an import path."""
    if "__main__" in path.split("."):  # importing it runs a command
        return False
    allowed = any(path == entry or path.startswith(f"{entry}.") for entry in ALLOWED)
    return allowed or path.partition(".")[0] not in installed()


def is_of_a_package(module: str) -> bool:
    """Return whether a module belongs to the standard library or an installed package other than lit_gen."""
    top = module.partition(".")[0]
    return top != "lit_gen" and top in installed()
