"""The protocol of an evaluation, and the schema of its result.json."""
