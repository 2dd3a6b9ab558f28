"""The matrix products alone as a library of other compiler flags, called beside the one that is installed."""

import ctypes
import subprocess
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from dsv4.kernels.matmul.native import weight_kind
from dsv4.kernels.native.build import KERNELS, compiler, write_header

SOURCES = ("gemm", "gemm_linear", "gemm_fixed", "gemm_tiles", "dequant")
FLAGS = ("-std=c++20", "-O1", "-fPIC", "-fno-math-errno", "-ffp-contract=off", "-Wall", "-Wno-psabi")
Product = Callable[[Tensor, Tensor, Tensor | None, bool], Tensor]


def product_library(folder: Path, *flags: str) -> Product:
    """Compile it into a folder. Returns x_TK, weight, scale and whether x goes through FP8 to y_TN, on one thread."""
    files = [KERNELS / "native" / "team.cpp", KERNELS / "quant" / "quant.cpp"]
    files += [KERNELS / "matmul" / f"{name}.cpp" for name in SOURCES]
    include = (f"-I{KERNELS}", f"-I{write_header(folder)}")
    made = folder / "products.so"
    command = [compiler(), *FLAGS, *include, *flags, "-shared", *map(str, files), "-o", str(made)]
    subprocess.run(command, check=True)
    run = ctypes.CDLL(str(made)).dsv4_linear
    run.argtypes, run.restype = [ctypes.c_void_p] * 4 + [ctypes.c_int64] * 3 + [ctypes.c_int] * 4, None

    def product(x_TK: Tensor, weight: Tensor, scale: Tensor | None, quantize: bool) -> Tensor:
        (T, K), N = x_TK.shape, weight.shape[0]
        kind, y_TN = weight_kind(weight, scale), x_TK.new_empty(T, N)
        assert kind is not None
        scales = None if scale is None else scale.data_ptr()
        bf16 = x_TK.dtype == torch.bfloat16
        quantize = quantize and scale is not None
        run(x_TK.data_ptr(), weight.data_ptr(), scales, y_TN.data_ptr(), T, N, K, kind, bf16, quantize, 1)
        return y_TN

    return product
