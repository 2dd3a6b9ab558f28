// Casting cache rows: float32 to packed entries and indexer keys, and back.
#include "rows.h"

#include "native/parallel.h"

using namespace dsv4;

namespace {

constexpr float FP8_MAX = 448.0f, FP8_FLOOR = 1e-4f, FP4_FLOOR = 6.0f * 0x1p-126f;
// A block that holds NaN, infinity, or a value that the cast rounds up to infinity becomes all NaN.
constexpr uint8_t NAN_FP8 = 0x7F, NAN_SCALE = 255;
constexpr uint16_t NAN_BF16 = 0x7FC0;

// the largest magnitude; NaN when there is one
float magnitude(const float* x, int64_t count) {
    float m = 0;
    for (int64_t i = 0; i < count; i++) {
        const float a = std::fabs(x[i]);
        if (!(a <= m)) m = a;
        if (m != m) return m;
    }
    return m;
}

// the biased exponent of the smallest power of two that is not below x > 0 (normal); NAN_SCALE when x is not finite
uint8_t exponent_above(float x) {
    if (!(x <= 3.402823466e38f)) return NAN_SCALE;
    const uint32_t bits = bits_of_float(x);
    const uint32_t e = (bits >> 23) + ((bits & 0x7FFFFF) != 0);
    return uint8_t(e < 254 ? e : 254);
}

// to the nearest whole number, ties to even; |x| < 2^22
float round_even(float x) { return (x + 12582912.0f) - 12582912.0f; }

uint8_t fp8_code(float x) {
    const uint32_t sign = bits_of_float(x) >> 24 & 0x80;
    float a = std::fabs(x);
    a = a < FP8_MAX ? a : FP8_MAX;
    if (a < 0x1p-6f) return uint8_t(sign | uint32_t(round_even(a * 512.0f)));
    const uint32_t bits = bits_of_float(a);
    return uint8_t(sign | (((bits + 0x7FFFF + (bits >> 20 & 1)) >> 20) - (120u << 3)));
}

uint8_t fp4_code(float x) {
    const uint32_t sign = bits_of_float(x) >> 28 & 8;
    const float a = std::fabs(x);
    const float fine = round_even(a * 2), middle = round_even(a) + 2, coarse = round_even(a * 0.5f) + 4;
    float m = fine < middle ? fine : middle;
    m = m < coarse ? m : coarse;
    return uint8_t(sign | uint32_t(m));
}

// One block. A block whose largest code is exactly half of the format's range takes the next smaller scale, as a second
// cast would give it.
uint8_t pack_fp8(const float* x, int64_t count, uint8_t* code) {
    const float largest = magnitude(x, count);
    const uint8_t e = exponent_above((largest > FP8_FLOOR || largest != largest ? largest : FP8_FLOOR) * (1 / FP8_MAX));
    const float inverse = float_of_bits(uint32_t(254 - e) << 23);
    uint8_t top = 0;
    for (int64_t i = 0; i < count && e != NAN_SCALE; i++) {
        code[i] = fp8_code(x[i] * inverse);
        top = (code[i] & 0x7F) > top ? code[i] & 0x7F : top;
    }
    if (e == NAN_SCALE || std::isinf(fp8_value(top) * scale_of(e))) {
        std::memset(code, NAN_FP8, size_t(count));
        return NAN_SCALE;
    }
    const uint8_t half = 0x76, floor = exponent_above(FP8_FLOOR * (1 / FP8_MAX));
    if (top != half || e == floor) return e;
    for (int64_t i = 0; i < count; i++) {
        const uint8_t m = code[i] & 0x7F;
        code[i] = uint8_t((code[i] & 0x80) | (m < 8 ? 2 * m : m + 8));
    }
    return uint8_t(e - 1);
}

uint8_t pack_fp4(const float* x, int64_t count, uint8_t* packed) {
    const float largest = magnitude(x, count);
    const uint8_t e = exponent_above((largest > FP4_FLOOR || largest != largest ? largest : FP4_FLOOR) * (1 / 6.0f));
    std::memset(packed, 0, size_t(count / 2));
    if (e == NAN_SCALE) return NAN_SCALE;
    uint8_t code[INDEX_BLOCK], top = 0;
    const float inverse = float_of_bits(uint32_t(254 - e) << 23);
    for (int64_t i = 0; i < count; i++) {
        code[i] = fp4_code(x[i] * inverse);
        top = (code[i] & 7) > top ? code[i] & 7 : top;
    }
    if (std::isinf(FP4_VALUE[top] * scale_of(e))) return NAN_SCALE;
    const uint8_t doubled[8] = {0, 2, 4, 5, 6, 7, 7, 7}, half = 5;
    const bool lower = top == half && e > 1;
    for (int64_t i = 0; i < count; i++) {
        const uint8_t c = lower ? uint8_t((code[i] & 8) | doubled[code[i] & 7]) : code[i];
        packed[i / 2] |= uint8_t(c << (i % 2 * 4));
    }
    return uint8_t(e - lower);
}

uint16_t bf16_bits(float x) {
    if (x != x) return NAN_BF16;
    const uint32_t bits = bits_of_float(x);
    return uint16_t((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

void pack_entry_row(const float* x, int64_t dim, int64_t rope, uint8_t* row, int64_t bytes) {
    const int64_t plain = dim - rope;
    uint8_t* scale = row + plain + 2 * rope;
    for (int64_t i = 0; i < plain; i += ENTRY_BLOCK)
        *scale++ = pack_fp8(x + i, plain - i < ENTRY_BLOCK ? plain - i : ENTRY_BLOCK, row + i);
    for (int64_t i = 0; i < rope; i++) {
        const uint16_t half = bf16_bits(x[plain + i]);
        std::memcpy(row + plain + 2 * i, &half, 2);
    }
    std::memset(scale, 0, size_t(row + bytes - scale));
}

constexpr int64_t FEW = 64;  // rows below which starting threads costs more than it gains

template <class Body>
void each_row(int64_t count, int threads, const Body& body) {
    threads = count < FEW ? 1 : threads;
    parallel(threads, count, body, shares(count, threads));
}

}  // namespace

extern "C" void dsv4_pack_entry(const float* x, uint8_t* rows, int64_t count, int64_t dim, int64_t rope, int64_t bytes,
                                int threads) {
    each_row(count, threads, [&](int64_t r) { pack_entry_row(x + r * dim, dim, rope, rows + r * bytes, bytes); });
}

extern "C" void dsv4_unpack_entry(const uint8_t* rows, float* x, int64_t count, int64_t dim, int64_t rope,
                                  int64_t bytes, int threads) {
    each_row(count, threads, [&](int64_t r) { entry_to_float(rows + r * bytes, dim, rope, x + r * dim); });
}

extern "C" void dsv4_pack_index(const float* x, uint8_t* rows, int64_t count, int64_t dim, int64_t bytes, int threads) {
    each_row(count, threads, [&](int64_t r) {
        uint8_t *row = rows + r * bytes, *scale = row + dim / 2;
        for (int64_t i = 0; i < dim; i += INDEX_BLOCK)
            *scale++ = pack_fp4(x + r * dim + i, dim - i < INDEX_BLOCK ? dim - i : INDEX_BLOCK, row + i / 2);
    });
}

extern "C" void dsv4_unpack_index(const uint8_t* rows, float* x, int64_t count, int64_t dim, int64_t bytes,
                                  int threads) {
    each_row(count, threads, [&](int64_t r) { index_to_float(rows + r * bytes, dim, x + r * dim); });
}
