// Symmetric matrices of which only the lower triangle was computed.
#pragma once
#include <algorithm>

#include "native/simd.h"
#include "native/transpose.h"

namespace dsv4 {

// the upper triangle of a [n, n] from the lower one
inline void mirror(float* a, int64_t n) {
    for (int64_t i = 0; i < n; i += W)
        for (int64_t j = 0; j <= i; j += W) {
            if (i + W <= n && j < i) {
                vf v[W];
                unrolled<W>([&](auto r) { v[r] = load(a + (i + r) * n + j); });
                transpose<W>(v);
                unrolled<W>([&](auto c) { store(a + (j + c) * n + i, v[c]); });
                continue;
            }
            for (int64_t r = i; r < std::min<int64_t>(i + W, n); r++)
                for (int64_t c = j; c < std::min<int64_t>(j + W, r); c++) a[c * n + r] = a[r * n + c];
        }
}

}  // namespace dsv4
