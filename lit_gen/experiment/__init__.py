"""A configuration becomes objects: parser, messages, trust, loading, two stages, reflow, and the training of a run."""
