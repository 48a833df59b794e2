"""The ground floor: helpers for files, text and processes that import nothing of lit_gen but its errors."""
