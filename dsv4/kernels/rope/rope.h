// Rotary embedding of the last dims of each row, neighbours forming the pairs.
#pragma once
#include <cstdint>

namespace dsv4 {

// x and y [tokens, heads, dim], float32 or bfloat16, may be the same; cos and sin [tokens, pairs]. The first
// dim - 2 * pairs columns are copied. No fused operations: results equal the reference bit for bit.
void rope(const void* x, const float* cos_TP, const float* sin_TP, void* y, int64_t tokens, int64_t heads, int64_t dim,
          int64_t pairs, bool inverse, bool bf16, int threads);

}  // namespace dsv4
