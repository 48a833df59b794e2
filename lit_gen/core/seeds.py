"""Range of the seeds: 32 bits, as in numpy's legacy generator, which Lightning also seeds."""

from lit_gen.core.errors import UserError

MAX_SEED = 2**32 - 1


def check_seed(seed: int, key: str) -> None:
    """Raise a UserError that names the key unless the seed is in [0, 2^32 - 1]."""
    if not 0 <= seed <= MAX_SEED:
        raise UserError(f"{key}: {seed} is not a seed; give a whole number from 0 to {MAX_SEED}")
