// Casts to FP8 and FP4 and back, bit for bit as dsv4/kernels/quant/reference.py.
#include "quant.h"

#include <algorithm>

#include "native/parallel.h"

namespace dsv4 {

namespace {

constexpr float AMAX_FLOOR = 1e-4f, ONE_OVER_MAX = float(1.0 / 448.0), MAX = 448.0f;
constexpr float FP4_AMAX_FLOOR = 0x1.8p-124f, ONE_OVER_FP4_MAX = float(1.0 / 6.0);
constexpr int32_t INFINITE = 0x7f800000;

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

// to the grid of e2m1 (steps of 0.5 up to 2, of 1 up to 4, of 2 above) and back to x's scale, ties to even
vf round_e2m1(vf x, vf inverse, vf scale) {
    const vi sign = (vi)x & int32_t(0x80000000);
    const vf size = (vf)((vi)(x * inverse) & 0x7fffffff);
    // 1.5 * 2^23 times the step: adding it and taking it away rounds to the step
    const vf half = splat(0x1.8p22f), one = splat(0x1.8p23f), two = splat(0x1.8p24f);
    const vf shift = size < splat(2.0f) ? half : (size < splat(4.0f) ? one : two);
    const vf rounded = (size + shift) - shift;
    return (vf)((vi)rounded | sign) * scale;
}

// The scale 2^e of numbers with a given largest: its exponent field, and 2^-e. False where a number is not finite.
struct BlockScale {
    int32_t exponent = 127;
    vf up, down;
    bool finite;
    BlockScale(const float* x, int n) : BlockScale(largest_bits(x, n), AMAX_FLOOR, ONE_OVER_MAX) {}
    BlockScale(int32_t most, float floor, float factor) : finite(most < INFINITE) {
        if (finite) set(std::max(float_of(most), floor) * factor);
    }
    void set(float least) {
        exponent = exponent_above(least);
        up = splat(float_of(exponent << 23)), down = splat(std::ldexp(1.0f, 127 - exponent));
    }
};

// `round` of n numbers; NaN where one of the block is not finite
template <vf round(vf, vf, vf)>
void block_through(const BlockScale& s, const float* in, float* out, int n) {
    if (!s.finite) {
        std::fill(out, out + n, NAN);
        return;
    }
    int i = 0;
    for (; i + W <= n; i += W) store(out + i, round(load(in + i), s.down, s.up));
    if (i < n) store_part(out + i, round(load_part(in + i, n - i), s.down, s.up), n - i);
}

// the scale of a 128 x 128 tile of a weight, whose largest number is divided by 448 and has another floor
BlockScale weight_scale(const float* in, int64_t pitch, int64_t rows, int n) {
    int32_t most = 0;
    for (int64_t r = 0; r < rows; r++) most = std::max(most, largest_bits(in + r * pitch, n));
    BlockScale s(most, 0, 1);
    if (s.finite) s.set(most == 0 ? 1.0f : std::max(float_of(most) / MAX, 0x1p-126f));
    return s;
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
    for (int64_t i = 0; i < K; i += block) {
        const int n = int(std::min(block, K - i));
        block_through<round_e4m3>(BlockScale(in + i, n), in + i, out + i, n);
    }
}

void through_fp8_fixed(const float* x, int16_t* numbers, float* scales, int64_t K) {
    for (int64_t i = 0; i < K; i += FP8_BLOCK)
        block_fixed(x + i, numbers + i, scales + i / FP8_BLOCK, int(std::min<int64_t>(FP8_BLOCK, K - i)));
}

}  // namespace dsv4

using namespace dsv4;

// Values of an FP8 round trip of rows [rows, K] in blocks of `block` columns; a block with NaN or infinity is NaN.
extern "C" void dsv4_simulate_fp8(const float* in, float* out, int64_t rows, int64_t K, int64_t block, int threads) {
    threads = worth(double(rows) * double(K), threads);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t r = 0; r < rows; r++) through_fp8(in + r * K, out + r * K, K, block);
}

// The same through FP4; `block` divides K.
extern "C" void dsv4_simulate_fp4(const float* in, float* out, int64_t rows, int64_t K, int64_t block, int threads) {
    threads = worth(double(rows) * double(K), threads);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = r * K; i < (r + 1) * K; i += block) {
            const BlockScale s(largest_bits(in + i, int(block)), FP4_AMAX_FLOOR, ONE_OVER_FP4_MAX);
            block_through<round_e2m1>(s, in + i, out + i, int(block));
        }
}

// The same of a weight [N, K] through FP8 with one scale for each tile of 128 x 128.
extern "C" void dsv4_simulate_fp8_weight(const float* in, float* out, int64_t N, int64_t K, int threads) {
    threads = worth(double(N) * double(K), threads);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t first = 0; first < N; first += FP8_BLOCK)
        for (int64_t c = 0; c < K; c += FP8_BLOCK) {
            const int64_t rows = std::min<int64_t>(FP8_BLOCK, N - first), at = first * K + c;
            const int n = int(std::min<int64_t>(FP8_BLOCK, K - c));
            const BlockScale s = weight_scale(in + at, K, rows, n);
            for (int64_t r = 0; r < rows; r++) block_through<round_e4m3>(s, in + at + r * K, out + at + r * K, n);
        }
}
