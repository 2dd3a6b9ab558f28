// FP8 and FP4 weights times activations that went through FP8, in the tiles of AMX-BF16.
//
// Weights and activations are exact in bfloat16, scales included (decode_bf16.h), so sums stay in a tile over a whole
// row. An output element is one chain over blocks of 32 columns, each added as one TDPBF16PS does: the same for one row
// and for many, because every number of rows takes this path.
#pragma once
#include "gemm.h"

namespace dsv4 {

// floats of room that one prepared row of K columns takes
int64_t tiles_size(int64_t K);

// One row of activations through FP8, as pairs of bfloat16 in the order of the decoded weights. x is float32.
void prepare_tiles(int kind, const float* x, int64_t K, float* out);

// like `multiply`
void multiply_tiles(const Weight& w, int64_t n0, int64_t n1, const Input& in, int64_t m0, int64_t m1,
                    const Output& out);

}  // namespace dsv4
