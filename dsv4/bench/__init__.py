"""Measuring: whole engines by context length, kernels and models beside yardsticks, charts of the results.

`dsv4 bench` and the scripts in benchmarks/ use it.
"""
