"""Capacity: what a number of machines would serve, by running the real scheduler and cache on a clock of arithmetic."""
