"""The ground floor: errors, noise, pixels, files, progress and processes; it imports nothing else of lit_gen."""
