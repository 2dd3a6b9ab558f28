"""The step that runs where there is a compiler: the whole model as one native call, the same bits as op by op.

`fused.py` reads a Transformer and a CacheStore, `contract.py` says what a step is, `native.py` and `structs.py` hand it
to the C++ in dsv4/kernels/step. tests/engine/test_fused.py holds it equal to the definition, dsv4/model.
"""

from dsv4.engine.step.fused import FusedStep, misplaced

__all__ = ["FusedStep", "misplaced"]
