"""The instruction sets as test parameters; those this machine lacks are skipped by name."""

import pytest

from dsv4.kernels.native.build import ISA, lacking

EVERY_ISA = [
    pytest.param(isa, marks=pytest.mark.skipif(bool(lacking(isa)), reason=f"{isa}: {lacking(isa)}")) for isa in ISA
]
