// Products of bfloat16 pairs, added in float32: AVX512_BF16, or the same numbers in plain C++ where the compiler may
// not use it (a build of that kind is for tests: DSV4_PLAIN_UNITS).
#pragma once
#include "simd.h"

namespace dsv4 {

#if defined(__AVX512BF16__) || defined(DSV4_PLAIN_UNITS)
constexpr bool BF16_DOT = true;
#else
constexpr bool BF16_DOT = false;
#endif

inline float flushed(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }

inline float upper_float(uint32_t bits) {
    bits &= 0xffff0000u;
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

// lane l: sum[l] + w[2 l + 1] x[2 l + 1] + w[2 l] x[2 l], rounded after each of the two. Numbers below 2^-126 count as
// 0.
inline vf dot_bf16(vf w, vf x, vf sum) {
#if defined(__AVX512BF16__)
    return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)w, (__m512bh)x);
#else
    const vi wi = (vi)w, xi = (vi)x;
    for (int l = 0; l < W; l++) {
        const uint32_t a = uint32_t(wi[l]), b = uint32_t(xi[l]);
        const auto step = [](uint32_t a, uint32_t b, float c) {
            return flushed(__builtin_fmaf(flushed(upper_float(a)), flushed(upper_float(b)), c));
        };
        sum[l] = step(a << 16, b << 16, step(a, b, flushed(sum[l])));
    }
    return sum;
#endif
}

}  // namespace dsv4
