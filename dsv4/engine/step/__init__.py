"""The fused step, which runs where there is a C++ compiler: the whole model as one native call, with the same bits as
op by op.

`fused.py` decides whether a model can be fused, `pack.py` collects the addresses of a Transformer and a CacheStore for
the C++ in dsv4/kernels/step, and `native.py` makes the call. tests/engine/test_fused.py compares it with the
definition, dsv4/model.
"""

from dsv4.engine.step.fused import FusedStep, misplaced
from dsv4.engine.step.pack import UnfitError

__all__ = ["FusedStep", "UnfitError", "misplaced"]
