// Rotary embedding of the last dims of each row, neighbours forming the pairs.
#include "rope.h"

#include "native/parallel.h"
#include "quant/quant.h"

using namespace dsv4;

namespace {

void turn_row(const float* x, const float* cos, const float* sin, float sign, int64_t pairs, float* y) {
    for (int64_t p = 0; p < pairs; p++) {
        const float even = x[2 * p], odd = x[2 * p + 1], s = sin[p] * sign;
        y[2 * p] = even * cos[p] - odd * s;
        y[2 * p + 1] = even * s + odd * cos[p];
    }
}

}  // namespace

namespace dsv4 {

void rope(const void* x, const float* cos_TP, const float* sin_TP, void* y, int64_t tokens, int64_t heads, int64_t dim,
          int64_t pairs, bool inverse, bool bf16, int threads) {
    threads = worth(double(tokens * heads) * double(dim), threads);
    const int64_t bytes = bf16 ? 2 : 4, rest = dim - 2 * pairs;
    const auto turn = [&](int64_t r) {
        const float *cos = cos_TP + r / heads * pairs, *sin = sin_TP + r / heads * pairs;
        const char* in = (const char*)x + r * dim * bytes;
        char* out = (char*)y + r * dim * bytes;
        if (in != out) std::memcpy(out, in, rest * bytes);
        in += rest * bytes, out += rest * bytes;
        const float sign = inverse ? -1.0f : 1.0f;
        if (!bf16) {
            turn_row((const float*)in, cos, sin, sign, pairs, (float*)out);
        } else {
            static thread_local Scratch memory;
            float* room = memory.floats(4 * pairs);
            turn_row(as_floats(in, true, 2 * pairs, room), cos, sin, sign, pairs, room + 2 * pairs);
            for (int64_t i = 0; i < 2 * pairs; i++) ((uint16_t*)out)[i] = to_bf16(room[2 * pairs + i]);
        }
    };
    parallel(threads, tokens * heads, turn, shares(tokens * heads, threads));
}

}  // namespace dsv4

// x and y [tokens, heads, dim], float32 or bfloat16; table [2, tokens, pairs]: cos, sin. The first dim - 2 * pairs
// columns are copied. No fused operations: results equal the reference bit for bit.
extern "C" void dsv4_rope(const void* x, const float* table, void* y, int64_t tokens, int64_t heads, int64_t dim,
                          int64_t pairs, int inverse, int bf16, int threads) {
    rope(x, table, table + tokens * pairs, y, tokens, heads, dim, pairs, inverse, bf16, threads);
}
