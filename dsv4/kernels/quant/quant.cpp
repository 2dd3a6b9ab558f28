// The FP8 cast of activations, bit for bit as dsv4/kernels/quant/reference.py: quantize_fp8, with its values.
#include "quant.h"

#include <algorithm>

namespace dsv4 {

namespace {

constexpr float AMAX_FLOOR = 1e-4f, ONE_OVER_MAX = float(1.0 / 448.0), MAX = 448.0f;

int32_t bits_of(float x) {
    int32_t bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}
float float_of(int32_t bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

// the largest magnitude, as bits: those of NaN are the largest of all
int32_t largest_bits(const float* x, int n) {
    vi most{};
    int i = 0;
    for (; i + W <= n; i += W) {
        const vi v = (vi)load(x + i) & 0x7fffffff;
        most = v > most ? v : most;
    }
    int32_t m = 0;
    for (int j = 0; j < W; j++) m = std::max(m, most[j]);
    for (; i < n; i++) m = std::max(m, bits_of(x[i]) & 0x7fffffff);
    return m;
}

// exponent field of the smallest power of two >= x, for positive normal x
int32_t exponent_above(float x) {
    const int32_t bits = bits_of(x);
    return std::min((bits >> 23) + int32_t((bits & 0x7fffff) != 0), 254);
}

// to the grid of e4m3 (3 bits of mantissa, steps of 2^-9 below 2^-6) and back to x's scale. Adding and taking away
// 2^20 times the power of two below |x| rounds to that grid, ties to even.
vf round_e4m3(vf x, vf inverse, vf scale) {
    const vi sign = (vi)x & int32_t(0x80000000);
    const vf size = min((vf)((vi)(x * inverse) & 0x7fffffff), splat(MAX));
    const vi power = (vi)size & 0x7f800000, least = vi{} + (121 << 23);
    const vf shift = (vf)((power > least ? power : least) + (20 << 23));
    const vf rounded = (size + shift) - shift;
    return (vf)((vi)rounded | sign) * scale;
}

// A block's scale 2^e: its exponent field, and 2^-e. False where a number is not finite.
struct BlockScale {
    int32_t exponent;
    vf up, down;
    bool finite;
    BlockScale(const float* x, int n) {
        const int32_t most = largest_bits(x, n);
        finite = most < 0x7f800000;
        if (!finite) return;
        exponent = exponent_above(std::max(float_of(most), AMAX_FLOOR) * ONE_OVER_MAX);
        up = splat(float_of(exponent << 23)), down = splat(std::ldexp(1.0f, 127 - exponent));
    }
};

void block_through_fp8(const float* in, float* out, int n) {
    const BlockScale s(in, n);
    if (!s.finite) {
        std::fill(out, out + n, NAN);
        return;
    }
    int i = 0;
    for (; i + W <= n; i += W) store(out + i, round_e4m3(load(in + i), s.down, s.up));
    if (i < n) store_part(out + i, round_e4m3(load_part(in + i, n - i), s.down, s.up), n - i);
}

void block_fixed(const float* in, int16_t* out, float* scale, int n) {
    const BlockScale s(in, n);
    *scale = s.finite ? s.up[0] : NAN;
    if (!s.finite) {
        std::fill(out, out + n, int16_t(0));
        return;
    }
    constexpr float nearest = 0x1.8p23f;  // added and taken away: rounds to whole numbers, ties to even
    for (int i = 0; i < n; i += W) {
        const int count = std::min(W, n - i);
        const vf x = count == W ? load(in + i) : load_part(in + i, count);
        const vi v = (vi)(round_e4m3(x, s.down, splat(64.0f)) + nearest);
        for (int j = 0; j < count; j++) out[i + j] = int16_t(v[j]);
    }
}

}  // namespace

const float* as_floats(const void* x, bool bf16, int64_t K, float* room) {
    if (!bf16) return (const float*)x;
    for (int64_t i = 0; i < K; i++) room[i] = from_bf16(((const uint16_t*)x)[i]);
    return room;
}

void through_fp8(const float* in, float* out, int64_t K, int64_t block) {
    for (int64_t i = 0; i < K; i += block) block_through_fp8(in + i, out + i, int(std::min(block, K - i)));
}

void through_fp8_fixed(const float* x, int16_t* numbers, float* scales, int64_t K) {
    for (int64_t i = 0; i < K; i += FP8_BLOCK)
        block_fixed(x + i, numbers + i, scales + i / FP8_BLOCK, int(std::min<int64_t>(FP8_BLOCK, K - i)));
}

}  // namespace dsv4
