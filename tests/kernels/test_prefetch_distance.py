"""How far ahead weights are asked for, in a program of its own: a fault there would end the process."""

import subprocess
from pathlib import Path

import pytest

from dsv4.kernels.native.build import KERNELS, BuildError, compiler, write_header

PROGRAM = """
#include "matmul/dequant.h"
#include <cstdio>
#include <cstdlib>
int main(int count, char** words) {
    for (int i = 1; i + 1 < count; i += 2) {
        std::printf("%ld ", long(dsv4::distance(atol(words[i]), atoi(words[i + 1]))));
    }
}
"""


def test_rows_of_any_length_have_a_distance(tmp_path: Path) -> None:
    try:
        cxx = compiler()
    except BuildError as error:
        pytest.skip(str(error))
    (tmp_path / "main.cpp").write_text(PROGRAM)
    made = str(tmp_path / "main")
    include = [f"-I{KERNELS}", f"-I{write_header(tmp_path)}"]
    subprocess.run(
        [cxx, "-std=c++20", "-Wno-psabi", "-fopenmp", *include, str(tmp_path / "main.cpp"), "-o", made], check=True
    )
    rows = [(0, 1), (0, 8), (1, 1), (1024, 4), (3000, 2), (1 << 20, 4)]
    said = subprocess.run([made, *(str(word) for pair in rows for word in pair)], check=True, capture_output=True)
    found = [int(word) for word in said.stdout.split()]
    # whole turns of the rows that are read together, or a share of the bytes where these are long
    assert found == [16384, 16384, 16384, 16384, 18000, 4096]
