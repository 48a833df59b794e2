"""lit_gen: one data module, one protocol and one leaderboard for every family of generative image model."""

__version__ = "0.2.0"
