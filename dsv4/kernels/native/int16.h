// Products of pairs of 16-bit integers, added in 32 bits: AVX512_VNNI, AVX2, or the same numbers in plain C++.
#pragma once
#include "simd.h"

namespace dsv4 {

inline vi splat(int32_t x) { return x - vi{}; }
inline vi load(const int32_t* p) {
    vi v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
inline void store(int32_t* p, vi v) { std::memcpy(p, &v, sizeof v); }

// lane l: sum[l] + a[2 l] b[2 l] + a[2 l + 1] b[2 l + 1] of 16-bit integers; exact while it fits 32 bits
inline vi dot_int16(vi a, vi b, vi sum) {
#if defined(__AVX512VNNI__) && !defined(DSV4_PLAIN_UNITS)
    return (vi)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
#elif defined(__AVX2__) && !defined(__AVX512F__) && !defined(DSV4_PLAIN_UNITS)
    return sum + (vi)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#else
    return sum + (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16);
#endif
}

}  // namespace dsv4
