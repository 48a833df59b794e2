"""Run W&B sweep files on this machine: `spec` reads them, `runner` runs their trials, `journal` records them."""

from lit_gen.sweeps.results import SweepResult, current_results, sweep_results
from lit_gen.sweeps.runner import dry_run, run_sweep
from lit_gen.sweeps.spec import Sweep, load_sweep
from lit_gen.sweeps.trial import Trial

__all__ = [
    "Sweep",
    "SweepResult",
    "Trial",
    "current_results",
    "dry_run",
    "load_sweep",
    "run_sweep",
    "sweep_results",
]
