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

}  // namespace dsv4
