// Products of bfloat16 pairs, added in float32: AVX512_BF16, or the same numbers in plain C++ with DSV4_PLAIN_UNITS, by
// which a machine without the unit tests what is built on it.
#pragma once
#include "simd.h"

namespace dsv4 {

#if defined(__AVX512BF16__) || defined(DSV4_PLAIN_UNITS)
constexpr bool BF16_DOT = true;
#else
constexpr bool BF16_DOT = false;
#endif

// numbers below 2^-126 count as 0
inline float flushed(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }

// the upper of two bfloat16
inline float upper_float(uint32_t bits) {
    bits &= 0xffff0000u;
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

// c + the product of the upper bfloat16 of a and b, as these units compute it
inline float add_upper_product(uint32_t a, uint32_t b, float c) {
    return flushed(__builtin_fmaf(flushed(upper_float(a)), flushed(upper_float(b)), flushed(c)));
}

// lane l: sum[l] + w[2 l + 1] x[2 l + 1] + w[2 l] x[2 l], rounded after each of the two. Numbers below 2^-126 count as
// 0.
inline vf dot_bf16(vf w, vf x, vf sum) {
#if defined(__AVX512BF16__) && !defined(DSV4_PLAIN_UNITS)
    return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)w, (__m512bh)x);
#else
    const vi wi = (vi)w, xi = (vi)x;
    for (int l = 0; l < W; l++) {
        const uint32_t a = uint32_t(wi[l]), b = uint32_t(xi[l]);
        sum[l] = add_upper_product(a << 16, b << 16, add_upper_product(a, b, sum[l]));
    }
    return sum;
#endif
}

}  // namespace dsv4
