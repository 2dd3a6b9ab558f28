"""The step that runs where there is a compiler: the whole model as one native call, the same bits as op by op.

`fused.py` decides whether a model can run so, `pack.py` gives the addresses of a Transformer and a CacheStore to the
C++ in dsv4/kernels/step, `native.py` makes the call. tests/engine/test_fused.py holds it equal to the definition,
dsv4/model.
"""

from dsv4.engine.step.fused import FusedStep, misplaced
from dsv4.engine.step.pack import UnfitError

__all__ = ["FusedStep", "UnfitError", "misplaced"]
