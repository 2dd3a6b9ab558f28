"""The instruction sets as test parameters; those this machine lacks are skipped by name."""

import pytest

from dsv4.kernels.native.build import ISA, machine_features


def lacking(isa: str) -> str:
    """Why this machine cannot run `isa`; empty when it can."""
    missing = ISA[isa][0] - machine_features()
    return f"{isa}: this machine lacks {', '.join(sorted(missing))}" if missing else ""


EVERY_ISA = [pytest.param(isa, marks=pytest.mark.skipif(bool(lacking(isa)), reason=lacking(isa))) for isa in ISA]
