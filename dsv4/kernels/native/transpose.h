// Rows of vectors become columns, in registers.
#pragma once
#include "simd.h"

namespace dsv4 {

// the first (FIRST = 0) or the second (W / 2) halves of two vectors, their lanes in turns: a, b, a, b, ...
template <int FIRST, int... I>
inline vf zip(vf a, vf b, std::integer_sequence<int, I...>) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, (FIRST + I / 2 + I % 2 * W)...);
#else
    return __builtin_shuffle(a, b, vi{(FIRST + I / 2 + I % 2 * W)...});
#endif
}

// N rows of W floats, N a power of two, become the W columns of N floats, one after another
template <int N>
[[gnu::always_inline]] inline void transpose(vf (&v)[N]) {
    constexpr auto lanes = std::make_integer_sequence<int, W>{};
    for (int done = 1; done < N; done *= 2) {  // each round deals the rows like two halves of a pack of cards
        vf dealt[N];
        unrolled<N / 2>([&](auto i) {
            dealt[2 * i] = zip<0>(v[i], v[i + N / 2], lanes);
            dealt[2 * i + 1] = zip<W / 2>(v[i], v[i + N / 2], lanes);
        });
        unrolled<N>([&](auto i) { v[i] = dealt[i]; });
    }
}

#if defined(__AVX2__)
// the same for 8 x 8, with fewer instructions
[[gnu::always_inline]] inline void turn_eight(__m256 (&v)[8]) {
    __m256 s[8];
    for (int i = 0; i < 8; i += 2) {
        s[i] = _mm256_unpacklo_ps(v[i], v[i + 1]);
        s[i + 1] = _mm256_unpackhi_ps(v[i], v[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        v[i] = _mm256_shuffle_ps(s[i], s[i + 2], 0x44);
        v[i + 1] = _mm256_shuffle_ps(s[i], s[i + 2], 0xEE);
        v[i + 2] = _mm256_shuffle_ps(s[i + 1], s[i + 3], 0x44);
        v[i + 3] = _mm256_shuffle_ps(s[i + 1], s[i + 3], 0xEE);
    }
    for (int i = 0; i < 4; i++) {
        const __m256 low = _mm256_permute2f128_ps(v[i], v[i + 4], 0x20);
        v[i + 4] = _mm256_permute2f128_ps(v[i], v[i + 4], 0x31);
        v[i] = low;
    }
}
#endif

#if defined(__AVX512F__) || defined(__AVX2__)
#if defined(__AVX512F__)
using Dwords = __m512i;
inline Dwords low_pairs(Dwords a, Dwords b) { return _mm512_unpacklo_epi32(a, b); }
inline Dwords high_pairs(Dwords a, Dwords b) { return _mm512_unpackhi_epi32(a, b); }
inline Dwords low_halves(Dwords a, Dwords b) { return _mm512_unpacklo_epi64(a, b); }
inline Dwords high_halves(Dwords a, Dwords b) { return _mm512_unpackhi_epi64(a, b); }
#else
using Dwords = __m256i;
inline Dwords low_pairs(Dwords a, Dwords b) { return _mm256_unpacklo_epi32(a, b); }
inline Dwords high_pairs(Dwords a, Dwords b) { return _mm256_unpackhi_epi32(a, b); }
inline Dwords low_halves(Dwords a, Dwords b) { return _mm256_unpacklo_epi64(a, b); }
inline Dwords high_halves(Dwords a, Dwords b) { return _mm256_unpackhi_epi64(a, b); }
#endif
// Quarters of 16 bytes, turned by themselves: dword i of quarter q of x[j] becomes dword j of quarter q of out[i].
inline void turn_quarters(const Dwords (&x)[4], Dwords* out) {
    const Dwords a = low_pairs(x[0], x[1]), b = low_pairs(x[2], x[3]);
    const Dwords c = high_pairs(x[0], x[1]), d = high_pairs(x[2], x[3]);
    out[0] = low_halves(a, b), out[1] = high_halves(a, b);
    out[2] = low_halves(c, d), out[3] = high_halves(c, d);
}
#endif

}  // namespace dsv4
