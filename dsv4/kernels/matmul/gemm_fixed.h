// FP4 weights times activations that went through FP8, in 16-bit integers.
//
// Release numerics quantise the activations of FP4 products to e4m3 in blocks of 128 columns. Here such a block is
// kept in 16-bit fixed point, in steps of 2^-6 of the block's scale (the largest e4m3 is 448): what e4m3 holds below
// those steps, 2^-7 at most, is rounded. Weights are exact. The sum of a chunk's 8 products in a lane is an exact
// integer, times the activations' scale and the weights' it is added in float32: one rounding a chunk, whatever the
// number of rows. The product of two scales must itself be a float32: weights near 2^-127 or 2^127 may become 0 or NaN.
#pragma once
#include "gemm.h"

namespace dsv4 {

// floats of room that one prepared row of K columns takes
int64_t fixed_size(int64_t K);

// One row of activations in the order the products want, with a vector of scales for every chunk. x is float32.
void prepare_fixed(const float* x, int64_t K, float* out);

// like `multiply`
void multiply_fixed(const Weight& w, int64_t n0, int64_t n1, const Input& in, int64_t m0, int64_t m1,
                    const Output& out);

}  // namespace dsv4
