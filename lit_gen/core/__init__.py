"""What every other package may build on; nothing here imports lit_gen beyond its errors."""
