// Where a product ends: running vectors are summed over their lanes and written.
#pragma once
#include "gemm.h"
#include "quant/quant.h"

namespace dsv4 {

typedef float v4 __attribute__((vector_size(16)));

inline v4 fold(vf v) {
#if defined(DSV4_WIDE)
    typedef float v8 __attribute__((vector_size(32)));
    const v8 h = chosen_lanes<0, 1, 2, 3, 4, 5, 6, 7>(v, v) + chosen_lanes<8, 9, 10, 11, 12, 13, 14, 15>(v, v);
    return chosen_lanes<0, 1, 2, 3>(h, h) + chosen_lanes<4, 5, 6, 7>(h, h);
#else
    return chosen_lanes<0, 1, 2, 3>(v, v) + chosen_lanes<4, 5, 6, 7>(v, v);
#endif
}

// the lanes of four vectors, each summed as the same tree
inline v4 sums(vf a, vf b, vf c, vf d) {
    const v4 fa = fold(a), fb = fold(b), fc = fold(c), fd = fold(d);
    const v4 ab = chosen_lanes<0, 1, 4, 5>(fa, fb) + chosen_lanes<2, 3, 6, 7>(fa, fb);
    const v4 cd = chosen_lanes<0, 1, 4, 5>(fc, fd) + chosen_lanes<2, 3, 6, 7>(fc, fd);
    return chosen_lanes<0, 2, 4, 6>(ab, cd) + chosen_lanes<1, 3, 5, 7>(ab, cd);
}

// y[m, n...n + R) from R running vectors
template <int R>
inline void put(const Output& out, int64_t m, int64_t n, const vf* acc) {
    static_assert(R >= 1 && R <= 4);
    const vf none{};
    const v4 s = sums(acc[0], R > 1 ? acc[R > 1 ? 1 : 0] : none, R > 2 ? acc[R > 2 ? 2 : 0] : none,
                      R > 3 ? acc[R > 3 ? 3 : 0] : none);
    const int64_t at = m * out.pitch + n;
    if (out.bf16) {
        for (int r = 0; r < R; r++) ((uint16_t*)out.y)[at + r] = to_bf16(s[r]);
    } else {
        std::memcpy((float*)out.y + at, &s, R * sizeof(float));
    }
}

}  // namespace dsv4
