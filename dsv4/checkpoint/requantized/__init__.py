"""Weights in the forms of other quantisers, one module for each form. `dsv4 convert` reads them, loading does not.

Read `method` first (what a form is), then `recognise` (which tensors of a folder are one).
"""

from dsv4.checkpoint.requantized.method import Method, PackedWeight
from dsv4.checkpoint.requantized.recognise import METHODS, recognise

__all__ = ["METHODS", "Method", "PackedWeight", "recognise"]
