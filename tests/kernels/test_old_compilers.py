"""What GCC 11 lacks is written in what it has, with the same results: Ubuntu 22.04's compiler builds the kernels."""

import subprocess
from pathlib import Path

import pytest
import torch

from dsv4.kernels import native
from dsv4.kernels.matmul import linear
from dsv4.kernels.native.build import ISA, KERNELS, BuildError, compiler
from tests.kernels.product_library import product_library
from tests.kernels.stored_weights import KINDS, columns, stored

WITHOUT = "-DDSV4_NO_SHUFFLEVECTOR"
LANES = """
#include <cstdio>
#include "native/simd.h"
using namespace dsv4;
typedef float v4 __attribute__((vector_size(16)));
template <class V>
void show(V v) {
    for (unsigned i = 0; i < sizeof v / 4; i++) std::printf("%g ", v[i]);
}
int main() {
    vf a, b;
    for (int i = 0; i < W; i++) a[i] = float(i), b[i] = float(100 + i);
    show(chosen_lanes<4, 5, 6, 7>(a, a));
    show(chosen_lanes<1, 3, 5, 7, W, W + 2, W + 4, W + 6>(a, b));
    show(chosen_lanes<1, 3, 4, 6>(v4{0, 1, 2, 3}, v4{4, 5, 6, 7}));
}
"""


def compiler_or_skip() -> str:
    try:
        return compiler()
    except BuildError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("flags", [(), (WITHOUT,)], ids=["as the compiler is", "without __builtin_shufflevector"])
def test_lanes_are_chosen_by_number(tmp_path: Path, flags: tuple[str, ...]) -> None:
    source, program = tmp_path / "lanes.cpp", tmp_path / "lanes"
    source.write_text(LANES)
    command = [compiler_or_skip(), "-std=c++20", "-Wno-psabi", f"-I{KERNELS}", *flags]
    subprocess.run([*command, str(source), "-o", str(program)], check=True)
    said = subprocess.run([str(program)], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["4", "5", "6", "7", "1", "3", "5", "7", "100", "102", "104", "106", "1", "3", "4", "6"]


@pytest.mark.slow
def test_products_without_shufflevector_have_the_same_bits(tmp_path: Path) -> None:
    if not native.available():
        pytest.skip(native.why_not())
    product = product_library(tmp_path, *ISA[native.isa()][1], WITHOUT)
    with torch.inference_mode():
        for kind in KINDS:
            for T, N, K in [(1, 33, 160), (3, 7, 96), (5, 129, 1120), (33, 50, 640)]:
                x_TK = torch.randn(T, columns(kind, K))
                weight, scale = stored(kind, torch.randn(N, x_TK.shape[1]))
                for quantize in (True, False):
                    wanted = linear(x_TK, weight, scale, quantize_activations=quantize, impl="native")
                    assert torch.equal(product(x_TK, weight, scale, quantize), wanted), (kind, T, N, K, quantize)
