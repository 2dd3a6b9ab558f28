// One vector type for all machines: W floats, GCC/Clang vector extensions, intrinsics only where they are needed.
//
// Every reduction in these sources adds in an order that depends on the position within a row alone, never on how many
// rows there are or which thread has them: that is what makes results independent of the batch.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

// GCC has it from version 12 on. DSV4_NO_SHUFFLEVECTOR: builds as if it were missing, for tests
#if defined(__has_builtin) && !defined(DSV4_NO_SHUFFLEVECTOR)
#if __has_builtin(__builtin_shufflevector)
#define DSV4_SHUFFLEVECTOR
#endif
#endif

namespace dsv4 {

// DSV4_PLAIN_UNITS: what wide machines have, in plain C++ and with the same bits; for tests, see bf16.h and tiles.h
#if defined(__AVX512F__) || defined(DSV4_PLAIN_UNITS)
#define DSV4_WIDE
constexpr int W = 16;
#else
constexpr int W = 8;
#endif

typedef float vf __attribute__((vector_size(W * 4)));
typedef int32_t vi __attribute__((vector_size(W * 4)));

inline vf load(const float* p) {
    vf v;
    std::memcpy(&v, p, sizeof v);  // becomes one unaligned load
    return v;
}
inline void store(float* p, vf v) { std::memcpy(p, &v, sizeof v); }
inline vf splat(float x) { return x - vf{}; }

// a * b + c in one rounding where the machine has it
inline vf fma(vf a, vf b, vf c) {
#if defined(__AVX512F__)
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__) && !defined(DSV4_PLAIN_UNITS)
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_FEATURE_FMA) || defined(DSV4_PLAIN_UNITS)
    vf r;
    for (int i = 0; i < W; i++) r[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return r;
#else
    return a * b + c;
#endif
}
inline float fma(float a, float b, float c) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA) || defined(DSV4_PLAIN_UNITS)
    return __builtin_fmaf(a, b, c);
#else
    return a * b + c;
#endif
}

// run(0), run(1), ... run(N - 1), each with its number as a constant, so that arrays it indexes can stay in registers
template <int N, class F>
[[gnu::always_inline]] inline void unrolled(F run) {
    [&]<int... I>(std::integer_sequence<int, I...>) __attribute__((always_inline)) {
        (run(std::integral_constant<int, I>{}), ...);
    }(std::make_integer_sequence<int, N>{});
}

// lanes I... of a followed by b (float vectors), as a vector of that many lanes, at most as many as a has
template <int... I, class V>
[[gnu::always_inline]] inline auto chosen_lanes(V a, V b) {
#if defined(DSV4_SHUFFLEVECTOR)
    return __builtin_shufflevector(a, b, I...);
#else
    typedef int32_t Places __attribute__((vector_size(sizeof(V))));
    typedef float Chosen __attribute__((vector_size(sizeof...(I) * 4)));
    const V lanes = __builtin_shuffle(a, b, Places{I...});
    Chosen chosen;
    std::memcpy(&chosen, &lanes, sizeof chosen);
    return chosen;
#endif
}

// the two bfloat16 in each 32-bit lane
inline vf low_half(vi v) { return (vf)(v << 16); }
inline vf high_half(vi v) { return (vf)(v & int32_t(0xffff0000)); }

// the even and the odd lanes of a followed by b
inline void deinterleave(vf a, vf b, vf& even, vf& odd) {
#if defined(DSV4_WIDE)
    even = chosen_lanes<0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30>(a, b);
    odd = chosen_lanes<1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31>(a, b);
#else
    even = chosen_lanes<0, 2, 4, 6, 8, 10, 12, 14>(a, b);
    odd = chosen_lanes<1, 3, 5, 7, 9, 11, 13, 15>(a, b);
#endif
}
inline vf max(vf a, vf b) { return a > b ? a : b; }
inline vf min(vf a, vf b) { return a < b ? a : b; }

// sum of the lanes, always as the same tree
inline float sum(vf v) {
    float lanes[W];
    store(lanes, v);
    for (int half = W / 2; half; half /= 2)
        for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
    return lanes[0];
}
inline float largest(vf v) {
    float m = v[0];
    for (int i = 1; i < W; i++) m = v[i] > m ? v[i] : m;
    return m;
}

// the first `count` < W floats, the other lanes 0
inline vf load_part(const float* p, int count) {
    float lanes[W] = {};
    std::memcpy(lanes, p, count * sizeof(float));
    return load(lanes);
}
inline void store_part(float* p, vf v, int count) {
    float lanes[W];
    store(lanes, v);
    std::memcpy(p, lanes, count * sizeof(float));
}

// sum_i a[i] * b[i]: four running vectors, then the tail
inline float dot(const float* a, const float* b, int64_t n) {
    vf s0{}, s1{}, s2{}, s3{};
    int64_t i = 0;
    for (; i + 4 * W <= n; i += 4 * W) {
        s0 = fma(load(a + i), load(b + i), s0);
        s1 = fma(load(a + i + W), load(b + i + W), s1);
        s2 = fma(load(a + i + 2 * W), load(b + i + 2 * W), s2);
        s3 = fma(load(a + i + 3 * W), load(b + i + 3 * W), s3);
    }
    for (; i + W <= n; i += W) s0 = fma(load(a + i), load(b + i), s0);
    if (i < n) s1 = fma(load_part(a + i, int(n - i)), load_part(b + i, int(n - i)), s1);
    return sum((s0 + s1) + (s2 + s3));
}

}  // namespace dsv4
